"""Maps are what the source library makes of the same outputs, and their files say what their numbers mean."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

import vitexport as vx
from tests.support.dense_models import CLASSES, save
from tests.support.linear_model import save_image, write_model
from vitexport.bundle.metadata import ModelSpec
from vitexport.cli import main
from vitexport.errors import BundleError, RecipeError, VitexportError
from vitexport.predict import maps
from vitexport.predict.maps import class_map, depth_map

SIZE = (61, 83)


def spec(task: Any, family: str = "any") -> ModelSpec:
    return ModelSpec("huggingface", "mine", "sha256:0", family, task, (), ())


def normal(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(
    "processor", ["SegformerImageProcessor", "BeitImageProcessor", "DPTImageProcessor", "MobileViTImageProcessor"]
)
@pytest.mark.parametrize("strip", [maps._STRIP_BYTES, 4 * 7 * SIZE[1] * 5])
def test_class_scores_become_the_librarys_map(processor: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_STRIP_BYTES", strip)
    logits = normal(1, 7, 16, 16)
    library = getattr(transformers, processor)()
    (expected,) = library.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=[SIZE])
    found = class_map(spec("segment"), {"logits": logits[0].numpy()}, SIZE)
    assert found.shape == SIZE and len(np.unique(found)) == 7
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize(
    ("family", "processor"),
    [("mask2former", "Mask2FormerImageProcessor"), ("maskformer", "MaskFormerImageProcessor")],
)
def test_queries_become_the_librarys_map(family: str, processor: str) -> None:
    outputs = SimpleNamespace(class_queries_logits=normal(1, 9, 6), masks_queries_logits=normal(1, 9, 16, 16))
    library = getattr(transformers, processor)()
    (expected,) = library.post_process_semantic_segmentation(outputs, target_sizes=[SIZE])
    rows = {name: value[0].numpy() for name, value in vars(outputs).items()}
    found = class_map(spec("segment", family), rows, SIZE)
    assert len(np.unique(found)) > 1
    assert (found == expected.numpy()).mean() > 0.999  # equal scores may fall either way in the last bit
    with pytest.raises(BundleError, match="the masks of MaskFormer and Mask2Former"):
        class_map(spec("segment", "eomt"), rows, SIZE)


@pytest.mark.parametrize("shape", [(24, 24), (1, 24, 24)])
def test_depth_becomes_the_librarys_map(shape: tuple[int, ...]) -> None:
    depth = normal(1, 24, 24).abs()
    library = transformers.DPTImageProcessor()
    (expected,) = library.post_process_depth_estimation(SimpleNamespace(predicted_depth=depth), target_sizes=[SIZE])
    found = depth_map(spec("depth"), {"predicted_depth": depth[0].numpy().reshape(shape)}, SIZE)
    np.testing.assert_allclose(found, expected["predicted_depth"].numpy(), rtol=0, atol=2e-5)


def test_outputs_that_are_no_map_are_refused() -> None:
    with pytest.raises(BundleError, match="scores for every class"):
        class_map(spec("segment"), {"logits": np.zeros(4, np.float32)}, SIZE)
    with pytest.raises(BundleError, match="one depth map"):
        depth_map(spec("depth"), {"predicted_depth": np.zeros((4, 4)), "field_of_view": np.zeros(1)}, SIZE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A segmentation and a depth model as single files, and a folder of images with one that is none."""
    root = tmp_path_factory.mktemp("dense")
    for name in ("segformer", "dpt-depth"):
        save(name, root / name)
        vx.export(root / name, root / f"{name}.onnx")
    images = root / "images"
    (images / "more").mkdir(parents=True)
    save_image(images / "a.png", seed=1, height=40, width=56)
    save_image(images / "b.png", seed=2, height=33, width=20)
    save_image(images / "more" / "a.png", seed=3, height=64, width=64)
    (images / "bad.png").write_bytes(b"no image")
    return {"segment": root / "segformer.onnx", "depth": root / "dpt-depth.onnx", "images": images, "root": root}


def index_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "maps.jsonl").read_text().splitlines()]


