"""TensorRT and TensorRT-RTX engines: opening, running, and reading what the builder made of them.

Two products with nearly one API. Building an engine is :mod:`vitexport.engine`'s.
"""
