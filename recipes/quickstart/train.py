"""Train the quickstart's model: a small Vision Transformer that reads handwritten digits.

``python recipes/quickstart/train.py`` rewrites ``recipes/quickstart/model/`` in a few minutes on two CPU cores. The
training images go through the same :func:`vitexport.inputs.preprocess.preprocess` that serves the exported model, with
augmentation applied to the image before it. Neither the calibration nor the hold-out images are trained on.

The same seed, number of threads, torch version and CPU instruction set give the same weights, bit for bit. Elsewhere
rounding differs, and with it the weights; the script prints the accuracy it reached (98.1 % on the hold-out, here).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from digits import LABELS, Digit, load_splits, render
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from vitexport.files import write_atomic
from vitexport.inputs.preprocess import PreprocessSpec, Resize, pixels, preprocess

MODEL = Path(__file__).resolve().parent / "model"
IMAGE_SIZE = 32
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
WARMUP_SHARE = 0.1


def preprocessing(digits: Sequence[Digit]) -> PreprocessSpec:
    """Return the model's preprocessing, normalized by the mean and standard deviation of ``digits``."""
    raw = PreprocessSpec(
        image_size=(IMAGE_SIZE, IMAGE_SIZE),
        resize=Resize(mode="squash", size=(IMAGE_SIZE, IMAGE_SIZE)),
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    values = np.stack([pixels(render(digit), raw) for digit in digits]) * raw.rescale
    mean = tuple(round(float(m), 3) for m in values.mean(axis=(0, 1, 2)))
    std = tuple(round(float(s), 3) for s in values.std(axis=(0, 1, 2)))
    return PreprocessSpec.model_validate({**raw.model_dump(), "mean": mean, "std": std})


def build_model() -> ViTForImageClassification:
    """Return the untrained model: 4 layers, width 96, 3 heads of size 32, 8x8 patches of 4x4 pixels."""
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=4,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=384,
        # 1 / sqrt(hidden_size): the usual 0.02 is made for width 768 and leaves so narrow a model stuck for ten epochs.
        initializer_range=0.1,
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = ViTForImageClassification(config)
    # The gradient of a key bias is zero (softmax cannot see it), so that one stays as it was initialized; zeros would
    # hide an export that loses or misplaces it.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=config.initializer_range)
    return model


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return ``image`` rotated, scaled, sheared and shifted a little, with another contrast and some noise."""
    width, height = image.size
    angle, shear = np.radians(rng.uniform((-12, -8), (12, 8)))
    scale = rng.uniform(0.88, 1.12, size=2)
    shift = rng.uniform(-0.08, 0.08, size=2) * (width, height)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, math.tan(shear)], [0.0, 1.0]]) / scale[:, None]
    centre = np.array([width, height]) / 2
    offset = centre - matrix @ (centre + shift)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    moved = image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    grey = np.asarray(moved, dtype=np.float32) * rng.uniform(0.8, 1.1)
    grey += rng.normal(0.0, rng.uniform(0.0, 12.0), size=grey.shape)
    return Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))


def batches(
    images: Sequence[Image.Image], labels: torch.Tensor, spec: PreprocessSpec, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one epoch in random order: augmented float32 ``[N, 3, H, W]`` planes and their int64 ``[N]`` labels."""
    order = rng.permutation(len(images))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        planes = np.stack([preprocess(augment(images[i], rng), spec) for i in chosen])
        yield torch.from_numpy(planes), labels[torch.from_numpy(chosen)]


def train(
    model: ViTForImageClassification, digits: Sequence[Digit], spec: PreprocessSpec, *, epochs: int, seed: int
) -> None:
    """Train ``model`` in place with AdamW, linear warm-up and cosine decay to zero."""
    rng = np.random.default_rng(seed)
    images = [render(digit) for digit in digits]
    labels = torch.tensor([digit.label for digit in digits])
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    steps = epochs * math.ceil(len(images) / BATCH_SIZE)
    warmup = max(1, round(WARMUP_SHARE * steps))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    loss_of = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    model.train()
    for epoch in range(epochs):
        losses = []
        for planes, targets in batches(images, labels, spec, rng):
            loss = loss_of(model(pixel_values=planes).logits, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        click.echo(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}", err=True)
    model.train(mode=False)


def top1(model: ViTForImageClassification, digits: Sequence[Digit], spec: PreprocessSpec) -> float:
    """Return the share of ``digits`` that ``model`` reads correctly, 0 to 1."""
    planes = torch.from_numpy(np.stack([preprocess(render(digit), spec) for digit in digits]))
    with torch.inference_mode():
        predicted = model(pixel_values=planes).logits.argmax(dim=1)
    return float((predicted == torch.tensor([digit.label for digit in digits])).double().mean())


def write_model(model: ViTForImageClassification, spec: PreprocessSpec, folder: Path) -> None:
    """Write a Hugging Face model directory: weights, ``config.json`` and ``preprocessor_config.json``."""
    model.save_pretrained(folder)
    processor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": spec.mean,
        "image_processor_type": "ViTImageProcessor",
        "image_std": spec.std,
        "resample": int(Image.Resampling[spec.interpolation.upper()]),
        "rescale_factor": spec.rescale,
        "size": {"height": spec.image_size[0], "width": spec.image_size[1]},
    }
    write_atomic(folder / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=MODEL, show_default=True, help="Folder to write.")
@click.option("--epochs", type=click.IntRange(min=1), default=50, show_default=True, help="Passes over the images.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights, order and augmentation.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads of torch.")
def main(output: Path, epochs: int, seed: int, threads: int) -> None:
    """Train the quickstart model, e.g. `python recipes/quickstart/train.py --output /tmp/model`."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(seed)
    splits = load_splits()
    spec = preprocessing(splits.training)
    model = build_model()
    start = time.perf_counter()
    train(model, splits.training, spec, epochs=epochs, seed=seed)
    minutes = (time.perf_counter() - start) / 60
    write_model(model, spec, output)
    size = (output / "model.safetensors").stat().st_size
    click.echo(
        f"Trained {sum(p.numel() for p in model.parameters()):,} parameters on {len(splits.training)} images in "
        f"{minutes:.1f} minutes; {output / 'model.safetensors'} has {size / 1e6:.2f} MB."
    )
    for name, digits in (("calibration", splits.calibration), ("hold-out", splits.holdout)):
        click.echo(f"top-1 on {len(digits)} {name} images: {top1(model, digits, spec):.2%}")


if __name__ == "__main__":
    main()
