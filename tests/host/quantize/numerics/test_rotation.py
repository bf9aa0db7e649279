"""Rotations are exact, keep what channels have in common, and spread what one channel holds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from vitexport.host.graph.hadamard import ROTATION_SIZES, hadamard, is_hadamard
from vitexport.host.quantize.numerics.rotation import Rotation


@pytest.mark.parametrize("size", ROTATION_SIZES)
def test_the_matrix_is_orthonormal_regular_and_exact_in_16_bits(size: int) -> None:
    matrix = hadamard(size)
    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(size, dtype=np.float32))
    np.testing.assert_array_equal(matrix.sum(axis=0), np.ones(size, dtype=np.float32))
    for dtype in (np.float16, ml_dtypes.bfloat16):
        np.testing.assert_array_equal(matrix.astype(dtype).astype(np.float32), matrix)
        assert is_hadamard(matrix.astype(dtype))


def test_only_powers_of_four_have_such_a_matrix_here() -> None:
    with pytest.raises(ValueError, match="expected a power of 4, found 32"):
        hadamard(32)


def test_a_weight_is_no_rotation() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    almost = hadamard(64).copy()
    almost[3, 5] *= -1
    assert not any(is_hadamard(matrix) for matrix in (weight, almost, hadamard(64)[:32], np.ones((16, 16))))


@pytest.mark.parametrize("size", ROTATION_SIZES)
def test_a_rotated_product_and_a_rotated_covariance_are_exact(size: int) -> None:
    random = np.random.default_rng(1)
    rows = (random.normal(size=(2000, 128)) * random.uniform(0.1, 5, 128) + 0.3).astype(np.float32)
    weight = random.normal(size=(128, 24)).astype(np.float32)
    rotation = Rotation(size)
    np.testing.assert_allclose(rotation.rows(rows) @ rotation.weight(weight), rows @ weight, rtol=1e-3, atol=1e-3)
    covariance = np.cov(rows.T).astype(np.float32)
    np.testing.assert_allclose(rotation.covariance(covariance), np.cov(rotation.rows(rows).T), atol=1e-4)


def test_what_all_channels_share_stays_and_what_one_holds_is_spread() -> None:
    rows = np.full((1, 64), 0.25, dtype=np.float32)
    np.testing.assert_allclose(Rotation(64).rows(rows), rows)
    rows[0, 17] += 160
    assert np.abs(Rotation(64).rows(rows)).max() == pytest.approx(160 / 8 + 0.25)
