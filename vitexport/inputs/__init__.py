"""What goes into a model: image files, their preprocessing, the true class of each. Pillow and NumPy only."""
