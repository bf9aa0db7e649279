"""What real images show of a model: statistics of its tensors, streamed, and whether they can be trusted."""
