"""What the toolkit writes: the bundle directory, the metadata of a model file, recorded outputs, and their names.

Also what a path to any of it means.
"""
