"""The files that the inference benchmarks measure, made once per model and kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suites.model_rows import build, row_named, source_of

__all__ = ["CALIBRATION", "prepare", "prepare_float"]

CALIBRATION = 64


def prepare(source: str, folder: Path, images: Path, *, shallow: bool = False) -> None:
    """Write every candidate's file of one model into ``folder``; arguments as for :func:`prepare_float`."""
    import torch

    from vitexport.host.quantize import quantize_onnx
    from vitexport.inputs.images import list_images
    from vitexport.recipe.settings import QuantizeSettings

    prepare_float(source, folder, images, shallow=shallow)
    last = folder / "onnxruntime-dynamic.onnx"
    if last.is_file():
        return
    _plain(_load(folder).module, torch.from_numpy(np.load(folder / "calib.npy")[:2]), folder)
    # The searches for accuracy change no kernel, and random weights have no accuracy.
    random = json.loads((folder / "done.json").read_text())["random"]
    settings = QuantizeSettings(target="ort-x86", preset="fast" if random else "default")
    calibration = list_images(images / "calib", limit=CALIBRATION)
    quantize_onnx(folder / "ours.onnx", calibration, settings, folder / "ours-int8.onnx")
    _onnxruntime_int8(folder)


def prepare_float(source: str, folder: Path, images: Path, *, shallow: bool = False) -> None:
    """Write a model's images, its source and our float32 graph into ``folder``.

    Args:
        source: Model source, or the name of a row of :mod:`benchmarks.suites.model_rows` that is built with every
            parameter perturbed.
        folder: Where files go; what is there is kept.
        images: Folder with ``calib`` and ``dev`` images.
        shallow: Two narrow blocks in place of a row's full size.
    """
    import torch

    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.inputs.images import list_images, load_image
    from vitexport.inputs.preprocess import preprocess
    from vitexport.recipe.settings import ExportSettings, SimplifySettings

    if (folder / "done.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    is_row = not source.startswith("timm:") and not Path(source).is_dir()
    if is_row:
        build(row_named(source), folder / "checkpoint", shallow=shallow)
    checkpoint = source_of(row_named(source), folder / "checkpoint") if is_row else source
    (folder / "source.txt").write_text(checkpoint, encoding="utf-8")
    loaded = _load(folder)
    for name in ("calib", "dev"):
        paths = list_images(images / name, limit=CALIBRATION)
        np.save(
            folder / f"{name}.npy",
            np.stack([preprocess(load_image(path), loaded.metadata.preprocess) for path in paths]),
        )
    flops = _flops(loaded.module, torch.from_numpy(np.load(folder / "calib.npy")[:2])) // 2
    export_onnx(loaded, ExportSettings(), folder / "exported.onnx")
    simplify_onnx(folder / "exported.onnx", SimplifySettings(), folder / "ours.onnx")
    (folder / "exported.onnx").unlink()
    (folder / "done.json").write_text(json.dumps({"flops": flops, "random": is_row}))


def _load(folder: Path) -> Any:
    from vitexport.host.sources import load_model
    from vitexport.recipe.settings import ModelSettings

    return load_model(ModelSettings(source=(folder / "source.txt").read_text(encoding="utf-8")))


def _flops(module: Any, images: Any) -> int:
    """Count floating-point operations of the products and convolutions, two per multiply-accumulate."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(images)
    return int(counter.get_total_flops())


def _plain(module: Any, example: Any, folder: Path) -> None:
    """What a user writes without this package: torch.onnx.export with a dynamic batch, then onnxsim."""
    import onnx
    import onnxsim
    import torch

    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        module, (example,), dynamo=True, opset_version=20, dynamic_shapes=dynamic, verbose=False
    )
    program.save(folder / "exported.onnx")
    model, _ = onnxsim.simplify(str(folder / "exported.onnx"))
    onnx.save(model, folder / "plain.onnx")
    (folder / "exported.onnx").unlink()


def _onnxruntime_int8(folder: Path) -> None:
    """ONNX Runtime's own quantizer: static, per-channel, MatMul/Gemm/Conv, MinMax; and dynamic."""
    import onnxruntime as ort
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
        shape_inference,
    )

    images = np.load(folder / "calib.npy")
    prepared = folder / "prepared.onnx"
    shape_inference.quant_pre_process(str(folder / "plain.onnx"), str(prepared), skip_symbolic_shape=True)
    name = ort.InferenceSession(str(prepared), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Any] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._left, None)
            return None if image is None else {name: image[None]}

    for label, activation in (("s8s8", QuantType.QInt8), ("u8s8", QuantType.QUInt8)):
        quantize_static(
            str(prepared),
            str(folder / f"onnxruntime-{label}.onnx"),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": label == "s8s8"},
        )
    quantize_dynamic(str(prepared), str(folder / "onnxruntime-dynamic.onnx"), weight_type=QuantType.QInt8)
    prepared.unlink()
