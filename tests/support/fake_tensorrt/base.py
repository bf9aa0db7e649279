"""What both halves of the fake TensorRT share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.fake_tensorrt.machine import Machine

ERROR = 1


class Crash(AssertionError):
    """What would be a segfault."""


def has(machine: Machine, owner: str, name: str) -> bool:
    """Whether the release has an attribute."""
    return machine.surface is None or name in machine.surface["classes"].get(owner, ())


def tracked(machine: Machine) -> Any:
    """Return a base class whose objects note when they come and go."""

    class Tracked:
        _label = ""

        def _born(self, label: str) -> None:
            self._label = label
            machine.events.append(f"create {label}")

        def __del__(self) -> None:
            machine.events.append(f"delete {self._label}")

    return Tracked
