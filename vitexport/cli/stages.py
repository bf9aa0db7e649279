"""``vitexport export``, ``simplify`` and ``quantize``: single stages on single files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from vitexport.api import stages as api
from vitexport.cli.label_options import CLASS_NAMES
from vitexport.cli.screen import OUT, print_json
from vitexport.cli.shape_option import shape_option
from vitexport.files import StageResult
from vitexport.recipe.settings import Attention, Precision, Scoring, Target, Task

__all__ = ["export", "quantize", "simplify"]

_OUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write."
)
_NAMED = 3
"""Nodes named one by one; ``--json`` names all."""

_HEADINGS = {"kept_in_float": "kept in float"}

_ATTENTION = (
    "The products of attention: int8 in the form that TensorRT fuses, int8-rows more accurate and in separate kernels, "
    "fp8 with that precision."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")


@click.command()
@click.argument("source")
@_OUT
@click.option("--task", type=click.Choice(get_args(Task)), help="Head to export; the checkpoint's own otherwise.")
@click.option(
    "--features",
    metavar="NAME,NAME,...",
    help="Modules whose outputs the graph gives, e.g. blocks.5,blocks.11,norm; implies --task features.",
)
@click.option(
    "--scoring",
    type=click.Choice(get_args(Scoring)),
    help="What makes scores of the logits; the checkpoint says it otherwise.",
)
@click.option(
    "--image-size", type=int, nargs=2, metavar="H W", help="Resolution in pixels; the checkpoint's otherwise."
)
@click.option("--batch", default="dynamic", metavar="dynamic|N", help="Batch axis.")
@click.option(
    "--input", "input_form", type=click.Choice(["float32", "uint8"]), default="float32", help="Form of input."
)
@click.option("--opset", type=click.IntRange(17, 23), default=20, help="ONNX opset.")
@CLASS_NAMES
@click.option("--revision", help="Hub branch, tag or commit.")
@click.option("--allow-pickle", is_flag=True, help="Accept a pickle checkpoint (loaded with weights_only).")
@_JSON
def export(
    source: str,
    output: Path,
    task: Any,
    features: str | None,
    scoring: Any,
    image_size: tuple[int, int] | None,
    batch: str,
    input_form: Any,
    opset: int,
    class_names: Path | None,
    revision: str | None,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Export a hub id, Hugging Face directory, timm:NAME or timm:local-dir:PATH to ONNX.

    Example: vitexport export google/vit-base-patch16-224 -o vit.onnx
    """
    if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
        raise click.BadParameter(f"expected 'dynamic' or a positive number, found '{batch}'", param_hint="--batch")
    result = api.export(
        source,
        output,
        task=task,
        features=() if features is None else tuple(name.strip() for name in features.split(",")),
        scoring=scoring,
        image_size=image_size,
        batch="dynamic" if batch == "dynamic" else int(batch),
        input=input_form,
        opset=opset,
        class_names=class_names or (),
        revision=revision,
        allow_pickle=allow_pickle,
    )
    _show(result, as_json)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@_OUT
@click.option("--onnxsim/--no-onnxsim", default=True, help="Run onnxsim before the canonical ViT passes.")
@shape_option
@_JSON
def simplify(model: Path, output: Path, onnxsim: bool, shapes: Mapping[str, tuple[int, ...]], as_json: bool) -> None:
    """Simplify an exported ONNX file to the canonical ViT graph, outputs unchanged.

    Example: vitexport simplify vit.onnx -o vit-simplified.onnx
    """
    _show(api.simplify(model, output, onnxsim=onnxsim, shapes=shapes), as_json)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Calibration images, at least 16.")
@click.option("--limit", type=click.IntRange(1), help="Use only so many of them.")
@_OUT
@click.option("--target", type=click.Choice(get_args(Target)), default="ort-x86", help="Runtime.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="int8", help="Precision.")
@click.option("--attention", type=click.Choice(get_args(Attention)), default="float", help=_ATTENTION)
@click.option("--preset", type=click.Choice(["default", "fast"]), default="default", help="Search effort.")
@click.option(
    "--rotate",
    type=click.Choice(["auto", "none", "16", "64"]),
    default="auto",
    help="Rotate fc2's input in blocks of so many channels; auto chooses per block.",
)
@click.option(
    "--keep-float",
    type=click.Choice(["auto", "none"]),
    default="auto",
    help="auto leaves the few layers in float whose noise is large for their work.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="NAME",
    help="Leave in float: a module (blocks.7.mlp.fc2), a group (7.fc2), a pattern (*.fc2) or a role (fc2). Repeatable.",
)
@click.option("--max-top1-drop", type=float, help="Budget: points of top-1 that may be lost.")
@click.option("--min-agreement", type=float, help="Budget: agreement with float32, 0 to 1.")
@click.option("--min-sqnr-db", type=float, help="Budget: logit SQNR in dB.")
@_JSON
def quantize(model: Path, images: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Quantize an exported ONNX file with calibration images.

    Example: vitexport quantize vit.onnx --images calib/ --target tensorrt -o vit-int8.onnx
    """
    _show(api.quantize(model, images, output, **options), as_json)


def _show(result: StageResult, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    OUT.print(
        f"wrote {result.path} ({result.bytes / 1e6:.2f} MB, {result.precision})",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    facts = _float32_nodes(result.details.get("kept_float32", {}))
    facts |= {key: value for key, value in result.details.items() if isinstance(value, int | float | str)}
    facts.pop("not_measured", None)  # part of the sentence under `measured`
    for key, value in facts.items():
        OUT.print(f"  {_HEADINGS.get(key, key)}: {value}", soft_wrap=True, markup=False, highlight=False)


def _float32_nodes(reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return the first few nodes that a 16-bit body left in float32, each with its reason; empty without any."""
    named = [f"{node} ({reason})" for node, reason in list(reasons.items())[:_NAMED]]
    more = [f"{len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return {"kept_float32": "; ".join([*named, *more])} if reasons else {}
