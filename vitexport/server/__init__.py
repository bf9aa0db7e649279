"""A predictor over HTTP: the protocols, the limits on what a client may send, and dynamic batching."""
