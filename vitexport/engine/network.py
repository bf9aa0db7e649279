"""ONNX file -> strongly typed TensorRT network, and which GEMMs that network requests.

The request is read from the parsed network rather than from the ONNX file: the network has every shape and type, and
reading it needs no onnx package, which a device does not have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vitexport.errors import EngineBuildError
from vitexport.runtimes.tensorrt.api import NO_GPU, TensorRTApi
from vitexport.runtimes.tensorrt.sidecar import Precision, RequestedGemm, TensorRecord
from vitexport.tensors import ROTATION_SUFFIX

__all__ = ["Network", "parse_network", "requested_gemms", "requested_precision"]

_PRECISIONS: dict[str, Precision] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "FP8": "fp8",
    "INT4": "int4",
    "FP4": "fp4",
}
_DTYPES = {**_PRECISIONS, "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}

# Layers that hand a tensor on without computing with it, so that Q/DQ is looked for behind them.
_TRANSPARENT = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "SLICE")


@dataclass
class Network:
    """A parsed network with everything that must stay alive while it is used.

    The parser does not keep the network alive, and the network's weights are the parser's: dropping one of them early
    is a segfault. So they travel together, and :meth:`close` lets go of them in the order TensorRT asks for.
    """

    api: TensorRTApi
    builder: Any
    definition: Any
    parser: Any

    def close(self) -> None:
        """Release parser, network and builder, in this order; calling it twice is fine."""
        self.parser = None
        self.definition = None
        self.builder = None

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """Network inputs; a dynamic axis carries its name in the ONNX file."""
        definition = self.definition
        return tuple(_record(definition.get_input(index)) for index in range(definition.num_inputs))

    @property
    def outputs(self) -> tuple[TensorRecord, ...]:
        """Network outputs; a dynamic first axis without a name is the inputs' batch."""
        definition = self.definition
        batch = next((item.shape[0] for item in self.inputs if item.shape and isinstance(item.shape[0], str)), "")
        outputs = (definition.get_output(index) for index in range(definition.num_outputs))
        return tuple(_record(tensor, str(batch)) for tensor in outputs)


def parse_network(api: TensorRTApi, model: Path) -> Network:
    """Parse an ONNX file; external data is found beside it.

    Raises:
        EngineBuildError: The parser refuses the file; carries every reason with its node.
    """
    network = Network(api, None, None, None)
    try:
        with api.messages() as messages:
            network.builder = _create(api, "builder", lambda: api.module.Builder(api.logger), messages)
            network.definition = _create(
                api, "network", lambda: network.builder.create_network(api.network_flags), messages
            )
            network.parser = _create(
                api, "ONNX parser", lambda: api.module.OnnxParser(network.definition, api.logger), messages
            )
            parsed = network.parser.parse_from_file(str(model))
        _check_parsed(network, model, parsed, messages)
        _let_attention_decompose(network)
    except EngineBuildError:
        # A frame lets go of its locals in any order; the parser must go before the network it fills.
        network.close()
        raise
    return network


def _check_parsed(network: Network, model: Path, parsed: bool, messages: Sequence[str]) -> None:
    api = network.api
    if parsed and network.definition.num_inputs and network.definition.num_outputs:
        return
    if parsed:
        raise EngineBuildError(
            f"{api.product} {api.version} finds no inputs and outputs in '{model}'.",
            "Give an ONNX file; this one is empty or of another format.",
        )
    # No local may hold the parser: the traceback would keep it alive beyond its network.
    errors = [_parser_error(network.parser.get_error(index)) for index in range(network.parser.num_errors)]
    reasons = errors or list(messages)
    raise EngineBuildError(
        f"{api.product} {api.version} cannot parse '{model}':\n" + "\n".join(f"  {reason}" for reason in reasons),
        "`vitexport lint MODEL.onnx --for tensorrt` explains what to change; copy a truncated file again.",
    )


def _create(api: TensorRTApi, what: str, make: Any, messages: Sequence[str]) -> Any:
    """Call a TensorRT factory, which returns None (or raises pybind11's TypeError) when CUDA or memory is missing."""
    try:
        made = make()
    except TypeError as error:
        raise _no_object(api, what, messages) from error
    if made is None:
        raise _no_object(api, what, messages)
    return made


def _no_object(api: TensorRTApi, what: str, messages: Sequence[str]) -> EngineBuildError:
    return EngineBuildError(
        f"{api.product} {api.version} gives no {what}: {'; '.join(messages) or 'no reason given'}",
        "Check the GPU and its driver with `vitexport doctor`.",
    )


def _parser_error(error: Any) -> str:
    # The description of an operator without support is just "false", so the code's name goes with it.
    name = error.node_name() or (f"number {error.node()}" if error.node() >= 0 else "")
    where = f"node {name} ({error.node_operator()}): " if name else ""
    lines = [line for line in error.desc().splitlines() if not NO_GPU.search(line)]
    return f"{where}{' '.join(lines)} [{getattr(error.code(), 'name', error.code())}]"


def _let_attention_decompose(network: Network) -> None:
    """Let attention layers fall back to plain GEMMs where no fused kernel takes them.

    An ``Attention`` node in float32 has no fused kernel, and without this the build fails.
    """
    module = network.api.module
    boundary = network.api.member("LayerType", "ATTENTION_INPUT")
    if boundary is None:
        return
    for index in range(network.definition.num_layers):
        layer = network.definition.get_layer(index)
        if layer.type == boundary:
            # The bindings return the base class; the vendor's documented way to the derived one is this assignment.
            layer.__class__ = module.IAttentionInputLayer
            layer.attention.decomposable = True


