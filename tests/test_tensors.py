from __future__ import annotations

import numpy as np
import pytest

from vitexport.errors import FeedMismatchError
from vitexport.tensors import TensorSpec, batch_limit, check_feeds, pad_rows, tile_rows

IMAGE = TensorSpec("pixel_values", ("batch", 3, 4, 4), "float32")


def feed(*shape: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"pixel_values": np.zeros(shape, dtype)}


def test_a_matching_feed_passes_with_any_batch_size() -> None:
    for size in (1, 7):
        check_feeds([IMAGE], feed(size, 3, 4, 4))


@pytest.mark.parametrize(
    ("feeds", "found"),
    [
        ({}, r"found \[\]"),
        ({"pixels": np.zeros((1, 3, 4, 4), np.float32)}, r"found \[pixels\]"),
        ({**feed(1, 3, 4, 4), "mask": np.zeros(1)}, "pixel_values, mask"),
        (feed(1, 3, 4, 4, dtype="float64"), r"float64\[1, 3, 4, 4\]"),
        (feed(1, 3, 4, 5), r"float32\[1, 3, 4, 5\]"),
        (feed(0, 3, 4, 4), r"float32\[0, 3, 4, 4\]"),
        (feed(3, 4, 4), r"float32\[3, 4, 4\]"),
    ],
)
def test_any_other_feed_is_refused_with_what_was_found(feeds: dict[str, np.ndarray], found: str) -> None:
    with pytest.raises(FeedMismatchError, match=found):
        check_feeds([IMAGE], feeds)


def test_axes_of_one_name_must_agree_across_inputs() -> None:
    mask = TensorSpec("mask", ("batch",), "bool")
    check_feeds([IMAGE, mask], {**feed(2, 3, 4, 4), "mask": np.zeros(2, bool)})
    with pytest.raises(FeedMismatchError, match="mask: bool"):
        check_feeds([IMAGE, mask], {**feed(2, 3, 4, 4), "mask": np.zeros(3, bool)})


def test_batch_limit_is_the_fixed_first_axis() -> None:
    assert batch_limit(IMAGE) is None
    assert batch_limit(TensorSpec("x", (8, 3), "float32")) == 8


@pytest.mark.parametrize(("size", "rows"), [(2, [1, 2]), (3, [1, 2, 2]), (5, [1, 2, 2, 2, 2]), (1, [1, 2])])
def test_padding_repeats_the_last_row_and_cuts_nothing(size: int, rows: list[int]) -> None:
    padded = pad_rows(np.array([[1], [2]], np.uint8), size)
    assert padded[:, 0].tolist() == rows
    assert padded.dtype == np.uint8


@pytest.mark.parametrize(("size", "rows"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 1, 2, 1])])
def test_tiling_gives_exactly_so_many_rows_from_the_first_on(size: int, rows: list[int]) -> None:
    pairs = np.array([[[1, 1]], [[2, 2]]], np.float16)
    tiled = tile_rows(pairs, size)
    assert tiled.shape == (size, 1, 2)
    assert tiled.dtype == np.float16
    assert tiled[:, 0, 0].tolist() == tiled[:, 0, 1].tolist() == rows
