"""What quantized layers and attentions add to the noise at a model's output, and the work that they do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.plan import TensorPlan

__all__ = ["GroupNoise", "multiply_accumulates"]

_CLIPPED = 4.0
"""Factor over the rounding error on calibration images at which a tensor counts as clipped by others."""


@dataclass(frozen=True)
class GroupNoise:
    """Noise at the model's output on some images.

    Attributes:
        signal: Energy of the float output, summed over the images.
        total: Energy that all layers together add.
        of: Energy that one group adds alone, by group.
        rounding: How many times the relative squared rounding error of calibration each image has, by tensor.
    """

    signal: float
    total: float
    of: Mapping[str, float]
    rounding: Mapping[str, tuple[float, ...]]

    @property
    def clipped(self) -> dict[str, float]:
        """The tensors whose range does not hold what these images show, and how many times the rounding error.

        One image that reaches far out is usual (DeiT-Tiny: 10 times, and no harm done); half of them are not.
        """
        times = {name: float(np.median(found)) for name, found in self.rounding.items()}
        return {name: found for name, found in times.items() if found > _CLIPPED}

    def sqnr_db(self, group: str) -> float:
        """Return the SQNR of a model in which only that group is quantized, in dB."""
        return 10 * math.log10(max(self.signal, 1e-30) / max(self.of[group], 1e-30))

    def joined(self, more: GroupNoise) -> GroupNoise:
        """Return the noise on these and more images; a group that those did not measure keeps its part of it all."""
        total = self.total + more.total
        of = {
            group: found + more.of[group] if group in more.of else found * total / max(self.total, 1e-30)
            for group, found in self.of.items()
        }
        names = self.rounding.keys() & more.rounding.keys()
        rounding = {name: (*self.rounding[name], *more.rounding[name]) for name in sorted(names)}
        return GroupNoise(self.signal + more.signal, total, of, rounding)


def multiply_accumulates(
    plans: Sequence[TensorPlan], images: int, attention: Sequence[AttentionPlan] = ()
) -> dict[str, float]:
    """Return each group's multiply-accumulates as a fraction of those of all quantizable layers.

    Args:
        plans: Of all layers.
        images: How many images the plans' statistics come from.
        attention: Attentions to return too; they are no part of the whole.
    """
    work: dict[str, float] = {}
    for plan in plans:
        for layer in plan.layers:
            done = plan.statistics.rows / images * math.prod(layer.shape)
            work[layer.group] = work.get(layer.group, 0.0) + done
    total = sum(work.values())
    return {group: done / total for group, done in [*work.items(), *((one.group, one.work) for one in attention)]}