def test_segmentation_maps_are_palette_images_of_classes(exported: dict[str, Path], tmp_path: Path) -> None:
    done = vx.predict_files(exported["segment"], exported["images"], tmp_path / "maps", batch=2)
    assert (done.output, done.images, done.failed) == (tmp_path / "maps", 4, 1)
    rows = index_of(tmp_path / "maps")
    assert [row["map"] for row in rows] == ["a.png", "b.png", None, "a-1.png"]
    assert rows[2]["error"] and not any(row["error"] for row in (*rows[:2], rows[3]))
    legend = json.loads((tmp_path / "maps" / "classes.json").read_text())
    assert [entry["name"] for entry in legend.values()] == list(CLASSES.values())
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(exported["root"] / "segformer").eval()
    processor = transformers.SegformerImageProcessorPil.from_pretrained(exported["root"] / "segformer")
    for row in (*rows[:2], rows[3]):
        image = Image.open(row["image"])
        with torch.no_grad():
            outputs = model(**processor(image.convert("RGB"), return_tensors="pt"))
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])
        drawn = Image.open(tmp_path / "maps" / row["map"])
        found = np.asarray(drawn)
        assert drawn.mode == "P" and drawn.size == image.size
        assert (found == expected.numpy()).mean() > 0.999
        assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)
        name, share = max(row["classes"].items(), key=lambda entry: entry[1])
        number = next(i for i, known in CLASSES.items() if known == name)
        assert share == pytest.approx((found == number).mean(), abs=1e-5)
        assert list(drawn.convert("RGB").getpixel((0, 0))) == legend[str(found[0, 0])]["colour"]


def test_depth_maps_are_16_bit_images_whose_scale_is_written_down(exported: dict[str, Path], tmp_path: Path) -> None:
    vx.predict_files(exported["depth"], exported["images"] / "a.png", tmp_path / "maps")
    (row,) = index_of(tmp_path / "maps")
    model = transformers.DPTForDepthEstimation.from_pretrained(exported["root"] / "dpt-depth").eval()
    processor = transformers.DPTImageProcessorPil.from_pretrained(exported["root"] / "dpt-depth")
    image = Image.open(row["image"])
    with torch.no_grad():
        outputs = model(**processor(image.convert("RGB"), return_tensors="pt"))
    (expected,) = processor.post_process_depth_estimation(outputs, target_sizes=[(image.height, image.width)])
    depth = expected["predicted_depth"].numpy()
    drawn = Image.open(tmp_path / "maps" / row["map"])
    steps = np.asarray(drawn)
    assert steps.dtype == np.uint16 and (steps.min(), steps.max()) == (0, 65535)
    assert (float(drawn.text["minimum"]), float(drawn.text["maximum"])) == (row["minimum"], row["maximum"])
    again = row["minimum"] + steps / 65535 * (row["maximum"] - row["minimum"])
    np.testing.assert_allclose(again, depth, rtol=0, atol=3e-5 * float(np.abs(depth).max()))
    assert not (tmp_path / "maps" / "classes.json").exists()


def test_more_than_256_classes_are_16_bit_indices(tmp_path: Path) -> None:
    from vitexport.predict.map_files import _write_classes

    classes = np.array([[0, 255], [256, 700]], dtype=np.uint16)
    facts = _write_classes(tmp_path / "m.png", classes, SimpleNamespace(label=str))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), classes)
    assert facts == {"classes": {"0": 0.25, "255": 0.25, "256": 0.25, "700": 0.25}}


def test_a_folder_with_files_is_kept_unless_told(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(VitexportError, match="exists already"):
        vx.predict_files(exported["depth"], exported["images"] / "a.png", tmp_path)
    vx.predict_files(exported["depth"], exported["images"] / "a.png", tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "a.png", "maps.jsonl"}


def test_maps_and_rows_are_not_mixed_up(exported: dict[str, Path], tmp_path: Path) -> None:
    image = exported["images"] / "a.png"
    with pytest.raises(BundleError, match=r"(?s)one vector per image.*-o DIR"):
        vx.predict_files(exported["segment"], image, tmp_path / "rows.jsonl")
    with pytest.raises(BundleError, match=r"(?s)one vector per image.*-o DIR"):
        vx.predict_files(exported["segment"], image)
    with pytest.raises(RecipeError, match="engine='local' for a folder"):
        vx.predict_files(exported["segment"], image, tmp_path / "maps", engine="ray")
    write_model(tmp_path / "classifier.onnx")
    with pytest.raises(BundleError, match="a model that gives maps for an -o folder"):
        vx.predict_files(tmp_path / "classifier.onnx", image, tmp_path / "maps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.onnx"]


def test_the_command_line_writes_maps_to_a_folder(exported: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["predict", str(exported["segment"]), str(exported["images"] / "b.png")]
    run = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "maps")])
    assert run.exit_code == 0 and f"{tmp_path / 'maps'}: 1 images" in run.output
    with Image.open(tmp_path / "maps" / "b.png") as drawn:
        assert drawn.size == (20, 33)
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 1 and "gives maps (segment)" in run.output and "-o DIR" in run.output
