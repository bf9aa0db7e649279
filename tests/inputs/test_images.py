from __future__ import annotations

import contextlib
import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitexport.errors import ImageError
from vitexport.inputs.images import batches, content_hashes, decode_image, list_images, load_image
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.inputs.standard import ImageWarning
from vitexport.tensors import TensorSpec


@pytest.fixture
def folder(tmp_path: Path, photo: Image.Image) -> Path:
    for name in ("b/2.png", "a/1.JPG", "c.webp", ".hidden/x.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image") if path.suffix == ".txt" else photo.save(path)
    return tmp_path


def test_images_are_listed_recursively_sorted_without_hidden_and_other_files(folder: Path) -> None:
    assert [path.relative_to(folder).as_posix() for path in list_images(folder)] == ["a/1.JPG", "b/2.png", "c.webp"]


def test_images_of_a_kind_that_is_not_read_are_said(folder: Path, tmp_path: Path) -> None:
    for name in ("a/3.gif", "b/4.GIF", "5.heic"):
        (folder / name).touch()
    with pytest.warns(ImageWarning, match=r"left out, for their kind is not read: 2 \.gif, 1 \.heic"):
        assert len(list_images(folder)) == 3
    (tmp_path / "gifs").mkdir()
    (tmp_path / "gifs" / "1.gif").touch()
    with pytest.raises(ImageError, match=r"found none that can be read: 1 \.gif"):
        list_images(tmp_path / "gifs")


def test_a_limit_is_spread_over_the_list(folder: Path) -> None:
    assert [path.name for path in list_images(folder, limit=2)] == ["1.JPG", "2.png"]
    assert len(list_images(folder, limit=9)) == 3


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found nothing"):
        list_images(tmp_path / "absent")
    with pytest.raises(ImageError, match="found none"):
        list_images(tmp_path)
    file = tmp_path / "file.png"
    file.touch()
    with pytest.raises(ImageError, match="found a file"):
        list_images(file)


def test_a_truncated_image_is_refused_by_name(tmp_path: Path, photo: Image.Image) -> None:
    for suffix in ("jpg", "png"):
        path = tmp_path / f"cut.{suffix}"
        photo.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=f"cut.{suffix}.*damaged or truncated"):
            load_image(path)


def test_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>")
    with pytest.raises(ImageError, match="found 6 bytes of something else"):
        load_image(path)
    with pytest.raises(ImageError, match="Cannot read"):
        load_image(tmp_path / "absent.jpg")


def test_an_enormous_image_is_refused_before_it_is_decoded() -> None:
    stream = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(stream, "PNG")
    assert len(stream.getvalue()) < 200_000
    with pytest.raises(ImageError, match=r"12000 x 12000|too large"):
        decode_image(stream.getvalue(), name="bomb.png")
    with pytest.raises(ImageError, match="60 x 40 pixels; at most 100"):
        decode_image(_png(60, 40), name="x", max_pixels=100)


def _png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_batches_keep_order_and_end_with_the_rest(folder: Path) -> None:
    size = Resize(mode="squash", size=(8, 8))
    spec = PreprocessSpec(image_size=(8, 8), resize=size, mean=(0, 0, 0), std=(1, 1, 1))
    tensor = TensorSpec("x", ("n", 3, 8, 8), "float32")
    found = list(batches(list_images(folder), spec, tensor, 2))
    assert [len(batch) for batch in found] == [2, 1]
    np.testing.assert_array_equal(found[1], next(batches([folder / "c.webp"], spec, tensor, 1)))


def test_content_hash_sees_through_names_and_lossless_formats(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "b.bmp")
    photo.rotate(90, expand=True).save(tmp_path / "c.png")
    first, second, third = content_hashes([tmp_path / "a.png", tmp_path / "b.bmp", tmp_path / "c.png"])
    assert first == second != third


def test_images_decoded_side_by_side_leave_the_warning_filters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    opens, before = Image.open, list(warnings.filters)

    def slowly(*arguments: object, **options: object) -> Image.Image:
        time.sleep(0.01 * (len(opened) % 3))
        opened.append(True)
        return opens(*arguments, **options)

    opened: list[bool] = []
    monkeypatch.setattr(Image, "open", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: decode_image(stream.getvalue(), name="x"), range(12)))
    assert list(warnings.filters) == before


def test_a_damaged_file_of_any_format_is_an_image_error_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        stream = io.BytesIO()
        image.save(stream, kind, exif=exif)
        for _ in range(300):
            data = bytearray(stream.getvalue())
            for place in generator.integers(0, min(len(data), 260), 4):
                data[place] = generator.integers(0, 256)
            with contextlib.suppress(ImageError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own remarks on what it reads
                decode_image(bytes(data), name="damaged")