def _record(tensor: Any, batch: str = "") -> TensorRecord:
    def named(axis: int) -> str:
        known = tensor.get_dimension_name(axis) or (batch if axis == 0 else "")
        return known or f"{tensor.name}_axis{axis}"

    shape = tuple(int(size) if size >= 0 else named(axis) for axis, size in enumerate(tensor.shape))
    return TensorRecord(name=tensor.name, shape=shape, dtype=_DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()))


def requested_gemms(network: Network) -> tuple[RequestedGemm, ...]:
    """Return every GEMM and convolution of a network with its operands' type and its work at batch 1.

    The rotations that quantization adds are left out: they have no weights, and are no part of the model's work.
    """
    definition = network.definition
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    producer: dict[str, Any] = {}
    for layer in layers:
        for index in range(layer.num_outputs):
            producer[layer.get_output(index).name] = layer
    gemms: list[RequestedGemm] = []
    for layer in layers:
        kind = layer.type.name
        if kind == "MATRIX_MULTIPLY" and not _onnx_name(layer).endswith(ROTATION_SUFFIX):
            operands = [layer.get_input(0), layer.get_input(1)]
            inner = max(1, operands[0].shape[-1]) if len(operands[0].shape) else 1
            constant = any(_is_constant(operand, producer) for operand in operands)
            # Contracted axis of the left operand: last, or last but one when it is taken transposed.
            if _is_transposed(layer, network.api.module):
                inner = max(1, operands[0].shape[-2])
            work = 2 * inner * _elements(layer.get_output(0).shape)
            gemms.append(_gemm(layer, "weighted" if constant else "attention", operands, producer, work))
        elif kind == "CONVOLUTION":
            operands = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
            layer.__class__ = network.api.module.IConvolutionLayer
            per_output = math.prod(layer.kernel_size_nd) * max(1, operands[0].shape[1]) // max(1, layer.num_groups)
            work = 2 * per_output * _elements(layer.get_output(0).shape)
            gemms.append(_gemm(layer, "convolution", operands, producer, work))
        elif kind == "ATTENTION_INPUT":
            operands = [layer.get_input(0), layer.get_input(1)]
            # Q and K are [batch, heads, tokens, head size]; the GEMMs with K and with V are the same work.
            work = 2 * _elements(operands[0].shape) * max(1, operands[1].shape[-2])
            gemms += [_gemm(layer, "attention", operands, producer, work)] * 2
    return tuple(gemms)


def requested_precision(requested: Sequence[RequestedGemm]) -> Precision:
    """Return what most of the work of the weighted GEMMs is requested to compute in."""
    work: dict[Precision, int] = {}
    weighted = [gemm for gemm in requested if gemm.kind != "attention"]
    for gemm in weighted or requested:
        if gemm.flops:
            work[gemm.precision] = work.get(gemm.precision, 0) + gemm.flops
    return max(work, key=lambda precision: work[precision]) if work else "other"


def _gemm(layer: Any, kind: str, operands: Sequence[Any], producer: dict[str, Any], work: int) -> RequestedGemm:
    precisions: set[Precision] = {_operand_precision(operand, producer) for operand in operands if operand is not None}
    # One quantized operand alone is weight-only quantization: the GEMM itself runs in the other operand's type.
    floats: set[Precision] = {item for item in precisions if item not in ("int8", "fp8", "int4", "fp4")}
    chosen: Precision = next(iter(sorted(floats or precisions)), "other")
    return RequestedGemm(name=_onnx_name(layer), kind=cast(Any, kind), precision=chosen, flops=work)


def _onnx_name(layer: Any) -> str:
    """Return the ONNX node a layer came from: metadata reads ``[ONNX Layer: NAME]``."""
    metadata = str(getattr(layer, "metadata", "") or "")
    marker = "[ONNX Layer: "
    if marker in metadata:
        return metadata.split(marker)[-1].split("]")[0]
    return str(layer.name)


def _operand_precision(tensor: Any, producer: dict[str, Any]) -> Precision:
    layer = producer.get(tensor.name)
    while layer is not None and layer.type.name in _TRANSPARENT:
        layer = producer.get(layer.get_input(0).name)
    if layer is not None and layer.type.name == "DEQUANTIZE":
        tensor = layer.get_input(0)
    return _PRECISIONS.get(tensor.dtype.name, "other")


def _is_constant(tensor: Any, producer: dict[str, Any]) -> bool:
    layer = producer.get(tensor.name)
    while layer is not None and layer.type.name in (*_TRANSPARENT, "DEQUANTIZE", "QUANTIZE", "CAST", "CONSTANT"):
        if layer.type.name == "CONSTANT":
            return True
        layer = producer.get(layer.get_input(0).name)
    return False


def _is_transposed(layer: Any, module: Any) -> bool:
    layer.__class__ = module.IMatrixMultiplyLayer
    return bool(layer.op0 == module.MatrixOperation.TRANSPOSE)


def _elements(shape: Sequence[int]) -> int:
    """Return the number of elements at batch 1: a dynamic axis counts once."""
    return math.prod(max(1, int(size)) for size in shape)
