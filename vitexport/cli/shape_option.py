"""``--shape NAME=1x3x224x224``: sizes of dynamic axes, as trtexec writes them."""

from __future__ import annotations

import re

import click

__all__ = ["shape_option"]

_SIZES = re.compile(r"(-1|\d+)(x(-1|\d+))*")


def _shapes(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if not name or not _SIZES.fullmatch(sizes):
            raise click.BadParameter(
                f"expected NAME=SIZES such as pixel_values=1x3x224x224 (-1 leaves an axis dynamic), found '{text}'"
            )
        shapes[name] = tuple(int(size) for size in sizes.split("x"))
    return shapes


shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    metavar="NAME=NxCxHxW",
    help="Sizes of an input's dynamic axes; -1 leaves one dynamic. Repeatable.",
)
"""The option; the command gets ``shapes``: input name to sizes."""
