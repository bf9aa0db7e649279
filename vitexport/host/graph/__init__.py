"""Graphs of Vision Transformers: their files, constants and modules, what they are made of, and passes over them."""
