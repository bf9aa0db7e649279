"""Whether a model answers as PyTorch did: recordings compared, gates, and the result."""
