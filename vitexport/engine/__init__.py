"""Building engines from ONNX files: TensorRT and TensorRT-RTX. What runs and reads engines is a runtime's."""
