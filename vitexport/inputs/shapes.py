"""Sizes for the dynamic axes of a model's inputs: as a person gives them, and what may be fed then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vitexport.errors import RecipeError
from vitexport.tensors import TensorSpec

__all__ = ["DYNAMIC", "Shapes", "feed_shape", "with_shapes"]

Shapes = Mapping[str, Sequence[int]]
"""Input name to one size per axis; :data:`DYNAMIC` leaves an axis as the model declares it."""

DYNAMIC = -1


def with_shapes(specs: Iterable[TensorSpec], shapes: Shapes) -> tuple[TensorSpec, ...]:
    """Return inputs with sizes in the place of dynamic axes.

    Args:
        specs: The inputs as the model declares them.
        shapes: Sizes for some of them, by name.

    Raises:
        RecipeError: There is no such input, it has another number of axes, or another size on a fixed axis.
    """
    found = {spec.name: spec for spec in specs}
    for name, sizes in shapes.items():
        if name not in found:
            raise RecipeError(
                f"Expected a shape for one of the inputs {', '.join(found)}, found one for '{name}'.",
                "`vitexport inspect MODEL` lists the inputs.",
            )
        spec = found[name]
        fits = len(sizes) == len(spec.shape) and all(
            size == DYNAMIC or (size > 0 and (isinstance(axis, str) or axis == size))
            for size, axis in zip(sizes, spec.shape, strict=True)
        )
        if not fits:
            raise RecipeError(
                f"Expected a shape that fits {spec.describe()}, found {'x'.join(map(str, sizes))}.",
                "Give every axis a size above zero, a fixed one its own, or -1 to leave it as it is.",
            )
        axes = tuple(axis if size == DYNAMIC else size for size, axis in zip(sizes, spec.shape, strict=True))
        found[name] = replace(spec, shape=axes)
    return tuple(found.values())


def feed_shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Return the shape of something to feed to an input: ``batch`` rows where the first axis is dynamic.

    Raises:
        RecipeError: Another axis is dynamic as well. What the model accepts there is not written in the file.
    """
    unknown = [str(axis) for axis in spec.shape[1:] if isinstance(axis, str)]
    if unknown:
        sizes = "x".join(str(size) for size in _example(spec))
        raise RecipeError(
            f"Expected an input whose first axis alone is dynamic, found {spec.describe()}.",
            f"Say which size the model takes, such as --shape {spec.name}={sizes} (-1 leaves an axis dynamic).",
        )
    return tuple(axis if isinstance(axis, int) else batch for axis in spec.shape)


def _example(spec: TensorSpec) -> list[int]:
    """Return sizes as a person would write them: those of the file, and those of a usual image for the others."""
    usual: tuple[int, ...] = (DYNAMIC, 224, 224, 3) if spec.dtype == "uint8" else (DYNAMIC, 3, 224, 224)
    if len(spec.shape) != len(usual):
        usual = (DYNAMIC,) * min(1, len(spec.shape)) + (224,) * (len(spec.shape) - 1)
    return [axis if isinstance(axis, int) else size for axis, size in zip(spec.shape, usual, strict=True)]
