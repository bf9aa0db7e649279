"""The canonical Vision Transformer graph: passes over onnx-ir, one per file."""
