"""Mixed precision under a budget: which groups of layers to leave in float, found by measuring each alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.errors import QuantizeError
from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, evenly_spread, run_images
from vitexport.recipe.settings import Budget

__all__ = ["MixedReport", "Quality", "search_mixed"]

_RANKING_IMAGES = 8
_CHECK_IMAGES = 64

Build = Callable[[Collection[str]], ir.Model]


@dataclass(frozen=True)
class Quality:
    """How near a quantized model's first output is to float32's.

    Attributes:
        sqnr_db: Signal-to-quantization-noise ratio over all images, in dB.
        agreement: Fraction of images with the same largest element, 0 to 1.
    """

    sqnr_db: float
    agreement: float

    def meets(self, budget: Budget) -> bool:
        """Return whether a budget holds; without labels a top-1 drop is bounded by disagreement."""
        return (
            (budget.min_sqnr_db is None or self.sqnr_db >= budget.min_sqnr_db)
            and (budget.min_agreement is None or self.agreement >= budget.min_agreement)
            and (budget.max_top1_drop is None or (1 - self.agreement) * 100 <= budget.max_top1_drop)
        )


@dataclass(frozen=True)
class MixedReport:
    """What a mixed-precision search did.

    Attributes:
        kept_float: Groups left in float, in the order they were demoted.
        cost_db: SQNR of the model with only that group quantized, by group, worst first.
        before: Quality with everything quantized.
        after: Quality of the result, on the same images.
        images: How many calibration images judged both.
        reasons: Why each group was demoted.
    """

    kept_float: tuple[str, ...]
    cost_db: Mapping[str, float]
    before: Quality
    after: Quality
    images: int
    reasons: Mapping[str, str] = field(default_factory=dict)


def search_mixed(
    model: ir.Model, build: Build, groups: Sequence[str], feeds: ImageFeeds, budget: Budget
) -> MixedReport:
    """Demote groups to float until the budget holds.

    Every group is first quantized alone on a few images; the noise it makes in the logits ranks it. Noise of
    independent layers adds up, so the ranking predicts how many groups must go; the joint model is then measured and
    further groups go one at a time.

    Args:
        model: The transformed float graph.
        build: Builds the quantized model that keeps the given groups in float.
        groups: All groups, e.g. ``3.fc1`` and ``3.attention``.
        feeds: Calibration images; verification images must not choose what they will judge.
        budget: What must hold.

    Raises:
        QuantizeError: The budget does not hold even with every group in float.
    """
    many = evenly_spread(feeds.count, _CHECK_IMAGES)
    positions = evenly_spread(len(many), _RANKING_IMAGES)
    few = [many[position] for position in positions]
    reference = _logits(model, feeds, many)
    before = _quality(reference, _logits(build(()), feeds, many))
    if before.meets(budget):
        return MixedReport((), {}, before, before, len(many))
    signal = float(np.square(reference[positions]).sum())
    noise = {}
    for group in groups:
        others = [other for other in groups if other != group]
        alone = _logits(build(others), feeds, few)
        noise[group] = float(np.square(alone - reference[positions]).sum())
    ranking = sorted(noise, key=lambda group: -noise[group])
    cost = {group: 10 * float(np.log10(signal / max(noise[group], 1e-30))) for group in ranking}
    kept: list[str] = []
    reasons: dict[str, str] = {}
    after = before
    left = list(ranking)
    while left and not after.meets(budget):
        count = 1 if kept else _predicted(before, budget, [noise[group] for group in left], sum(noise.values()))
        for group in left[:count]:
            if group in kept:
                continue
            reasons[group] = f"quantized alone it leaves {cost[group]:.1f} dB"
            kept.append(group)
            partner = group.replace(".fc2", ".fc1")
            if partner != group and partner in left and partner not in kept:
                reasons[partner] = f"fc1 is only quantized together with fc2 ({group})"
                kept.append(partner)
        left = [group for group in left if group not in kept]
        after = _quality(reference, _logits(build(kept), feeds, many))
    if not after.meets(budget):
        raise QuantizeError(
            f"Expected the budget {budget.model_dump(exclude_none=True)} to be reachable, found {after} with every "
            "layer in float.",
            "Loosen the budget, or use more calibration images.",
        )
    return MixedReport(tuple(kept), cost, before, after, len(many), reasons)


def _predicted(before: Quality, budget: Budget, ranked: Sequence[float], total: float) -> int:
    """Return how many of the worst groups must go for the SQNR asked, if noise adds up; 1 when SQNR is not limited."""
    if budget.min_sqnr_db is None:
        return 1
    allowed = total * 10 ** ((before.sqnr_db - budget.min_sqnr_db) / 10)
    left = np.maximum(total - np.cumsum(ranked), 0)
    enough = np.flatnonzero(left <= allowed)
    # One fewer than predicted: the joint check then adds single groups, so none goes without need.
    return max(1, int(enough[0]) if enough.size else 1)


def _logits(model: ir.Model, feeds: ImageFeeds, indices: Sequence[int]) -> NDArray[np.float64]:
    name = str(model.graph.outputs[0].name)
    with open_exposed(model, ()) as runtime:
        rows = [outputs[name].astype(np.float64).reshape(-1) for outputs in run_images(runtime, feeds, indices)]
    return np.stack(rows)


def _quality(reference: NDArray[np.float64], logits: NDArray[np.float64]) -> Quality:
    noise = float(np.square(logits - reference).sum())
    sqnr = 10 * float(np.log10(float(np.square(reference).sum()) / max(noise, 1e-30)))
    return Quality(sqnr, float((reference.argmax(axis=1) == logits.argmax(axis=1)).mean()))
