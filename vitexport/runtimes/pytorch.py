"""PyTorch behind the runtime protocol: the reference every other runtime is compared with.

Modules of a checkpoint and files of ``torch.export``; loading a checkpoint is in :mod:`vitexport.host.sources`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import Self

from vitexport.errors import InferenceError, MissingDependencyError, RuntimeBackendError
from vitexport.runtimes.base import Adapter, RuntimeOptions, RuntimePackage
from vitexport.tensors import Array, TensorSpec

if TYPE_CHECKING:
    import torch

__all__ = ["PyTorchRuntime"]


class PyTorchRuntime(Adapter):
    """A ``torch.nn.Module``, or a program saved by ``torch.export``, that runs NumPy arrays."""

    name = "pytorch"
    package = RuntimePackage(
        name="torch",
        module="torch",
        extra="host",
        purpose="export",
        program="import torch as m; print('CUDA' if m.cuda.is_available() else 'CPU')",
    )

    def __init__(
        self,
        module: torch.nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        metadata: Mapping[str, str],
        device: str = "cpu",
    ) -> None:
        super().__init__(inputs, outputs, metadata)
        self._module: torch.nn.Module | None = module
        self._device = device

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """Wrap a module in eval mode whose forward takes ``inputs`` in order and returns a tensor per output.

        Args:
            module: The module.
            inputs: What it takes.
            outputs: What it returns.
            metadata: Key-value metadata; see :class:`vitexport.bundle.metadata.ModelMetadata`.
        """
        return cls(module, tuple(inputs), tuple(outputs), dict(metadata or {}))

    @classmethod
    def open(cls, model: Path, options: RuntimeOptions) -> Self:
        """Open a ``.pt2`` file written by ``torch.export.save``.

        Raises:
            MissingDependencyError: torch is not installed.
            RuntimeBackendError: The file is no exported program, or takes and returns other things than tensors.
        """
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError("torch", "host", "Running PyTorch models") from error
        extra = {"vitexport.json": ""}
        try:
            program = torch.export.load(model, extra_files=extra)
        except (RuntimeError, ValueError, KeyError, OSError, EOFError) as error:
            raise RuntimeBackendError(
                f"PyTorch cannot open '{model}': {error}", "Give a file written by torch.export.save()."
            ) from error
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        signature = program.graph_signature
        nodes = {node.name: node for node in program.graph.nodes}
        inputs = tuple(_spec(name, nodes[name]) for name in signature.user_inputs)
        outputs = tuple(_spec(str(name), nodes[str(name)]) for name in signature.user_outputs)
        metadata = json.loads(extra["vitexport.json"] or "{}")
        return cls(program.module().to(options.device), inputs, outputs, metadata, options.device)

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        if self._module is None:
            raise InferenceError("This PyTorch runtime is closed.", "Open the model again.")
        try:
            with torch.inference_mode():
                tensors = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs]
                results = self._module(*(tensor.to(self._device) for tensor in tensors))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InferenceError(f"PyTorch failed: {error}", "Check the input values and free memory.") from error
        values = results if isinstance(results, tuple | list) else (results,)
        return {spec.name: value.cpu().numpy() for spec, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        """Drop the module."""
        self._module = None


def _spec(name: str, node: torch.fx.Node) -> TensorSpec:
    value = node.meta.get("val")
    if value is None or not hasattr(value, "shape"):
        raise RuntimeBackendError(f"Expected '{name}' to be a tensor.", "Export a model that maps tensors to tensors.")
    shape = tuple(
        axis if isinstance(axis, int) else ("batch" if i == 0 else f"axis{i}") for i, axis in enumerate(value.shape)
    )
    return TensorSpec(name, shape, str(value.dtype).removeprefix("torch."))
