"""Mixed precision under a budget: which groups of layers to leave in float, by their noise for their work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.quantize.planning.quality import Judge, Quality
from vitexport.recipe.settings import Budget

__all__ = ["MixedReport", "search_mixed"]

Build = Callable[[Collection[str]], ir.Model]


@dataclass(frozen=True)
class MixedReport:
    """What a mixed-precision search did.

    Attributes:
        kept_float: Groups left in float besides those that stay float anyway, in the order they were demoted.
        cost_db: SQNR of the model with only that group quantized, by group, worst for its work first.
        before: Quality with everything else quantized.
        after: Quality of the result, on the same images.
        reasons: Why each group was demoted.
    """

    kept_float: tuple[str, ...]
    cost_db: Mapping[str, float]
    before: Quality
    after: Quality
    reasons: Mapping[str, str] = field(default_factory=dict)


def search_mixed(
    build: Build,
    kept: Sequence[str],
    rank: Callable[[], Mapping[str, tuple[float, float]]],
    judge: Judge,
    budget: Budget,
) -> MixedReport:
    """Demote groups to float until the budget holds.

    Args:
        build: Builds the final graph (Q/DQ, body and all) that keeps the given groups in float.
        kept: Groups that stay float anyway.
        rank: Returns what each other group adds to the output's noise alone, over the signal, and its fraction of the
            work.
        judge: Measures final graphs.
        budget: What must hold.

    Raises:
        QuantizeError: The budget does not hold even with every group in float, or asks for the agreement of a model
            that does not classify.
    """
    if not judge.classifies and (budget.min_agreement is not None or budget.max_top1_drop is not None):
        raise QuantizeError(
            "Expected a model that classifies for a budget of agreement or top-1, found one whose output is features.",
            "Give `--min-sqnr-db` instead.",
        )
    before = judge.measure(build(kept))
    if before.meets(budget):
        return MixedReport((), {}, before, before)
    found = rank()
    ranking = sorted(found, key=lambda group: -found[group][0] / max(found[group][1], 1e-9))
    cost = {group: -10 * float(np.log10(max(found[group][0], 1e-30))) for group in ranking}
    demoted: list[str] = []
    after, left = before, ranking
    while left and not after.meets(budget):
        count = 1 if demoted else _predicted(before, budget, [found[group][0] for group in left])
        demoted, left = [*demoted, *left[:count]], left[count:]
        after = judge.measure(build([*kept, *demoted]))
    if not after.meets(budget):
        raise QuantizeError(
            f"Expected the budget {budget.model_dump(exclude_none=True)} to be reachable, found {after} with every "
            "layer in float.",
            "Loosen the budget, or use more calibration images.",
        )
    reasons = {group: f"quantized alone it leaves {cost[group]:.1f} dB" for group in demoted}
    return MixedReport(tuple(demoted), cost, before, after, reasons)


def _predicted(before: Quality, budget: Budget, ranked: Sequence[float]) -> int:
    """Return how many of the worst groups must go for the SQNR asked, if noise adds up; 1 when SQNR is not limited."""
    if budget.min_sqnr_db is None:
        return 1
    total = sum(ranked)
    allowed = total * 10 ** ((before.sqnr_db - budget.min_sqnr_db) / 10)
    left = np.maximum(total - np.cumsum(ranked), 0)
    enough = np.flatnonzero(left <= allowed)
    # One fewer than predicted: the joint check then adds single groups, so none goes without need.
    return max(1, int(enough[0]) if enough.size else 1)
