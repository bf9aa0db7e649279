"""The runtime protocol, its options, and the base class that checks feeds once for every adapter.

What is true of every runtime; what is true of one stands in its own module.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol

from typing_extensions import Self

from vitexport.closing import Closing
from vitexport.tensors import Array, TensorSpec, check_feeds

__all__ = ["Adapter", "Runtime", "RuntimeOptions", "RuntimePackage"]


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model is opened. A runtime takes what concerns it and leaves the rest.

    Attributes:
        threads: Intra-op CPU threads; None lets the runtime choose.
        optimize: Let the runtime optimise the graph; False runs it as written, for exact semantics of Q/DQ.
        device: ``cpu`` or ``cuda:N``.
        execution_provider: ONNX Runtime's: ``cpu``, ``cuda`` or ``tensorrt``; None follows ``device``.
        cuda_binding: Package through which TensorRT's device memory goes: ``cuda-python`` or ``pycuda``; None takes the
            first that is installed.
        in_order: Run nodes in the order in which they are written, where the runtime would choose another: what is read
            at once is then freed at once.
        cuda_graph: Record each input shape as a CUDA graph and replay it, where the runtime can.
    """

    threads: int | None = None
    optimize: bool = True
    device: str = "cpu"
    execution_provider: str | None = None
    cuda_binding: str | None = None
    in_order: bool = False
    cuda_graph: bool = False


@dataclass(frozen=True)
class RuntimePackage:
    """The package a runtime stands on, and how to find out whether it works here; ``vitexport doctor`` does.

    Attributes:
        name: Name of the distribution.
        module: What it is imported as.
        extra: Our extra that brings it.
        purpose: What it is for, in a few words.
        program: Python program that opens the runtime without a model and prints what it can use. It runs in a process
            of its own, because a broken installation may crash.
        needs_gpu: Whether the runtime opens on an NVIDIA GPU only; the program is not run without one.
        without_gpu: What it can do without one all the same.
    """

    name: str
    module: str
    extra: str
    purpose: str
    program: str
    needs_gpu: bool = False
    without_gpu: str = ""


class Runtime(Protocol):
    """What executes a model: feeds of NumPy arrays in, outputs of NumPy arrays out."""

    @property
    def name(self) -> str:
        """Name of the runtime, e.g. ``onnxruntime``."""

    @property
    def concurrent(self) -> bool:
        """Whether :meth:`run` may be called from several threads at once, and gains by it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs the model declares."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs the model declares."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Key-value metadata the file carries; see :class:`vitexport.bundle.metadata.ModelMetadata`."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Execute once.

        Raises:
            FeedMismatchError: The feeds do not match :attr:`inputs`.
            InferenceError: Execution failed.
        """

    def executed(self, feeds: Mapping[str, Array]) -> Mapping[str, float] | None:
        """Return the fraction of the weighted multiply-accumulates that run in each precision, from 0 to 1.

        A graph with Q/DQ nodes is a request; this is what the runtime made of it. None where it does not tell.

        Args:
            feeds: One batch of inputs.
        """

    def close(self) -> None:
        """Release what the runtime holds; calling it twice is fine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Adapter(Closing):
    """Base of every runtime: checks the feeds, then lets the subclass execute.

    A subclass says all that is special about its runtime; its module imports the vendor's package only when a model is
    opened.

    Attributes:
        name: Name of the runtime.
        concurrent: Whether :meth:`run` may be called from several threads at once, and gains by it.
        package: The package it stands on.
        without_a_file: What to do for a file that it opens, when it was given another.
    """

    name: str
    concurrent: bool = False
    package: ClassVar[RuntimePackage]
    without_a_file: ClassVar[str] = "Choose another with --runtime."

    def __init__(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], metadata: Mapping[str, str]
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.metadata = metadata

    @classmethod
    def claims(cls, model: Path) -> bool:
        """Return whether a file with one of the runtime's suffixes is its own; asked where no runtime is named."""
        return True

    @classmethod
    @abstractmethod
    def open(cls, model: Path, options: RuntimeOptions) -> Self:
        """Open a model file; maps every vendor error to :class:`RuntimeBackendError`."""

    @abstractmethod
    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked feeds; maps every vendor error to :class:`InferenceError`."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Check the feeds against :attr:`inputs` and execute once."""
        check_feeds(self.inputs, feeds)
        return self._execute(feeds)

    def executed(self, feeds: Mapping[str, Array]) -> Mapping[str, float] | None:
        """Return None: this runtime does not tell what it executes in which precision."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release what the runtime holds."""
