"""The quickstart's images: handwritten digits from scikit-learn, split three ways and written as PNG files.

``python recipes/quickstart/digits.py`` rewrites ``calib/``: the calibration images, the labelled hold-out images, and
``manifest.json``, which says where each came from and which digits are left for training. :func:`load_splits` alone
decides the split; ``train.py`` uses it too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from vitexport.files import sha256_file, write_atomic

__all__ = ["CALIB", "LABELS", "Digit", "Splits", "load_splits", "render", "write_images"]

CALIB = Path(__file__).resolve().parents[2] / "calib"
LABELS = tuple("0123456789")
CALIBRATION_IMAGES = 128
HOLDOUT_IMAGES = 360
PNG_SIZE = 64
_FULL_INK = 16
_MARGIN = 1

SOURCE = {
    "name": "Optical Recognition of Handwritten Digits (test set), as shipped by sklearn.datasets.load_digits",
    "authors": "E. Alpaydin and C. Kaynak, 1998",
    "url": "https://doi.org/10.24432/C50P49",
    "license": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": f"8x8 pixels framed in black, scaled to {PNG_SIZE}x{PNG_SIZE} (bicubic), 17 grey levels to 256, PNG.",
}


@dataclass(frozen=True)
class Digit:
    """One handwritten digit.

    Attributes:
        index: Its row in the data set.
        label: The digit, which is also its class index.
        ink: uint8 array ``[8, 8]``, 0 (paper) to 16 (full ink).
    """

    index: int
    label: int
    ink: NDArray[np.uint8]

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels: equal for equal content."""
        return hashlib.sha256(self.ink.tobytes()).hexdigest()


@dataclass(frozen=True)
class Splits:
    """Digits by purpose; no digit and no pixel content is in two of them."""

    training: tuple[Digit, ...]
    calibration: tuple[Digit, ...]
    holdout: tuple[Digit, ...]


def load_splits() -> Splits:
    """Split the data set, every class in the same proportion.

    Within a class the digits are ordered by the hash of their pixels: an order that depends on the content alone, so no
    random generator or library version can change it. The hold-out comes first, then calibration, then training. Of
    digits with equal pixels only the first counts.
    """
    data = load_digits()
    unique: dict[str, Digit] = {}
    for index, (ink, label) in enumerate(zip(data.images, data.target, strict=True)):
        digit = Digit(index, int(label), ink.astype(np.uint8))
        unique.setdefault(digit.digest, digit)

    training: list[Digit] = []
    calibration: list[Digit] = []
    holdout: list[Digit] = []
    for label in range(len(LABELS)):
        members = [unique[digest] for digest in sorted(unique) if unique[digest].label == label]
        first = _share(HOLDOUT_IMAGES, label)
        second = first + _share(CALIBRATION_IMAGES, label)
        holdout += members[:first]
        calibration += members[first:second]
        training += members[second:]
    return Splits(*(tuple(sorted(part, key=lambda digit: digit.index)) for part in (training, calibration, holdout)))


def _share(total: int, label: int) -> int:
    """Return how many of ``total`` images fall to one class; the shares differ by at most one and add up."""
    return total * (label + 1) // len(LABELS) - total * label // len(LABELS)


def render(digit: Digit) -> Image.Image:
    """Draw a digit white on black, as an 8-bit grey image of ``PNG_SIZE`` x ``PNG_SIZE`` pixels.

    The strokes reach the border of the 8x8 pixels, so a frame goes around them: the augmentation's shifts and turns
    would cut them otherwise.
    """
    grey = np.pad(np.round(digit.ink * (255 / _FULL_INK)).astype(np.uint8), _MARGIN)
    return Image.fromarray(grey).resize((PNG_SIZE, PNG_SIZE), Image.Resampling.BICUBIC)


def write_images(folder: Path, splits: Splits) -> None:
    """Write ``calibration/*.png``, ``holdout/*.png`` and ``manifest.json`` to ``folder``, replacing what was there."""
    images: list[Mapping[str, object]] = []
    for split, digits in (("calibration", splits.calibration), ("holdout", splits.holdout)):
        shutil.rmtree(folder / split, ignore_errors=True)
        (folder / split).mkdir(parents=True)
        for digit in digits:
            file = f"{split}/{digit.index:04d}_{digit.label}.png"
            render(digit).save(folder / file, optimize=True)
            images.append(
                {
                    "file": file,
                    "label": digit.label,
                    "split": split,
                    "sha256": sha256_file(folder / file),
                    "source_index": digit.index,
                }
            )
    write_atomic(folder / "manifest.json", _manifest(images, [digit.index for digit in splits.training]))


def _manifest(images: Sequence[Mapping[str, object]], training: Sequence[int]) -> str:
    """Return the manifest as JSON with one image per line, so that a change is easy to read."""
    head = {"version": 1, "source": SOURCE, "labels": LABELS, "training_source_indices": training}
    fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines = ",\n".join(f"    {json.dumps(image)}" for image in images)
    return "{\n" + ",\n".join([*fields, f'  "images": [\n{lines}\n  ]']) + "\n}\n"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=CALIB, show_default=True, help="Folder to write.")
def main(output: Path) -> None:
    """Write the quickstart's calibration and hold-out images, e.g. `python recipes/quickstart/digits.py`."""
    splits = load_splits()
    write_images(output, splits)
    click.echo(
        f"{len(splits.calibration)} calibration and {len(splits.holdout)} hold-out images in {output}; "
        f"{len(splits.training)} digits are left for training."
    )


if __name__ == "__main__":
    main()
