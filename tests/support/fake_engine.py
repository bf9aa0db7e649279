"""What goes into the engine on the fake machine, and what must come out."""

from __future__ import annotations

import numpy as np

__all__ = ["batch_of", "expected"]


def batch_of(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((size, 4)).astype(np.float32)}


def expected(feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([feeds["x"].sum(1), feeds["x"].max(1)], axis=1)
