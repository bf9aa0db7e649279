"""Small pictures of what a model sees."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vitexport.report.render import thumbnail


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGB")])
def test_a_thumbnail_shows_the_colours_of_any_number_of_channels(channels: int, mode: str) -> None:
    pixels = np.zeros((20, 40, channels), dtype=np.uint8)
    pixels[:, 20:] = (200, 120, 40, 255)[:channels]
    head, data = thumbnail(pixels).split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and (image.mode, image.size) == (mode, (160, 80))
    right = np.asarray(image, dtype=int).reshape(80, 160, -1)[40, 140]
    np.testing.assert_allclose(right, pixels[0, 30, : len(right)], atol=6)
    left = np.asarray(image, dtype=int).reshape(80, 160, -1)[40, 20]
    np.testing.assert_allclose(left, 0, atol=6)
