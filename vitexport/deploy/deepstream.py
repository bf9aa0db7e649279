"""DeepStream: the ``nvinfer`` configuration of a classifier, and how far its preprocessing is from the model's own.

``nvinfer`` stretches a frame to the network's size, then computes ``y = net-scale-factor * (x - offsets[channel])`` and
hands float planes to the engine: one scale for all channels, no division per channel (DeepStream Developer Guide,
"Gst-nvinfer"). So the graph written here takes raw pixels and normalizes them itself; the configuration then has
scale 1 and no offsets, and is exact for any mean and std.

What no configuration can express is reported as a measured difference: the resize filter (bilinear without
antialiasing here, as the video hardware does) and a centre crop.
"""

from __future__ import annotations

import configparser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.errors import BundleError, VitexportError
from vitexport.files import write_atomic
from vitexport.inputs.preprocess import PreprocessSpec, pixels
from vitexport.predict.predictor import Predictor, softmax
from vitexport.runtimes import open_runtime
from vitexport.verification.select import choose_variant

__all__ = ["CONFIG_FILE", "NvinferConfig", "PreprocessParity", "measure_parity", "write_deepstream"]

CONFIG_FILE = "config_infer.txt"

_MODES = {"float32": 0, "int8": 1, "float16": 2}


@dataclass(frozen=True)
class NvinferConfig:
    """What ``nvinfer`` does to a frame, as its configuration file says.

    Attributes:
        scale: ``net-scale-factor``.
        offsets: Per channel.
        size: (height, width) of the network.
        bgr: Channel order of the network.
    """

    scale: float
    offsets: tuple[float, ...]
    size: tuple[int, int]
    bgr: bool

    @classmethod
    def read(cls, path: str | Path) -> NvinferConfig:
        """Read a configuration file back.

        Raises:
            VitexportError: The file is missing, or lacks a key.
        """
        parser = configparser.ConfigParser(delimiters=("=",))
        try:
            parser.read_string(Path(path).read_text(encoding="utf-8"))
            properties = parser["property"]
            _, height, width = (int(value) for value in properties["infer-dims"].split(";"))
            return cls(
                scale=float(properties["net-scale-factor"]),
                offsets=tuple(float(value) for value in properties["offsets"].split(";")),
                size=(height, width),
                bgr=properties["model-color-format"] == "1",
            )
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            raise VitexportError(f"'{path}' is no nvinfer configuration: {error}", "Write it again.") from error

    def tensor(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return ``float32[3, H, W]`` of a frame ``uint8[H, W, 3]`` in RGB that already has the network's size."""
        ordered = frame[:, :, ::-1] if self.bgr else frame
        planes = ordered.transpose(2, 0, 1).astype(np.float32)
        shifted = planes - np.asarray(self.offsets, dtype=np.float32)[:, None, None]
        return np.ascontiguousarray(np.float32(self.scale) * shifted)

    def stretch(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize a frame to the network's size: bilinear between the four nearest pixels, whatever the ratio."""
        height, width = self.size
        rows, row_weight = _neighbours(frame.shape[0], height)
        columns, column_weight = _neighbours(frame.shape[1], width)
        values = frame.astype(np.float32)
        vertical = values[rows[0]] * (1 - row_weight)[:, None, None] + values[rows[1]] * row_weight[:, None, None]
        left, right = vertical[:, columns[0]], vertical[:, columns[1]]
        mixed = left * (1 - column_weight)[None, :, None] + right * column_weight[None, :, None]
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _neighbours(have: int, want: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]:
    """Return the two source indices of each target pixel (centres aligned) and the weight of the second."""
    centre = np.clip((np.arange(want) + 0.5) * have / want - 0.5, 0, have - 1)
    first = np.floor(centre).astype(np.int64)
    return (first, np.minimum(first + 1, have - 1)), (centre - first).astype(np.float32)


@dataclass(frozen=True)
class PreprocessParity:
    """How far DeepStream is from the bundle on some images; probabilities are absolute differences.

    Attributes:
        images: How many.
        same_pixels: Largest difference of a probability when both start from the same resized pixels.
        own_resize: Largest difference when DeepStream resizes by itself.
        own_resize_mean: Mean over images of the largest difference per image.
        agreement: Fraction of images with the same best class when DeepStream resizes by itself.
        notes: What differs in kind.
    """

    images: int
    same_pixels: float
    own_resize: float
    own_resize_mean: float
    agreement: float
    notes: tuple[str, ...]


def write_deepstream(bundle: Bundle, out: str | Path, *, variant: str | None = None, batch: int = 8) -> Path:
    """Write ``config_infer.txt``, ``model.onnx`` and ``labels.txt``.

    Args:
        bundle: A classifier.
        out: Directory.
        variant: Which model; None takes the last accepted ONNX file.
        batch: ``batch-size`` of nvinfer.

    Returns:
        The configuration file.

    Raises:
        BundleError: The bundle has no such model, or is no classifier.
        ExportError: The model cannot take raw pixels.
    """
    from vitexport.host.graph.passes.deepstream import write_pixel_planes

    if bundle.model.task != "classify":
        raise BundleError(
            f"Expected a classifier, found a model of the task {bundle.model.task}.",
            "nvinfer's classifier needs classes; export with one.",
        )
    artifact = choose_variant(bundle, variant).artifact
    if not artifact.file.path.endswith(".onnx"):
        raise BundleError(f"Expected an ONNX file, found '{artifact.file.path}'.", "Choose one with --variant.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_pixel_planes(bundle.path(artifact), bundle.preprocess, out / "model.onnx")
    labels = (label.replace(";", ",").replace("\n", " ") for label in bundle.class_names)
    write_atomic(out / "labels.txt", ";".join(labels) + "\n")
    config = out / CONFIG_FILE
    write_atomic(config, _config_text(bundle, artifact, batch))
    return config


def _config_text(bundle: Bundle, artifact: Artifact, batch: int) -> str:
    from vitexport.host.graph.passes.deepstream import PROBABILITIES

    height, width = bundle.preprocess.image_size
    mode = _MODES.get(artifact.precision, 0)
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 1,
        "network-mode": mode,
        "onnx-file": "model.onnx",
        "model-engine-file": f"model.onnx_b{batch}_gpu0_{('fp32', 'int8', 'fp16')[mode]}.engine",
        "labelfile-path": "labels.txt",
        "batch-size": batch,
        "infer-dims": f"3;{height};{width}",
        "network-input-order": 0,
        "model-color-format": 0 if bundle.preprocess.channel_order == "rgb" else 1,
        "net-scale-factor": "1.0",
        "offsets": "0.0;0.0;0.0",
        "maintain-aspect-ratio": 0,
        "scaling-filter": 1,
        "output-blob-names": PROBABILITIES,
        "classifier-threshold": "0.0",
    }
    lines = "\n".join(f"{key}={value}" for key, value in properties.items())
    head = (
        f"# {bundle.name}: {artifact.name}. The normalization is inside model.onnx, so nvinfer hands over raw pixels."
    )
    return f"{head}\n[property]\n{lines}\n"


def measure_parity(
    bundle: Bundle, config: str | Path, images: Sequence[Image.Image], *, variant: str | None = None
) -> PreprocessParity:
    """Run the bundle's model and the DeepStream model on images and compare their probabilities.

    Args:
        bundle: The bundle the configuration was written from.
        config: The file, read back.
        images: At least one.
        variant: Which model of the bundle.
    """
    config = Path(config)
    nvinfer = NvinferConfig.read(config)
    same, own, agree = [], [], []
    with (
        Predictor.open(bundle.root, variant=variant) as predictor,
        open_runtime(config.parent / "model.onnx") as runtime,
    ):
        (tensor,), (output,) = runtime.inputs, runtime.outputs
        for image in images:
            expected = softmax(predictor.infer([predictor.prepare(image)])[0])
            frames = (_rgb_pixels(image, bundle.preprocess), nvinfer.stretch(np.asarray(image.convert("RGB"))))
            probabilities = [
                runtime.run({tensor.name: nvinfer.tensor(frame)[None]})[output.name][0] for frame in frames
            ]
            same.append(float(np.abs(probabilities[0] - expected).max()))
            own.append(float(np.abs(probabilities[1] - expected).max()))
            agree.append(int(probabilities[1].argmax() == expected.argmax()))
    return PreprocessParity(
        len(images), max(same), max(own), float(np.mean(own)), float(np.mean(agree)), _notes(bundle.preprocess)
    )


def _rgb_pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    array = pixels(image, spec)
    return array if spec.channel_order == "rgb" else array[:, :, ::-1]


def _notes(spec: PreprocessSpec) -> tuple[str, ...]:
    notes = [f"nvinfer resizes bilinearly without antialiasing; the model was trained with {spec.interpolation}"]
    if spec.crop:
        notes.append("nvinfer stretches the whole frame; the model was trained with a centre crop")
    return tuple(notes)
