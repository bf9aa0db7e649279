"""The tools that the benchmarks compare with: requirements, workers, and how both are started.

Workers run in the environment of their tool, where little more than NumPy may be installed.
"""
