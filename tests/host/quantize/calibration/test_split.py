"""Which calibration images are held out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vitexport.host.quantize.calibration.calibrate import split_images


@dataclass
class Feeds:
    hashes: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.hashes)


@pytest.mark.parametrize(("count", "held_out"), [(16, 4), (64, 16), (128, 32), (1000, 64)])
def test_a_quarter_is_held_out_evenly_and_at_most_64(count: int, held_out: int) -> None:
    split = split_images(Feeds(tuple(map(str, range(count)))))  # type: ignore[arg-type]
    assert len(split.held_out) == held_out
    assert sorted((*split.calibrating, *split.held_out)) == list(range(count))
    gaps = [b - a for a, b in zip(split.held_out, split.held_out[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert 0 in split.calibrating and count - 1 in split.calibrating


def test_an_image_whose_copy_calibrates_judges_nothing() -> None:
    split = split_images(Feeds(("same", *map(str, range(1, 16)))))  # type: ignore[arg-type]
    copied = tuple("same" if index in (0, split.held_out[1]) else str(index) for index in range(16))
    again = split_images(Feeds(copied))  # type: ignore[arg-type]
    assert again.held_out == (split.held_out[0], *split.held_out[2:])
    assert again.calibrating == split.calibrating
