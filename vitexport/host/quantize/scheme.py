"""Q/DQ schemes, by target: the dtypes of Q/DQ, the precision of scales, and the body around them."""

from __future__ import annotations

from dataclasses import dataclass

from vitexport.host.quantize.numerics.qparams import rounding_noise
from vitexport.recipe.settings import QuantizeSettings
from vitexport.tensors import DTYPE_OF_PRECISION

__all__ = ["QdqScheme", "scheme_of"]


@dataclass(frozen=True)
class QdqScheme:
    """How quantization is written into a graph for a target.

    Attributes:
        activation: ``int8``, ``uint8`` or ``float8_e4m3fn``.
        weight: ``int8`` or ``float8_e4m3fn``.
        float16_scales: Scales are stored in float16 and must be representable there.
        body: What everything else computes in: ``float32``, ``float16`` or ``bfloat16``.
        shift_after_gelu: Subtract a constant after GELU, because zero points must be 0.
        pair_limit: Keep neighbouring weights small enough together for kernels that add two products in 16 bits.
    """

    activation: str = "int8"
    weight: str = "int8"
    float16_scales: bool = False
    body: str = "float32"
    shift_after_gelu: bool = True
    pair_limit: bool = False

    @property
    def scaling_price_db(self) -> float:
        """What a multiplication must gain in the output of its layer, in dB, at the same rate as a rotation."""
        return 0.5

    @property
    def rotation_price_db(self) -> dict[int, float]:
        """What a rotation must gain in the output of its layer, in dB, by block size.

        On a CPU 0.25 dB for 1 % of latency: ONNX Runtime takes 2 to 6 % longer with 16 channels in ViT-B/16 and
        DeiT-Tiny, and 7 to 17 % with 64 (``python -m benchmarks.rotation``). TensorRT-RTX compiles either size to two
        further kernels.
        """
        return {16: 1.0, 64: 1.0} if self.body == "float16" else {16: 1.0, 64: 3.0}

    @property
    def island_price_db(self) -> float:
        """What one percent of the multiply-accumulates in float must gain at the model's output, in dB.

        Beside a 16-bit body 8 bits are at most twice as fast; beside float32 on a CPU nearly three times.
        """
        return 0.2 if self.body == "float16" else 0.25

    @property
    def product_noise(self) -> float:
        """Variance of what storing a number in the body's type loses, over the square of the number; 0 for float32."""
        bits = {"float16": 11, "bfloat16": 8}.get(self.body)
        return 0.0 if bits is None else rounding_noise(bits)


def scheme_of(settings: QuantizeSettings) -> QdqScheme:
    """Return the scheme for a target and precision.

    Raises:
        QuantizeError: The target cannot run that precision.
    """
    if settings.precision in DTYPE_OF_PRECISION:
        return QdqScheme(body=DTYPE_OF_PRECISION[settings.precision])
    if settings.precision == "fp8":
        body = "float16" if settings.target == "tensorrt" else "float32"
        return QdqScheme("float8_e4m3fn", "float8_e4m3fn", body == "float16", body, shift_after_gelu=False)
    if settings.target == "tensorrt":
        return QdqScheme(float16_scales=True, body="float16")
    if settings.target in ("ort-x86", "ort-arm64"):
        return QdqScheme(activation="uint8", shift_after_gelu=False, pair_limit=settings.target == "ort-x86")
    return QdqScheme(pair_limit=True)  # such a file runs wherever ONNX Runtime does, CPUs without VNNI among them
