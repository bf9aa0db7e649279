"""Scale and range of a tensor are judged on images that they were not made from."""

from __future__ import annotations

import numpy as np

from vitexport.host.quantize.calibration.statistics import StatisticsConfig, TensorStatistics
from vitexport.host.quantize.calibration.streaming import StreamingStatistics
from vitexport.host.quantize.numerics.qparams import symmetric_qparams
from vitexport.host.quantize.planning.search import RATIOS, STRENGTHS, Consumer, InputPlan, search_absorbed

CHANNELS = 16


def statistics(reach: list[float]) -> TensorStatistics:
    """Return those of one image for each number, which is how far its first channel reaches in one row."""
    rng = np.random.default_rng(5)
    stream = StreamingStatistics("x", images=len(reach), config=StatisticsConfig(histogram=False))
    for furthest in reach:
        image = rng.uniform(-1, 1, (1, 40, CHANNELS)).astype(np.float32)
        image[0, 7, 0] = furthest
        stream.update(image)
    return stream.result()


def chosen(stats: TensorStatistics) -> InputPlan:
    weight = np.random.default_rng(6).normal(size=(CHANNELS, 24)).astype(np.float32)
    return search_absorbed(
        stats.minimum,
        stats.maximum,
        stats.folds(class_token=False),
        [Consumer(weight, np.ones(24, dtype=np.float32))],
        lambda amax: symmetric_qparams(amax, "int8"),
        strengths=STRENGTHS["value"],
        ratios=RATIOS["value"],
    )


def test_a_tensor_that_other_images_carry_further_gets_a_wider_range() -> None:
    # Every image reaches further than the one before: no half shows how far the other goes.
    usual, growing = statistics([1.0] * 24), statistics([1.3**index for index in range(24)])
    assert chosen(usual).ratio == min(RATIOS["value"])
    assert chosen(growing).ratio > min(RATIOS["value"])


def test_the_error_is_that_of_unseen_images() -> None:
    """The last image alone reaches ten times as far as all: the half without it clips it."""
    alike = chosen(statistics([10.0, 10.0] * 12))
    apart = chosen(statistics([1.0] * 23 + [10.0]))
    assert apart.error > 3 * alike.error
