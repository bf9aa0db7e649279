"""Whether labels are numbered as a model numbers its classes: judged by the model's own answers.

Three questions, each with a test that small samples cannot fool:

- Are the answers explained better by other numbers? An exchange of classes is learned on one half of the images and
  counted on the other, and the reverse, so that it gets no credit for what it was fitted to. The images that only it,
  or only the labels as they are, explain are held against each other by the sign test, as in McNemar's exact test
  (1947).
- Are the answers better than chance? Chance is the agreement expected from the frequencies of labels and answers alone
  (Cohen 1960), tested by the binomial tail.
- Are they good enough to say that the labels fit? Cohen's kappa above 0.2, more than "slight" (Landis and Koch 1977): a
  few classes whose number happens to be right are better than chance too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SLIGHT", "SURE", "Chance", "Exchange", "chance_of", "find_exchange", "shift_of"]

SURE = 1e-3
"""Probability below which chance is ruled out."""

SLIGHT = 0.2
"""Kappa up to which agreement is slight (Landis and Koch 1977)."""

_MOSTLY = 0.9
"""Fraction of what an exchange explains that a shift by one must explain to be the simpler name for it."""

Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Chance:
    """Agreement of labels and answers against chance.

    Attributes:
        accuracy: Fraction of equal ones.
        expected: The fraction that their frequencies alone give (Cohen 1960).
        p_value: Probability of at least so many equal ones by chance.
    """

    accuracy: float
    expected: float
    p_value: float

    @property
    def kappa(self) -> float:
        """Agreement beyond chance: 0 is chance, 1 is perfect."""
        return (self.accuracy - self.expected) / (1 - self.expected) if self.expected < 1 else 0.0


@dataclass(frozen=True)
class Exchange:
    """Other numbers that explain the answers better than the labels do.

    Attributes:
        classes: Label to the class that is answered for it, where that is another.
        explained: Fraction of images it explains.
        pairs: Label, class and how many images of that label get that answer; the most frequent first.
    """

    classes: Mapping[int, int]
    explained: float
    pairs: tuple[tuple[int, int, int], ...]


def chance_of(truth: Classes, chosen: Classes, classes: int) -> Chance:
    """Hold the answers ``[N]`` of a model against labels ``[N]``.

    Args:
        truth: Labels, 0 to ``classes - 1``.
        chosen: Answers.
        classes: How many classes there are. Images of a single one have no frequencies to learn from: chance is then
            one in so many.
    """
    n = len(truth)
    right = int((truth == chosen).sum())
    labels, answers = (np.bincount(values, minlength=classes) / n for values in (truth, chosen))
    expected = float(labels @ answers) if (labels > 0).sum() > 1 else 1 / classes
    return Chance(right / n, expected, _binomial_tail(n, right, expected))


def find_exchange(truth: Classes, chosen: Classes) -> Exchange | None:
    """Find an exchange of classes that explains the answers better than the labels as they are; None without one."""
    half = _alternate(truth)
    explained = np.zeros(len(truth), dtype=np.bool_)
    for learn in (half, ~half):
        mapping = _assign(truth[learn], chosen[learn])
        explained[~learn] = [
            mapping.get(int(t), int(t)) == c for t, c in zip(truth[~learn], chosen[~learn], strict=True)
        ]
    if not _surely_better(explained, truth == chosen):
        return None
    mapping = _assign(truth, chosen)
    counts = Counter(zip(truth.tolist(), chosen.tolist(), strict=True))
    moved = {label: other for label, other in mapping.items() if label != other and counts[label, other] > 1}
    pairs = sorted(((t, c, counts[t, c]) for t, c in moved.items()), key=lambda pair: (-pair[2], pair))
    return Exchange(moved, float(explained.mean()), tuple(pairs))


def shift_of(truth: Classes, chosen: Classes, exchange: Exchange | None) -> tuple[int, float] | None:
    """Return how far every label is from its answer, if by one, and the fraction of images that explains; else None.

    Args:
        truth: Labels.
        chosen: Answers.
        exchange: What else was found; a shift is told instead where it explains nearly as much.
    """
    explained = {shift: chosen == truth + shift for shift in (-1, 1)}
    best = max(explained, key=lambda shift: int(explained[shift].sum()))
    fraction = float(explained[best].mean())
    if not _surely_better(explained[best], truth == chosen):
        return None
    return None if exchange is not None and fraction < _MOSTLY * exchange.explained else (best, fraction)


def _alternate(truth: Classes) -> NDArray[np.bool_]:
    """Return every other image of each label."""
    seen: Counter[int] = Counter()
    half = np.zeros(len(truth), dtype=np.bool_)
    for row, label in enumerate(truth.tolist()):
        half[row] = seen[label] % 2 == 0
        seen[label] += 1
    return half


def _assign(truth: Classes, chosen: Classes) -> dict[int, int]:
    """Give each label a class of its own, the most frequent pairs first; of equally frequent ones its own number."""
    counts = Counter(zip(truth.tolist(), chosen.tolist(), strict=True))
    found: dict[int, int] = {}
    taken: set[int] = set()
    for (label, answer), _ in sorted(
        counts.items(), key=lambda entry: (-entry[1], entry[0][0] != entry[0][1], entry[0])
    ):
        if label not in found and answer not in taken:
            found[label] = answer
            taken.add(answer)
    return found


def _surely_better(mine: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether ``mine`` is right on more images than ``other``, beyond chance (one-sided sign test)."""
    gained, lost = int((mine & ~other).sum()), int((~mine & other).sum())
    return _binomial_tail(gained + lost, gained, 0.5) < SURE


def _binomial_tail(n: int, k: int, p: float) -> float:
    """Return the probability of at least ``k`` successes in ``n`` trials of probability ``p``."""
    if k <= 0 or p >= 1:
        return 1.0
    if p <= 0:
        return 0.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))
