"""Keeping calibration statistics in a file, so that another setting costs no other pass over the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vitexport.errors import CalibrationError
from vitexport.files import atomic_path, sha256_file
from vitexport.host.quantize.calibration.statistics import StatisticsConfig, TensorStatistics

__all__ = ["load_statistics", "save_statistics", "statistics_key"]

_VERSION = 4
_ARRAYS = tuple(field.name for field in fields(TensorStatistics) if field.name not in ("name", "rows", "bound"))


def statistics_key(model: Path, image_hashes: Sequence[str], config: StatisticsConfig) -> str:
    """Return a digest of what statistics depend on: the model file, the images' pixels, and what is kept of them."""
    parts = [str(_VERSION), sha256_file(model), repr(config), *image_hashes]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def save_statistics(path: Path, key: str, statistics: Mapping[str, TensorStatistics]) -> None:
    """Write statistics in one step, as an ``.npz`` without pickled objects."""
    header: dict[str, Any] = {"version": _VERSION, "key": key, "tensors": []}
    arrays = {}
    for index, (name, stats) in enumerate(statistics.items()):
        header["tensors"].append({"name": name, "rows": stats.rows, "bound": stats.bound})
        arrays.update({f"{index}.{field}": getattr(stats, field) for field in _ARRAYS})
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, header=encoded, **arrays)


def load_statistics(path: Path, key: str, names: Sequence[str]) -> dict[str, TensorStatistics] | None:
    """Read statistics, or return None when they belong to another model, other images, or lack a tensor.

    Raises:
        CalibrationError: The file is no statistics file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(bytes(archive["header"]))
            if header.get("version") != _VERSION or header.get("key") != key:
                return None
            statistics = {
                entry["name"]: TensorStatistics(
                    name=entry["name"],
                    rows=entry["rows"],
                    bound=entry["bound"],
                    **{field: archive[f"{index}.{field}"] for field in _ARRAYS},
                )
                for index, entry in enumerate(header["tensors"])
                if entry["name"] in names
            }
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise CalibrationError(
            f"Expected calibration statistics in '{path}': {error}", "Delete the file; it will be made again."
        ) from error
    return statistics if set(names) <= set(statistics) else None
