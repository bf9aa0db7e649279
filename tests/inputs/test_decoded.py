"""Images decoded once give what decoding them each time gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.linear_model import save_image
from vitexport.errors import ImageError
from vitexport.inputs.decoded import DecodedImages
from vitexport.inputs.images import batches, load_image
from vitexport.inputs.preprocess import PreprocessSpec, Resize, pixels
from vitexport.tensors import TensorSpec

SPEC = PreprocessSpec(
    image_size=(8, 8), resize=Resize(mode="squash", size=(8, 8)), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [save_image(tmp_path / f"{seed}.png", seed) for seed in range(5)]


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize(
    "tensor", [TensorSpec("x", ("n", 3, 8, 8), "float32"), TensorSpec("x", ("n", 8, 8, 3), "uint8")]
)
def test_feeds_are_those_of_the_files(tensor: TensorSpec, size: int, paths: list[Path]) -> None:
    with DecodedImages(paths, SPEC) as decoded:
        assert len(decoded) == 5
        for _ in range(2):  # read as often as needed
            found, wanted = list(decoded.feeds(tensor, size)), list(batches(paths, SPEC, tensor, size))
            assert [len(feed) for feed in found] == [len(feed) for feed in wanted]
            np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))


def test_rows_come_in_the_order_asked_for(paths: list[Path]) -> None:
    with DecodedImages(paths, SPEC) as decoded:
        wanted = np.stack([pixels(load_image(paths[row]), SPEC) for row in (3, 0)])
        np.testing.assert_array_equal(decoded.rows([3, 0]), wanted)


def test_a_broken_image_is_named(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    with pytest.raises(ImageError, match="2.png"):
        DecodedImages(paths, SPEC)
