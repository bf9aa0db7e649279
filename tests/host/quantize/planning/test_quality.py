"""What is said of a quantized graph's distance from float32: known values, intervals, budgets."""

from __future__ import annotations

import numpy as np
import pytest

from vitexport.host.quantize.planning.quality import Quality, _quality, _wilson
from vitexport.recipe.settings import Budget
from vitexport.scoring import Head


def rows(noise: float, *, images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    exact = random.normal(size=(images, 50))
    return exact, exact + noise * random.normal(size=exact.shape) * random.uniform(0.5, 1.5, (images, 1))


def test_sqnr_is_the_ratio_of_all_energies() -> None:
    exact = np.array([[3.0, 4.0], [0.0, 5.0]])
    found = exact + [[0.3, 0.0], [0.0, 0.4]]
    assert _quality(exact, found, Head()).sqnr_db == pytest.approx(10 * np.log10(50 / 0.25))


def test_the_interval_holds_what_all_images_would_show() -> None:
    everything = _quality(*rows(0.1, images=40_000), Head())
    inside = 0
    for seed in range(1, 101):
        part = _quality(*rows(0.1, images=64, seed=seed), Head())
        inside += part.sqnr_interval_db[0] <= everything.sqnr_db <= part.sqnr_interval_db[1]
    assert 88 <= inside <= 100


def test_agreement_is_that_of_classes_and_has_wilsons_interval() -> None:
    exact = np.eye(10)
    found = exact.copy()
    found[0] = exact[1]
    quality = _quality(exact, found, Head())
    assert quality.agreement == pytest.approx(0.9)
    assert quality.agreement_interval == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert _wilson(1.0, 32) == pytest.approx((0.8928, 1.0), abs=1e-4)
    features = _quality(exact, found, Head("features"))
    assert features.agreement is None and features.agreement_interval is None


@pytest.mark.parametrize(
    ("budget", "holds"),
    [
        ({"min_sqnr_db": 20}, True),
        ({"min_sqnr_db": 26}, False),
        ({"min_agreement": 0.9}, True),
        ({"min_agreement": 0.99}, False),
        ({"max_top1_drop": 5}, True),
        ({"max_top1_drop": 1}, False),
    ],
)
def test_a_budget_holds_or_not(budget: dict[str, float], holds: bool) -> None:
    quality = Quality(32, 25.0, (24.0, 26.0), 0.97, (0.9, 1.0))
    assert quality.meets(Budget(**budget)) is holds


def test_features_meet_no_budget_of_agreement() -> None:
    quality = Quality(32, 25.0, (24.0, 26.0), None, None)
    assert quality.meets(Budget(min_sqnr_db=20))
    assert not quality.meets(Budget(min_agreement=0.5))
