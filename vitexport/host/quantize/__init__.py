"""Post-training quantization of ViTs in ONNX: streaming calibration, exact transforms, Q/DQ per target."""

from vitexport.host.quantize.quantizer import quantize_onnx

__all__ = ["quantize_onnx"]
