"""Build progress: TensorRT's ``IProgressMonitor`` as plain calls, for a progress bar or a log."""

from __future__ import annotations

from typing import Any, Protocol

from vitexport.runtimes.tensorrt.api import TensorRTApi

__all__ = ["BuildProgress", "make_monitor"]


class BuildProgress(Protocol):
    """What receives the progress of a build. Phases nest; names are TensorRT's own."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase with so many steps begins inside ``parent``."""

    def step(self, phase: str, step: int) -> bool:
        """A step of a phase is done; return False to cancel the build."""

    def finish(self, phase: str) -> None:
        """A phase ends, also when it is cancelled."""


def make_monitor(api: TensorRTApi, progress: BuildProgress) -> Any:
    """Return an ``IProgressMonitor`` that passes everything on.

    TensorRT swallows exceptions raised in a monitor, so an interrupt (Ctrl-C) is turned into a cancelled build.
    """
    base = api.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return progress.step(phase_name, step)
            except KeyboardInterrupt:
                self.interrupted = True
                return False

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
