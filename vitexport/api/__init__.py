"""The Python API: one function for each command, behind ``import vitexport``; the command line calls nothing else."""
