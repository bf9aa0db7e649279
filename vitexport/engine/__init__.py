"""ONNX to TensorRT and TensorRT-RTX engines, and the audit of what came out."""
