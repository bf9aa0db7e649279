"""TensorRT and TensorRT-RTX engines: opening, running, and reading what the builder made of them."""
