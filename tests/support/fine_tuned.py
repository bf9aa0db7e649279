"""A small fine-tuned checkpoint as a Trainer leaves it, and the class folders it was trained and tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.support.checkpoints import SHAPE

__all__ = ["CLASSES", "write_fine_tuned"]

CLASSES = ("stripes", "checks", "rings", "bars")
"""By output index, which is not the order of the alphabet."""

_SIZE = 48


def write_fine_tuned(root: Path, *, train: int = 24, val: int = 12, steps: int = 60) -> Path:
    """Write ``checkpoint-60``, ``data/train/CLASS`` and ``data/val/CLASS`` under ``root``.

    Args:
        root: Where to.
        train: Images per class to train and calibrate with.
        val: Images per class to verify with.
        steps: Of training.

    Returns:
        The checkpoint.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index, name in enumerate(CLASSES):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_picture(index, generator)).save(folder / f"{number:03}.png")
    return _train(root, steps)


def _picture(kind: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0 : _SIZE - 1 : _SIZE * 1j, 0 : _SIZE - 1 : _SIZE * 1j] + generator.uniform(0, 8)
    period = 8.0
    wave = {
        0: np.sin(2 * np.pi * rows / period),
        1: np.sign(np.sin(2 * np.pi * rows / period) * np.sin(2 * np.pi * columns / period)),
        2: np.sin(2 * np.pi * np.hypot(rows - 24, columns - 24) / period),
        3: np.sin(2 * np.pi * columns / period),
    }[kind]
    tint = generator.uniform(0.6, 1.0, 3)
    noise = generator.normal(0, 20, (_SIZE, _SIZE, 3))
    return np.clip(127 + 90 * wave[:, :, None] * tint + noise, 0, 255).astype(np.uint8)


def _train(root: Path, steps: int) -> Path:
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    paths = sorted((root / "data" / "train").rglob("*.png"))
    planes = processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    names = dict(enumerate(CLASSES))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(**SHAPE, id2label=names, label2id={name: index for index, name in names.items()})
        model = ViTForImageClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(steps):
            chosen = torch.randint(len(paths), (32,))
            model(pixel_values=planes[chosen], labels=labels[chosen]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = root / f"checkpoint-{steps}"
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    # What a Trainer puts beside the weights.
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"learning_rate": 2e-3}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 60}\n', encoding="utf-8")
    return folder
