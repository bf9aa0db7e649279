"""Measuring: latency by turns, comparisons of models and runtimes, the power of a Jetson."""
