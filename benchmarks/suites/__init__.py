"""What the benchmark commands share: rows, files, candidates that take turns, and tables."""
