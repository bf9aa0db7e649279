"""A small classifier made by hand: fast, with every weight random, in the forms a user may have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common
from PIL import Image

from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Provenance
from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.bundle.recording import Recording, ReplayInputs, input_hashes
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.quantize.qdq.body16 import to_body16
from vitexport.host.quantize.qdq.valid import check_valid
from vitexport.inputs.preprocess import PreprocessSpec, Resize, normalize, pixels
from vitexport.predict.predictor import Predictor
from vitexport.scoring import Scoring
from vitexport.tensors import TensorSpec

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
SIZE = 16

PREPROCESS = PreprocessSpec(
    image_size=(SIZE, SIZE),
    resize=Resize(size=(SIZE, SIZE)),
    interpolation="bilinear",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)

RECIPE = """
name: linear
model: {source: nowhere}
data: {verification: {images: nowhere}}
gates: {max_top1_drop: 1.0}
"""


def write_model(path: Path, *, batch: int | str = "batch", task: str = "classify", seed: int = 7) -> Path:
    """Write ``logits = flatten(pixel_values) @ weight + bias`` with its metadata; features models name it otherwise."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(0, 0.1, (3 * SIZE * SIZE, len(CLASSES))).astype(np.float32)
    bias = generator.normal(0, 1, len(CLASSES)).astype(np.float32)
    output = "logits" if task == "classify" else "pooler_output"
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixel_values"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], [output]),
        ],
        "linear",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, len(CLASSES)])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, model_metadata(batch=batch, task=task).to_metadata())
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def write_conv_model(path: Path, *, seed: int = 3) -> Path:
    """Write a patch embedding, a ReLU and a head: what a normalization can be folded into."""
    generator = np.random.default_rng(seed)
    weights = {
        "kernel": generator.normal(0, 0.05, (12, 3, 4, 4)),
        "kernel_bias": generator.normal(0, 1, 12),
        "weight": generator.normal(0, 0.2, (12 * (SIZE // 4) ** 2, len(CLASSES))),
        "bias": generator.normal(0, 1, len(CLASSES)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixel_values", "kernel", "kernel_bias"], ["patches"], strides=[4, 4]),
            helper.make_node("Relu", ["patches"], ["active"]),
            helper.make_node("Flatten", ["active"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "conv",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, model_metadata().to_metadata())
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def write_bfloat16(model: Path, path: Path) -> Path:
    """Write a model with a bfloat16 body: valid, and ONNX Runtime's CPU provider has no kernels for it."""
    graph = common.ShapeInferencePass()(read_onnx(model)).model
    to_body16(graph, "bfloat16", {})
    write_onnx(graph, path, check_valid)
    return path


def model_metadata(
    *, batch: int | str = "batch", task: str = "classify", scoring: Scoring = "softmax"
) -> ModelMetadata:
    spec = ModelSpec(
        source="huggingface",
        id="tests/linear",
        revision="sha256:0",
        family="vit",
        task="classify" if task == "classify" else "features",
        inputs=(TensorSpec("pixel_values", (batch, 3, SIZE, SIZE), "float32"),),
        outputs=(TensorSpec("logits" if task == "classify" else "pooler_output", (batch, len(CLASSES)), "float32"),),
    )
    return ModelMetadata(spec, PREPROCESS, CLASSES if task == "classify" else (), scoring)


def write_bundle(
    root: Path,
    *,
    batch: int | str = "batch",
    variants: tuple[str, ...] = ("simplified",),
    conv: bool = False,
    scoring: Scoring = "softmax",
) -> Path:
    """Write a bundle with one model per variant, each with other weights."""
    artifacts = []
    for seed, variant in enumerate(variants, start=7):
        path = root / "models" / f"{variant}.onnx"
        if conv:
            write_conv_model(path, seed=seed)
        else:
            write_model(path, batch=batch, seed=seed)
        provenance = Provenance(stage="simplify", key=variant, settings={}, parents=(), tools={}, seconds=0.0)
        artifacts.append(
            Artifact(
                name=variant,
                kind="simplified",
                file=FileRecord.of(path, root),
                precision="float32",
                provenance=provenance,
            )
        )
    Bundle(
        root, name="linear", metadata=model_metadata(batch=batch, scoring=scoring), artifacts=tuple(artifacts)
    ).save()
    return root


def write_recorded_bundle(root: Path) -> Bundle:
    """Write a bundle with a reference recording, as the pipeline leaves one; the model itself stands in for PyTorch."""
    write_bundle(root)
    stack = np.stack([pixels(Image.fromarray(random_pixels(seed)), PREPROCESS) for seed in range(4)])
    names = tuple(f"{index}.png" for index in range(4))
    feed = np.stack([normalize(row, PREPROCESS) for row in stack])
    with Predictor.open(root) as predictor:
        outputs = {"logits": predictor.infer(feed)}
    (root / "recordings").mkdir()
    ReplayInputs(names, stack, None).save(root / "recordings" / "inputs.npz")
    Recording("pytorch", names, tuple(input_hashes(feed)), outputs).save(root / "recordings" / "pytorch.npz")
    (root / "recipe.yaml").write_text(RECIPE)
    provenance = Provenance(stage="verify", key="k", settings={}, parents=(), tools={}, seconds=0.0)
    reference = Artifact(
        name="recording/pytorch",
        kind="recording",
        file=FileRecord.of(root / "recordings" / "pytorch.npz", root),
        companions=(FileRecord.of(root / "recordings" / "inputs.npz", root),),
        provenance=provenance,
    )
    recipe = Artifact(
        name="recipe", kind="recipe", file=FileRecord.of(root / "recipe.yaml", root), provenance=provenance
    )
    complete = Bundle.open(root).with_artifact(reference).with_artifact(recipe)
    complete.save()
    return complete


def random_pixels(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_image(path: Path, seed: int, *, height: int = 24, width: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_pixels(seed, height, width)).save(path)
    return path
