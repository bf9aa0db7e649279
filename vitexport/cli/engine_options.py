"""Options that ``build-engine`` and ``trtexec`` share, and the settings they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from vitexport.errors import RecipeError

__all__ = ["engine_options", "given_settings", "parse_shapes"]

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--product", type=click.Choice(["tensorrt", "tensorrt-rtx"]), help="Default: tensorrt."),
    click.option("--device", metavar="NAME", help="Device profile, e.g. orin-nano; the GPU of this machine otherwise."),
    click.option(
        "--batch", metavar="1,8,32", help="Batch sizes, one optimisation profile each; 'MIN:OPT:MAX' for a range."
    ),
    click.option("--shape", "shapes", multiple=True, metavar="NAME=MIN:OPT:MAX", help="Range of a dynamic input."),
    click.option("--workspace-mib", type=click.IntRange(1), help="Scratch memory; the device profile's otherwise."),
    click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fast, 5 makes the engine fast."),
    click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), help="File of kernel timings."),
    click.option("--tf32", is_flag=True, help="Let float32 GEMMs round their inputs to TF32."),
    click.option("--version-compatible", is_flag=True, help="Run on later TensorRT releases too."),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
        help="Run on other GPUs too.",
    ),
    click.option("--strip-weights", is_flag=True, help="Leave the weights out; `vitexport refit` puts them in."),
    click.option("--refit", is_flag=True, help="Allow the weights to be replaced later."),
    click.option("--weight-streaming", is_flag=True, help="Keep weights in host memory."),
    click.option(
        "--compute-capability", "compute_capabilities", multiple=True, metavar="8.6", help="Target of TensorRT-RTX."
    ),
    click.option(
        "--variant",
        metavar="NAME",
        help="Model of a bundle; else the last ONNX file its checks accept.",
    ),
)


def engine_options(function: Function) -> Function:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def given_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given; the others are the recipe's, or the defaults.

    Raises:
        RecipeError: A shape is not of its form.
    """
    found = {key: value for key, value in options.items() if key != "shapes" and value not in (None, False, ())}
    shapes = parse_shapes(options["shapes"])
    return {**found, "shapes": shapes} if shapes else found


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Read ``NAME=MIN:OPT:MAX`` options: input name -> its three shapes.

    Raises:
        RecipeError: One is not of that form.
    """
    return dict(_shape(text) for text in texts)


def _shape(text: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    name, equals, ranges = text.partition("=")
    parts = [part.split("x") for part in ranges.split(":")]
    if not equals or len(parts) != 3 or not all(size.isdigit() for part in parts for size in part):
        raise RecipeError(
            f"Expected a shape as NAME=MIN:OPT:MAX, found '{text}'.",
            "Write sizes with x, e.g. pixel_values=1x3x224x224:8x3x224x224:8x3x384x384.",
        )
    return name, tuple(tuple(int(size) for size in part) for part in parts)
