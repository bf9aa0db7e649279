"""Vision Transformers from PyTorch to production, with proof."""

__version__ = "0.1.0"
