"""``vitexport evaluate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from vitexport.bundle.target import Target, resolve_target
from vitexport.cli.screen import OUT, print_json
from vitexport.errors import ImageError
from vitexport.inputs.images import batches, list_images
from vitexport.inputs.labels import find_targets
from vitexport.runtimes import available_runtimes, open_runtime
from vitexport.runtimes.record import record
from vitexport.tensors import Array
from vitexport.verify.accuracy import accuracy, compare_top1
from vitexport.verify.parity import class_scores

__all__ = ["evaluate"]


@click.command()
@click.argument("target", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option("--images", "folder", type=click.Path(path_type=Path), required=True, help="Folder of images.")
@click.option("--labels", type=click.Path(path_type=Path), help="JSON file with the class of each image.")
@click.option("--limit", type=click.IntRange(1), help="Use at most so many images, spread over the folder.")
@click.option("--batch", type=click.IntRange(1), default=16, help="Images per run.")
@click.option("--runtime", type=click.Choice(available_runtimes()), help="Runtime; each file's own otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    target: Path,
    folder: Path,
    labels: Path | None,
    limit: int | None,
    batch: int,
    runtime: str | None,
    as_json: bool,
) -> None:
    """Measure top-1 and top-5 of a model, or of every variant of a bundle, on labelled images.

    Variants after the first are compared with it image by image (McNemar), so that noise is not taken for a difference.

    Example: vitexport evaluate out/quickstart --images calib/holdout --labels calib/manifest.json
    """
    paths = list_images(folder, limit=limit)
    truth = find_targets(folder, paths, labels)
    if truth is None:
        raise ImageError(
            f"Expected labels for the images in '{folder}', found none.",
            "Give --labels FILE, put a manifest.json beside the images, or use one folder per class.",
        )
    rows: list[dict[str, Any]] = []
    first: Array | None = None
    resolved = resolve_target(target)
    for model in resolved.models:
        scores = _scores(resolved, model.path, paths, batch, runtime)
        row: dict[str, Any] = {"model": model.name, **asdict(accuracy(scores, truth))}
        if first is None:
            first = scores
        else:
            row["difference"] = asdict(compare_top1(first, scores, truth))
        rows.append(row)
    if as_json:
        print_json({"results": rows})
        return
    table = Table(title=f"{len(paths)} images in {folder}", title_justify="left")
    table.add_column("model")
    for heading in ("top-1 %", "top-5 %", "change", "95 % interval", "McNemar p"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(escape(row["model"]), f"{100 * row['top1']:.2f}", f"{100 * row['top5']:.2f}", *_change(row))
    OUT.print(table)


def _change(row: dict[str, Any]) -> tuple[str, str, str]:
    found = row.get("difference")
    if found is None:
        return "", "", ""
    low, high = found["interval_points"]
    return f"{0.0 - found['drop_points']:+.2f}", f"{0.0 - high:+.2f} to {0.0 - low:+.2f}", f"{found['p_value']:.2g}"


def _scores(target: Target, model: Path, paths: tuple[Path, ...], batch: int, runtime: str | None) -> Array:
    with open_runtime(model, runtime) as opened:
        spec = target.metadata(opened.metadata).preprocess
        names = [str(path) for path in paths]
        recording = record(opened, names, batches(paths, spec, opened.inputs[0], batch))
    scores = class_scores(recording.outputs)
    if scores is None:
        raise ImageError(
            f"Expected class scores from '{model}', found the outputs {', '.join(recording.outputs)}.",
            "Only classifiers can be evaluated on labels; export with --task classify.",
        )
    return scores
