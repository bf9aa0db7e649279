"""What the toolkit writes: the bundle directory, the metadata of a model file, recorded answers, and their names."""
