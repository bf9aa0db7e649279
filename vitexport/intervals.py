"""How sure a figure of so many images is: 95 % intervals, and how many images would tell it from a limit."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Z95", "correlation", "images_to_decide", "paired_difference", "proportion"]

Z95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

_NEARLY_ONE = 1 - 1e-15
"""The largest correlation whose ``atanh`` is taken."""

_MOST_IMAGES = 10_000_000
"""Where the search for a deciding number of images ends: nobody has more labelled images."""


def proportion(fraction: float, count: int) -> tuple[float, float]:
    """Return the score interval of a fraction of ``count`` independent trials.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z2 = Z95**2 / count
    centre = (fraction + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(fraction * (1 - fraction) / count + z2 / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(lost: float, gained: float, count: float) -> tuple[float, float]:
    """Return the score interval of ``(lost - gained) / count`` for two models judged on the same images.

    It is the set of differences that a score test does not reject, and right where no image is judged differently:
    then it is ``z^2 / (n + z^2)`` to both sides of 0, and not 0 to 0.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), 891-908.

    Args:
        lost: Images that only the first model gets right.
        gained: Images that only the second one does.
        count: All images.
    """
    difference = (lost - gained) / count

    def statistic(assumed: float) -> float:
        return _tango(lost, gained, count, assumed)

    low = -1.0 if difference <= -1 else _crossing(statistic, -1.0, difference, Z95)
    high = 1.0 if difference >= 1 else _crossing(statistic, difference, 1.0, -Z95)
    return low, high


def _tango(lost: float, gained: float, count: float, assumed: float) -> float:
    """Return the score statistic of an assumed difference: falling, and 0 at the observed one."""
    first = 2 * count
    second = -lost - gained + (2 * count - lost + gained) * assumed
    third = -gained * assumed * (1 - assumed)
    only_second = (math.sqrt(max(second**2 - 4 * first * third, 0.0)) - second) / (2 * first)
    variance = count * (2 * only_second + assumed * (1 - assumed))
    above = lost - gained - count * assumed
    if variance <= 0:
        return math.copysign(math.inf, above) if above else 0.0
    return above / math.sqrt(variance)


def _crossing(statistic: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Return where a falling function crosses a level, by bisection to 1e-9."""
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > level else (low, middle)
    return (low + high) / 2


def correlation(value: float, count: float) -> tuple[float, float]:
    """Return the interval of a Pearson correlation over ``count`` pairs; -1 to 1 for fewer than four.

    Source: Fisher, "On the 'probable error' of a coefficient of correlation deduced from a small sample", Metron 1
    (1921): ``atanh(r)`` is nearly normal with the variance ``1 / (n - 3)``.
    """
    if count <= 3:
        return -1.0, 1.0
    centre, half = math.atanh(min(max(value, -_NEARLY_ONE), _NEARLY_ONE)), Z95 / math.sqrt(count - 3)
    return math.tanh(centre - half), math.tanh(centre + half)


def images_to_decide(interval: Callable[[float], tuple[float, float]], limit: float, count: int) -> int | None:
    """Return how many images like these would leave a limit outside of the interval.

    Args:
        interval: Interval of the same figure on so many times as many images.
        limit: What is asked for.
        count: Images so far.

    Returns:
        The number, to two digits, or those so far where they decide; None where the figure is at the limit, so that
        no number does.
    """

    def decides(times: float) -> bool:
        low, high = interval(times)
        return not low <= limit <= high

    if decides(1.0):
        return count
    enough = 2.0
    while not decides(enough):
        enough *= 2
        if enough * count > _MOST_IMAGES:
            return None
    few = enough / 2
    while (enough - few) * count > max(0.005 * enough * count, 0.5):
        middle = (few + enough) / 2
        few, enough = (few, middle) if decides(middle) else (middle, enough)
    images = math.ceil(enough * count)
    step = int(10 ** max(len(str(images)) - 2, 0))
    return -(-images // step) * step
