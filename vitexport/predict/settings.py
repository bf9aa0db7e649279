"""What a batch job is asked to do: the model, where it runs, and how many images at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitexport.predict.foreign import ClassNames, Preprocess
from vitexport.predict.predictor import Predictor
from vitexport.runtimes import RuntimeOptions
from vitexport.scoring import Scoring

__all__ = ["Engine", "JobSettings"]

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class JobSettings:
    """How a batch job runs.

    Attributes:
        model: Bundle directory or model file.
        runtime: Name of the runtime; None lets the file choose.
        variant: Which model of a bundle; None takes the last accepted one.
        top: Classes per image.
        batch: Images per chunk, which is the batch of one run.
        workers: Threads, or Ray actors; None takes one per core.
        threads: Threads of each runtime; None takes one on a CPU.
        device: ``cpu`` or ``cuda:N``.
        engine: ``local`` or ``ray``.
        preprocess: What turns an image into the input of a file that does not say so; see :meth:`Predictor.open`.
        class_names: Names in the order of the outputs, or a file of them; None takes the model's own.
        scoring: What makes scores of the outputs; None takes what the model says.
        address: Ray cluster to join; None starts one on this machine.
    """

    model: str | Path
    runtime: str | None = None
    variant: str | None = None
    top: int = 5
    batch: int = 16
    workers: int | None = None
    threads: int | None = None
    device: str = "cpu"
    engine: Engine = "local"
    address: str | None = None
    preprocess: Preprocess | None = None
    class_names: ClassNames | str | None = None
    scoring: Scoring | None = None

    def open(self) -> Predictor:
        """Open the model for workers that use it together.

        Raises:
            BundleError: The model cannot be used.
            RuntimeBackendError: The runtime cannot open it.
            MissingDependencyError: The runtime's package is not installed.
        """
        threads = 1 if self.threads is None and self.device == "cpu" else self.threads
        options = RuntimeOptions(threads=threads, device=self.device)
        return Predictor.open(
            self.model,
            runtime=self.runtime,
            variant=self.variant,
            options=options,
            preprocess=self.preprocess,
            class_names=self.class_names,
            scoring=self.scoring,
        )
