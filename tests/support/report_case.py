"""A bundle made on the spot: real recordings and images, no model behind them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitexport.benchmark.latency import summarize
from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Kind, Provenance
from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.bundle.recording import Recording, ReplayInputs, input_hashes
from vitexport.inputs.preprocess import PreprocessSpec, Resize, normalize
from vitexport.recipe.settings import DataSettings, Gates, ImageSet, ModelSettings, Recipe
from vitexport.scoring import Scoring
from vitexport.tensors import TensorSpec
from vitexport.verification.judge import judge
from vitexport.verification.result import VerificationResult

CLASSES = 10
IMAGES = 48


def _range(
    group: str, layer: str, sqnr_db: float, outliers: list[dict[str, float]], rotation: int | None = None
) -> dict[str, object]:
    entry: dict[str, object] = {"layers": [layer], "groups": [group], "seen": [-3.5, 12.25], "scale": 0.0625}
    entry |= {"kept_float": group == "0.fc2", "median_channel": 2.5, "rotation": rotation, "transformed": [-1.75, 2.0]}
    return {**entry, "layer_sqnr_db": sqnr_db, "outliers": outliers}


def _quality(sqnr_db: float, agreement: float) -> dict[str, object]:
    intervals = {"sqnr_interval_db": [sqnr_db - 1, sqnr_db + 1], "agreement_interval": [agreement - 0.1, 1.0]}
    return {"images": 64, "sqnr_db": sqnr_db, "agreement": agreement, **intervals}


QUANTIZATION: dict[str, object] = {
    "ranges": [
        _range("0.fc2", "blocks.0.mlp.fc2", 21.5, []),
        _range("1.fc2", "blocks.1.mlp.fc2", 30.5, [], rotation=16),
        _range("0.qkv", "blocks.0.attn.qkv", 38.5, [{"channel": 7, "times_median": 41.2}]),
    ],
    "kept_float": ["blocks.0.mlp.fc2", "blocks.1.attn.proj"],
    "kept_float_reasons": {"0.fc2": "quantized alone it leaves 22.5 dB", "1.proj": "excluded by `1.proj`"},
    "images": {"calibrating": 192, "held_out": 64},
    "clipped": [{"layers": ["blocks.1.mlp.fc2"], "times": 5.5}],
    "quality": _quality(26.0, 1.0),
    "mixed_precision": {
        "kept_float": ["0.fc2"],
        "cost_db": {"0.fc2": 22.5, "0.qkv": 37.5},
        "before": _quality(20.0, 0.9375),
        "after": _quality(26.0, 1.0),
        "reasons": {"0.fc2": "quantized alone it leaves 22.5 dB"},
    },
}


@dataclass(frozen=True)
class Case:
    """A bundle with its verdict."""

    bundle: Bundle
    verification: VerificationResult
    recipe: Recipe


def make_case(
    root: Path,
    *,
    noise: float = 0.05,
    speed: float = 1.4,
    gates: Gates | None = None,
    scoring: Scoring = "softmax",
) -> Case:
    """Build a bundle of three variants; the int8 one differs by ``noise`` and runs at ``speed`` x the float one."""
    random = np.random.default_rng(7)
    names = tuple(f"image {index:03d}.png" for index in range(IMAGES))
    pixels = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    spec = PreprocessSpec(image_size=(32, 32), resize=Resize(size=(32, 32)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    hashes = tuple(input_hashes(np.stack([normalize(row, spec) for row in pixels])))
    labels = tuple(int(value) for value in random.integers(0, CLASSES, IMAGES))
    logits = random.normal(size=(IMAGES, CLASSES)).astype(np.float32)
    logits[np.arange(IMAGES), labels] += 3
    answers = {
        "pytorch": logits,
        "simplified": logits + np.float32(1e-6),
        "int8": logits + random.normal(scale=noise, size=logits.shape).astype(np.float32),
    }
    truth: Sequence[object] = labels
    if scoring == "sigmoid":
        truth = [[int(label) for label in np.flatnonzero(row > 1)] for row in logits]
    elif scoring == "none":
        truth = [[float(value) + 0.5 for value in row] for row in logits]
    (root / "recordings").mkdir(parents=True)
    artifacts: list[Artifact] = []
    for name, values in answers.items():
        path = root / "recordings" / f"{name}.npz"
        Recording("onnxruntime", names, hashes, {"logits": values}).save(path)
        companions = ()
        details: dict[str, object] = {}
        if name == "pytorch":
            inputs = root / "recordings" / "inputs.npz"
            ReplayInputs(names[:16], pixels[:16], labels[:16]).save(inputs)
            companions, details = (FileRecord.of(inputs, root),), {"targets": truth}
        else:
            model = root / f"{name}.onnx"
            model.write_bytes(b"x" * (4000 if name == "simplified" else 1100))
            kind: Kind = "simplified" if name == "simplified" else "quantized"
            made = _artifact(root, model, name, kind, "float32" if name == "simplified" else "int8")
            artifacts.append(replace_details(made, (), QUANTIZATION) if name == "int8" else made)
        artifacts.append(replace_details(_artifact(root, path, f"recording/{name}", "recording"), companions, details))
    seconds = {"pytorch": 2.0, "simplified": 1.0, "int8": 1.0 / speed}
    times = {name: summarize(value * 1e-3 * random.lognormal(0, 0.05, 300), 1) for name, value in seconds.items()}
    benchmark = root / "benchmark.json"
    machine = {"processor": "Test <CPU> & more", "features": "AVX2, VNNI", "cores": "2"}
    variants = {name: [asdict(value)] for name, value in times.items()}
    benchmark.write_text(json.dumps({"machine": machine, "warnings": ["The machine was busy."], "variants": variants}))
    artifacts.append(_artifact(root, benchmark, "benchmark", "benchmark"))
    bundle = Bundle(
        root,
        name="case",
        metadata=ModelMetadata(
            ModelSpec(
                "huggingface",
                "tiny-vit",
                "sha256:00",
                "vit",
                "classify",
                (TensorSpec("pixel_values", ("batch", 3, 32, 32), "float32"),),
                (TensorSpec("logits", ("batch", CLASSES), "float32"),),
            ),
            spec,
            tuple(f"<class & {index}>" for index in range(CLASSES)),
            scoring,
        ),
        artifacts=tuple(artifacts),
    )
    bundle.save()
    recipe = Recipe(
        name="case <b>",
        model=ModelSettings(source="tiny-vit"),
        data=DataSettings(verification=ImageSet(images=Path("images"))),
        gates=gates or Gates(),
    )
    return Case(bundle, judge(bundle, recipe), recipe)


def _artifact(root: Path, path: Path, name: str, kind: Kind, precision: str = "") -> Artifact:
    provenance = Provenance(stage=kind, key="k", settings={}, parents=(), tools={"onnx": "1.0"}, seconds=1.5)
    return Artifact(name=name, kind=kind, file=FileRecord.of(path, root), precision=precision, provenance=provenance)


def replace_details(artifact: Artifact, companions: tuple[FileRecord, ...], details: dict[str, object]) -> Artifact:
    """Return the artifact with companions and details."""
    return artifact.model_copy(update={"companions": companions, "details": details})
