"""What needs PyTorch or ONNX: loading checkpoints, export, graph passes, quantization."""
