"""Results of a batch job as JSON lines, CSV or Parquet: one row per image, in the order of the sources."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from vitexport.errors import MissingDependencyError, VitexportError
from vitexport.files import atomic_path
from vitexport.predict.batch import Row
from vitexport.predict.predictor import Prediction

__all__ = ["FORMATS", "check_format", "row_from_json", "row_to_json", "write_results"]

_IDENTITY = ("variant", "model_version")
"""Columns that name the model, the same in every row: rows are what people cut up and put together again."""

FORMATS = (".jsonl", ".csv", ".parquet")


def check_format(path: str | Path) -> None:
    """Check that results can be written to ``path``, before any work is done.

    Raises:
        VitexportError: The ending is unknown.
        MissingDependencyError: Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise VitexportError(
            f"Expected a results file ending in {', '.join(FORMATS)}, found '{path.name}'.", "Rename the -o file."
        )
    if path.suffix == ".parquet":
        _pyarrow()


def row_to_json(row: Row) -> dict[str, Any]:
    """Return a row as JSON-ready data."""
    return asdict(row)


def row_from_json(data: Mapping[str, Any]) -> Row:
    """Return the row that :func:`row_to_json` made ``data`` of.

    Raises:
        KeyError, TypeError: The data is no row.
    """
    return Row(
        image=data["image"],
        predictions=tuple(Prediction(**entry) for entry in data["predictions"]),
        features=tuple(data["features"]),
        error=data["error"],
    )


def write_results(
    path: str | Path, rows: Iterable[Row], *, features: bool, variant: str = "", model_version: str = ""
) -> None:
    """Write rows in one step, streaming.

    The columns are ``image, label, score, top, error, variant, model_version``, with ``features`` in the place of the
    middle three for a features model.

    Args:
        path: Ends in one of :data:`FORMATS`.
        rows: In order.
        features: Whether the model gives features.
        variant: Which model of the bundle answered, or the file's name.
        model_version: First digits of its SHA-256.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        identity = {"variant": variant, "model_version": model_version}
        records = ({**_record(row, features), **identity} for row in rows)
        {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}[path.suffix](
            temporary, records, features
        )


def _record(row: Row, features: bool) -> dict[str, Any]:
    error = row.error or None
    if features:
        return {"image": row.image, "features": list(row.features) if error is None else None, "error": error}
    best = row.predictions[0] if row.predictions else None
    return {
        "image": row.image,
        "label": best.label if best else None,
        "score": best.score if best else None,
        "top": [asdict(prediction) for prediction in row.predictions],
        "error": error,
    }


def _write_jsonl(path: Path, records: Iterator[dict[str, Any]], features: bool) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_csv(path: Path, records: Iterator[dict[str, Any]], features: bool) -> None:
    nested = "features" if features else "top"
    with path.open("w", encoding="utf-8", newline="") as stream:
        values = ["features"] if features else ["label", "score", "top"]
        writer = csv.DictWriter(stream, ["image", *values, "error", *_IDENTITY])
        writer.writeheader()
        for record in records:
            value = json.dumps(record[nested], ensure_ascii=False) if record[nested] else ""
            writer.writerow({**record, nested: value})


def _write_parquet(path: Path, records: Iterator[dict[str, Any]], features: bool) -> None:
    pa, parquet = _pyarrow()
    columns = (
        [("features", pa.list_(pa.float32()))]
        if features
        else [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("top", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))),
        ]
    )
    schema = pa.schema([("image", pa.string()), *columns, *((name, pa.string()) for name in ("error", *_IDENTITY))])
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(records, 4096)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "serve", "Writing Parquet") from error
    return pa, parquet
