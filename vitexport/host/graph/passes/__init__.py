"""Passes over onnx-ir, one per file; each says whether it changed anything and what holds afterwards."""
