"""The stages on single files: export, simplify, quantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitexport.api.arguments import onnx_output
from vitexport.api.progress import Progress, shown
from vitexport.errors import RecipeError
from vitexport.extras import names_missing_extras
from vitexport.files import StageResult, StepEvent, as_path
from vitexport.inputs.images import list_images
from vitexport.inputs.labels.class_names import read_class_names
from vitexport.recipe.load import validated
from vitexport.recipe.settings import (
    Attention,
    ExportSettings,
    ModelSettings,
    Precision,
    QuantizeSettings,
    SimplifySettings,
    Target,
    Task,
)
from vitexport.scoring import Scoring
from vitexport.verification.quantized import told

if TYPE_CHECKING:
    import torch

    from vitexport.inputs.preprocess import PreprocessSpec

__all__ = ["export", "quantize", "simplify"]


@names_missing_extras("Exporting a model")
def export(
    model: str | PathLike[str] | torch.nn.Module,
    out: str | PathLike[str],
    *,
    task: Task | None = None,
    features: Sequence[str] = (),
    scoring: Scoring | None = None,
    image_size: tuple[int, int] | None = None,
    batch: Literal["dynamic"] | int = "dynamic",
    input: Literal["float32", "uint8"] = "float32",  # the recipe's name for it
    opset: int = 20,
    revision: str | None = None,
    allow_pickle: bool = False,
    preprocess: PreprocessSpec | Mapping[str, Any] | object | None = None,
    class_names: Sequence[str] | str | PathLike[str] = (),
    progress: Progress = False,
) -> StageResult:
    """Export a Vision Transformer to ONNX, and compare the file with the model's own PyTorch outputs.

    Example::

        vx.export("recipes/quickstart/model", "exported.onnx")     # or a hub id: "google/vit-base-patch16-224"
        vx.export(module, "mine.onnx", preprocess=preprocess, class_names=["cat", "dog"])     # or a live module

    Args:
        model: Hub id, Hugging Face directory, ``timm:NAME``, ``timm:NAME@FILE``, ``timm:local-dir:PATH``, or a live
            module; that one is copied, not changed.
        out: The ONNX file to write; it carries preprocessing, class names and history as metadata.
        task: ``classify``, ``segment``, ``depth`` or ``features``; None takes what the checkpoint was saved for.
        features: Modules of the source library's model whose outputs become those of the graph, e.g. ``blocks.5``.
        scoring: What turns a classifier's logits into scores: ``softmax``, ``sigmoid`` (several labels at once, or a
            single one) or ``none`` (a regression); None takes what the checkpoint says.
        image_size: (height, width) in pixels; None takes the checkpoint's own.
        batch: ``dynamic`` or a fixed batch size.
        input: ``float32`` ``[N, C, H, W]`` planes, or ``uint8`` ``[N, H, W, C]`` pixels normalized inside the graph.
        opset: ONNX opset, 17 to 23.
        revision: Hub branch, tag or commit.
        allow_pickle: Accept a pickle checkpoint (still loaded with ``weights_only=True``).
        preprocess: For a live module: a PreprocessSpec, the same as a mapping, or a transformers image processor.
        class_names: File with the names by output index (``.txt``, ``.json``, ``.csv``), or the directory of the
            training images; for a live module also the names themselves.
        progress: True shows a bar; a function gets every event.

    Returns:
        The file; ``details["max_rel_difference"]`` is the largest difference from PyTorch on synthetic images.

    Raises:
        ModelSourceError: The checkpoint cannot be loaded.
        ExportError: It cannot be exported, or the file does not answer as PyTorch does.
        RecipeError: An argument does not fit.
        MissingDependencyError: torch or the checkpoint's library is not installed.
    """
    from vitexport.host.export import export_onnx
    from vitexport.host.export_check import compare_with_pytorch
    from vitexport.host.sources import load_model

    path = onnx_output(out)
    asked = {"batch": batch, "opset": opset, "image_size": image_size, "input": input}
    settings = validated(ExportSettings, asked, where="export")
    from_checkpoint = isinstance(model, str | PathLike)
    names_file: Path | None = None
    names: Sequence[str] = ()
    if isinstance(class_names, str | PathLike):
        names_file = as_path(class_names, "class names")
    else:
        names = class_names
    if from_checkpoint and (preprocess is not None or len(names)):
        raise RecipeError(
            "Expected preprocess and a sequence of class_names for a live module only, found them beside a checkpoint.",
            "Leave them out: a checkpoint brings its own; class names may come from a file.",
        )
    with shown(progress, ("load", "export", "compare")) as show:
        show(StepEvent("load", "running", model if isinstance(model, str) else type(model).__name__))
        if isinstance(model, str | PathLike):
            named: dict[str, Any] = {"source": str(model), "task": task, "scoring": scoring, "revision": revision}
            named |= {"allow_pickle": allow_pickle, "features": tuple(features), "class_names": names_file}
            loaded = load_model(validated(ModelSettings, named, where="model"), image_size=image_size)
        else:
            from vitexport.host.sources.live import wrap_module

            names = names if names_file is None else read_class_names(names_file)
            loaded = wrap_module(
                model, preprocess, names, task=task, features=features, scoring=scoring, image_size=image_size
            )
        show(StepEvent("load", "done"))
        show(StepEvent("export", "running", str(out)))
        result = export_onnx(loaded, settings, path)
        show(StepEvent("export", "done"))
        show(StepEvent("compare", "running", "with PyTorch's own outputs"))
        difference = compare_with_pytorch(loaded, result.path)
        show(StepEvent("compare", "done"))
    return replace(result, details={**result.details, "max_rel_difference": difference})


@names_missing_extras("Simplifying a model")
def simplify(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    onnxsim: bool = True,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> StageResult:
    """Simplify an exported ONNX file to the canonical ViT graph, outputs unchanged.

    Example::

        vx.simplify("vit.onnx", "vit-simplified.onnx")

    Of another tool's file, ``shapes={"input": (-1, 3, 224, 224)}`` fixes the axes that are dynamic beside the batch.

    Args:
        model: ONNX file.
        out: The ONNX file to write.
        onnxsim: Run onnxsim before the canonical passes.
        shapes: Input name to the sizes that its dynamic axes get in the written file, one per axis; -1 leaves an axis
            as it is. Needed where another axis than the first is dynamic.

    Raises:
        SimplifyError: A pass failed, or the outputs changed.
        RecipeError: A shape does not fit the model, or one is missing.
        MissingDependencyError: onnx or onnxsim is not installed.
    """
    from vitexport.host.simplify import simplify_onnx

    settings = SimplifySettings(onnxsim=onnxsim)
    return simplify_onnx(as_path(model, "an ONNX file"), settings, onnx_output(out), shapes=shapes or {})


@names_missing_extras("Quantizing a model")
def quantize(
    model: str | PathLike[str],
    images: str | PathLike[str],
    out: str | PathLike[str],
    *,
    target: Target = "ort-x86",
    precision: Precision = "int8",
    attention: Attention = "float",
    preset: Literal["default", "fast"] = "default",
    rotate: Literal["auto", "none", "16", "64"] = "auto",
    keep_float: Literal["auto", "none"] = "auto",
    exclude: Sequence[str] = (),
    max_top1_drop: float | None = None,
    min_agreement: float | None = None,
    min_sqnr_db: float | None = None,
    limit: int | None = None,
    progress: Progress = False,
) -> StageResult:
    """Quantize an exported ONNX file with calibration images.

    Example::

        vx.quantize("vit.onnx", images="calib/calibration", target="tensorrt", out="int8.onnx", preset="fast")

    Args:
        model: ONNX file that carries its preprocessing, as :func:`export` writes it.
        images: Folder of calibration images, at least 16; about 128 are good.
        out: The ONNX file to write; never the input.
        target: Runtime the Q/DQ form is made for: ``tensorrt``, ``ort-x86``, ``ort-arm64``, ``portable``.
        precision: ``int8``, ``fp8`` (E4M3), or ``fp16``, ``bf16`` for a 16-bit body only.
        attention: ``int8`` also quantizes the products of attention, in the form that TensorRT fuses; ``int8-rows``
            more accurately, in separate kernels; ``fp8`` with precision ``fp8``.
        preset: ``fast`` skips every search.
        rotate: Rotate the input of every fc2 in blocks of 16 or 64 channels; ``auto`` chooses per block.
        keep_float: ``auto`` leaves the few layers in float whose noise is large for the work they do.
        exclude: Layers that stay float: module names (``blocks.7.mlp.fc2``), groups (``7.fc2``), roles (``qkv``,
            ``proj``, ``fc1``, ``fc2``, ``attention``), or shell patterns on these (``blocks.*.attn.proj``).
        max_top1_drop: Budget in points of top-1: layers stay in float until it holds.
        min_agreement: Budget: agreement with float32, 0 to 1.
        min_sqnr_db: Budget: SQNR of the logits in dB.
        limit: Use at most so many images, spread over the folder.
        progress: True shows a bar; a function gets every event.

    Returns:
        The file; ``details["measured"]`` says how near it is to float32 on images that did not calibrate it, and
        ``details["kept_float_reasons"]`` what stayed float and why.

    Raises:
        CalibrationError: The images are too few, or show nothing.
        RecipeError: ``out`` is ``model``.
        QuantizeError: The model cannot be quantized as asked.
    """
    source, path = as_path(model, "an ONNX file"), onnx_output(out)
    if path.resolve() == source.resolve():
        raise RecipeError(f"'{out}' is also the input.", "Write to another file; the float model stays as it is.")
    from vitexport.host.quantize import quantize_onnx

    budget = {"max_top1_drop": max_top1_drop, "min_agreement": min_agreement, "min_sqnr_db": min_sqnr_db}
    settings = validated(
        QuantizeSettings,
        {
            "target": target,
            "precision": precision,
            "attention": attention,
            "preset": preset,
            "rotate": rotate,
            "keep_float": keep_float,
            "exclude": exclude,
            "budget": budget if any(value is not None for value in budget.values()) else None,
        },
        where="quantize",
    )
    with shown(progress, ("quantize",)) as show:
        result = quantize_onnx(
            source,
            list_images(as_path(images, "a folder of images"), limit=limit),
            settings,
            path,
            progress=lambda message, fraction: show(StepEvent("quantize", "running", message, fraction)),
        )
        show(StepEvent("quantize", "done", str(out)))
    return replace(result, details={**result.details, **told(result.details)})
