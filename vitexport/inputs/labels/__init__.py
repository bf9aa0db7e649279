"""What is true of each image, matched to the outputs of a model: from class folders, labels files or file names."""
