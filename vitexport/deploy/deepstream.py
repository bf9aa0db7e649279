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

from vitexport.bundle.bundle import Bundle
from vitexport.errors import BundleError, VitexportError
from vitexport.files import write_atomic
from vitexport.inputs.preprocess import PreprocessSpec, pixels
from vitexport.inputs.standard import in_channels, standardize
from vitexport.predict.predictor import Predictor
from vitexport.runtimes import open_runtime
from vitexport.scoring import score_outputs
from vitexport.verification.select import Choice

__all__ = ["CONFIG_FILE", "NvinferConfig", "PreprocessParity", "measure_parity", "write_deepstream"]

CONFIG_FILE = "config_infer.txt"

# model-color-format of nvinfer (DeepStream Developer Guide, "Gst-nvinfer")
_COLOURS = {"rgb": 0, "bgr": 1, "gray": 2}

_MODES = {"float32": 0, "int8": 1, "float16": 2}


@dataclass(frozen=True)
class NvinferConfig:
    """What ``nvinfer`` does to a frame, as its configuration file says.

    Attributes:
        scale: ``net-scale-factor``.
        offsets: Per channel.
        size: (height, width) of the network.
        colour: What the network takes: ``rgb``, ``bgr`` or ``gray``.
    """

    scale: float
    offsets: tuple[float, ...]
    size: tuple[int, int]
    colour: str

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
                colour={str(code): name for name, code in _COLOURS.items()}[properties["model-color-format"]],
            )
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            raise VitexportError(f"'{path}' is no nvinfer configuration: {error}", "Write it again.") from error

    def tensor(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return ``float32[C, H, W]`` of a frame ``uint8[H, W, C]`` (RGB, or grey) of the network's size."""
        ordered = frame[:, :, ::-1] if self.colour == "bgr" else frame
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
    """How far DeepStream is from the bundle on some images: absolute differences of scores, over the
    largest value where a regression's is above 1.

    Attributes:
        images: How many.
        same_pixels: Largest difference of a score when both start from the same resized pixels.
        own_resize: Largest difference when DeepStream resizes by itself.
        own_resize_mean: Mean over images of the largest difference per image.
        agreement: Fraction of equal decisions (the best class of an image, or each label of it) when DeepStream resizes
            by itself; None for the values of a regression.
        notes: What differs in kind.
    """

    images: int
    same_pixels: float
    own_resize: float
    own_resize_mean: float
    agreement: float | None
    notes: tuple[str, ...]


def write_deepstream(bundle: Bundle, choice: Choice, out: str | Path, *, batch: int = 8) -> Path:
    """Write ``config_infer.txt``, ``model.onnx`` and ``labels.txt``.

    Args:
        bundle: A classifier.
        choice: Which ONNX file of it.
        out: Directory.
        batch: ``batch-size`` of nvinfer.

    Returns:
        The configuration file.

    Raises:
        BundleError: The bundle is no classifier.
        ExportError: The model cannot take raw pixels.
    """
    from vitexport.host.graph.passes.deepstream import write_pixel_planes

    if bundle.model.task != "classify":
        raise BundleError(
            f"Expected a classifier, found a model of the task {bundle.model.task}.",
            "nvinfer's classifier needs classes; export with one.",
        )
    if bundle.preprocess.channels == 4:
        raise BundleError(
            "Expected a model of 3 channels (colour) or 1 (grey), found one of 4 (RGBA).",
            "nvinfer gives a network no alpha; serve the model with `vitexport triton` or `vitexport serve`.",
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_pixel_planes(choice.path, bundle.metadata, out / "model.onnx")
    labels = (label.replace(";", ",").replace("\n", " ") for label in bundle.class_names)
    # The classes of one attribute stand in one line; each label of several is an attribute of its own.
    between = ";" if bundle.metadata.scoring == "softmax" else "\n"
    write_atomic(out / "labels.txt", between.join(labels) + "\n")
    config = out / CONFIG_FILE
    write_atomic(config, _config_text(bundle, choice, batch))
    return config


def _config_text(bundle: Bundle, choice: Choice, batch: int) -> str:
    channels, (height, width) = bundle.preprocess.channels, bundle.preprocess.image_size
    mode = _MODES.get(bundle.artifact(choice.variant).precision, 0)
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-mode": mode,
        "onnx-file": "model.onnx",
        "model-engine-file": f"model.onnx_b{batch}_gpu0_{('fp32', 'int8', 'fp16')[mode]}.engine",
        "labelfile-path": "labels.txt",
        "batch-size": batch,
        "infer-dims": f"{channels};{height};{width}",
        "network-input-order": 0,
        "model-color-format": _COLOURS["gray" if channels == 1 else bundle.preprocess.channel_order],
        "net-scale-factor": "1.0",
        "offsets": ";".join(["0.0"] * channels),
        "maintain-aspect-ratio": 0,
        "scaling-filter": 1,
        **_outputs(bundle),
    }
    lines = "\n".join(f"{key}={value}" for key, value in properties.items())
    about = (
        f"{bundle.name}: {choice.variant}. The normalization is inside model.onnx, so nvinfer hands over raw pixels.",
        f"sha256 of the model it was made from: {choice.sha256}",
        *choice.notes,
    )
    head = "\n".join(f"# {line}" for line in about)
    return f"{head}\n[property]\n{lines}\n"


def _outputs(bundle: Bundle) -> dict[str, object]:
    """Return what nvinfer does with the outputs of each kind of head.

    Source: DeepStream Developer Guide, "Gst-nvinfer": a classifier keeps the best entry above the threshold of each
    output; ``network-type`` 100 leaves outputs alone, and ``output-tensor-meta`` attaches them to the frame.
    """
    from vitexport.host.graph.passes.deepstream import PROBABILITIES, VALUES, label_output

    metadata = bundle.metadata
    if metadata.scoring == "none":
        return {"network-type": 100, "output-tensor-meta": 1, "output-blob-names": VALUES}
    if metadata.scoring == "softmax":
        return {"network-type": 1, "output-blob-names": PROBABILITIES, "classifier-threshold": "0.0"}
    names = ";".join(label_output(index) for index in range(int(metadata.model.outputs[0].shape[1])))
    return {"network-type": 1, "output-blob-names": names, "classifier-threshold": str(metadata.head.threshold)}


def measure_parity(
    bundle: Bundle, choice: Choice, config: str | Path, images: Sequence[Image.Image]
) -> PreprocessParity:
    """Run the bundle's model and the DeepStream model on images and compare their probabilities.

    Args:
        bundle: The bundle the configuration was written from.
        choice: The model it was written from.
        config: The file, read back.
        images: At least one.
    """
    config = Path(config)
    nvinfer = NvinferConfig.read(config)
    same, own, agree = [], [], []
    with (
        Predictor.open(bundle.root, variant=choice.variant) as predictor,
        open_runtime(config.parent / "model.onnx") as runtime,
    ):
        (tensor,), scoring = runtime.inputs, predictor.metadata.scoring
        for image in images:
            logits = predictor.infer([predictor.prepare(image)])
            expected = score_outputs(logits, scoring)[0]
            frames = (_rgb_pixels(image, bundle.preprocess), nvinfer.stretch(_frame(image, bundle.preprocess)))
            answers = [runtime.run({tensor.name: nvinfer.tensor(frame)[None]}) for frame in frames]
            # In the order of the outputs: one of all classes, or one for each label.
            scores = [np.concatenate(list(answer.values()), axis=1)[0] for answer in answers]
            unit = max(1.0, float(np.abs(expected).max()))  # values of a regression may be of any size
            same.append(float(np.abs(scores[0] - expected).max()) / unit)
            own.append(float(np.abs(scores[1] - expected).max()) / unit)
            agree.append(predictor.metadata.head.agreement(expected[None], scores[1][None], scored=True))
    return PreprocessParity(
        len(images), max(same), max(own), float(np.mean(own)), _mean(agree), _notes(bundle.preprocess)
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _frame(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return an image as a camera gives it: uint8 ``[H, W, C]``, of its own size."""
    array = np.asarray(in_channels(standardize(image), spec.channels), dtype=np.uint8)
    return array.reshape(*array.shape[:2], spec.channels)


def _rgb_pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    array = pixels(image, spec)
    return array if spec.channel_order == "rgb" else array[:, :, ::-1]


def _notes(spec: PreprocessSpec) -> tuple[str, ...]:
    notes = [f"nvinfer resizes bilinearly without antialiasing; the model was trained with {spec.interpolation}"]
    if spec.crop:
        notes.append("nvinfer stretches the whole frame; the model was trained with a centre crop")
    return tuple(notes)
