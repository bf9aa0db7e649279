"""``vitexport deepstream``: a bundle as an nvinfer configuration."""

from __future__ import annotations

from pathlib import Path

import click

from vitexport.api import deploy as api
from vitexport.cli.screen import print_json, say_choice

__all__ = ["deepstream"]


@click.command(epilog="Example: vitexport deepstream out/quickstart -o deepstream --images calib/holdout")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory.")
@click.option("--variant", help="Model inside the bundle.  [default: the last one its checks accept]")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Frames per run.")
@click.option("--images", type=click.Path(exists=True, path_type=Path), help="Measure the preprocessing on these.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def deepstream(
    ctx: click.Context,
    bundle: Path,
    output: Path,
    variant: str | None,
    batch: int,
    images: Path | None,
    as_json: bool,
) -> None:
    """Write a DeepStream nvinfer configuration, and measure what its preprocessing changes."""
    done = api.deepstream(bundle, output, variant=variant, batch=batch, images=images)
    say_choice(done.choice)
    if as_json:
        print_json(done.to_dict())
    else:
        _show(done)
    if not done.passed:
        ctx.exit(3)


def _show(done: api.DeepstreamConfig) -> None:
    click.echo(f"{done.config}: nvinfer configuration with model.onnx and labels.txt")
    parity = done.parity
    if parity is None:
        click.echo("Preprocessing not measured: give --images.")
        return
    agreement = "" if parity.agreement is None else f", equal decisions {100 * parity.agreement:.1f} %"
    click.echo(
        f"{parity.images} images: scores differ by at most {parity.same_pixels:.1e} on the same pixels, "
        f"{parity.own_resize:.3f} with nvinfer's own resize (mean {parity.own_resize_mean:.3f}{agreement})"
    )
    for note in parity.notes:
        click.echo(f"  {note}")
