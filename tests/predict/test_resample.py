"""Interpolation is PyTorch's, in every direction and a strip at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitexport.predict.resample import Kernel, Resampling, resample


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("before", "after"), [((5, 7), (23, 31)), ((16, 16), (9, 40)), ((3, 1), (1, 8)), ((6, 6), (6, 6))]
)
def test_planes_are_interpolated_as_pytorch_does(
    kernel: Kernel, before: tuple[int, int], after: tuple[int, int]
) -> None:
    planes = np.random.default_rng(0).normal(size=(4, *before)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(planes)[None], size=after, mode=kernel, align_corners=False
    )[0]
    np.testing.assert_allclose(resample(planes, after, kernel), expected.numpy(), rtol=0, atol=2e-5)


def test_strips_are_the_rows_of_the_whole() -> None:
    planes = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    strips = Resampling(planes, (17, 9), "bicubic")
    parts = [strips.strip(start, min(start + 4, 17)) for start in range(0, 17, 4)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), resample(planes, (17, 9), "bicubic"))
