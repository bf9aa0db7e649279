"""The Hadamard matrices that rotate activations, and finding them in a graph: a constant that is no weight."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import array_of

__all__ = ["ROTATION_SIZES", "hadamard", "is_hadamard", "is_rotation"]

ROTATION_SIZES = (16, 64)
"""Block sizes: powers of 4, whose entries +-1/4 and +-1/8 every float type holds exactly."""

_REGULAR = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=np.float32) / 2


@cache
def hadamard(size: int) -> NDArray[np.float32]:
    """Return the symmetric, orthonormal and regular Hadamard matrix, float32 ``[size, size]``.

    Regular means that every row has the same sum, 1 after scaling (Wallis, 1969): what all channels have in common
    stays the same in all of them, where Sylvester's matrix would gather it in the first.

    Args:
        size: A power of 4.
    """
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.kron(matrix, _REGULAR)
    if len(matrix) != size:
        raise ValueError(f"expected a power of 4, found {size}")
    matrix.flags.writeable = False
    return matrix


def is_hadamard(matrix: NDArray[np.generic]) -> bool:
    """Return whether a constant of any float type is the matrix of a rotation and no weight."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] not in ROTATION_SIZES:
        return False
    return bool(np.array_equal(matrix.astype(np.float32), hadamard(matrix.shape[0])))


def is_rotation(node: ir.Node) -> bool:
    """Return whether a node multiplies an activation by a Hadamard matrix: it mixes channels and has no weights."""
    value = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
    # The shape is asked first, so that no large weight is read.
    stored = None if value is None or value.const_value is None else value.const_value.shape
    if stored is None or list(stored) not in [[size, size] for size in ROTATION_SIZES]:
        return False
    matrix = array_of(value)
    return matrix is not None and is_hadamard(matrix)
