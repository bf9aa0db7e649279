"""``vitexport kit``: everything a device needs in one archive."""

from __future__ import annotations

from pathlib import Path

import click

from vitexport.api import deploy as api
from vitexport.cli.screen import say_choice

__all__ = ["kit"]


@click.command(epilog="Example: vitexport kit out/quickstart --device orin-nano")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", required=True, help="Device profile, e.g. orin-nano, l4, arm-cpu.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Archive.  [default: NAME-DEVICE.tar.gz]"
)
@click.option("--variant", help="Model inside the bundle.  [default: the last one its checks accept]")
@click.option("--jetpack", help="JetPack release on the device.  [default: the newest for it]")
def kit(bundle: Path, device: str, output: Path | None, variant: str | None, jetpack: str | None) -> None:
    """Pack model, recordings, this package and a README for one device; refuse what cannot work there."""
    done = api.kit(bundle, device, output, variant=variant, jetpack=jetpack)
    say_choice(done.choice)
    size = done.bytes / 2**20
    click.echo(f"{done.path}: {done.variant} for {done.title}, {size:.1f} MiB; unpack it there and follow README.md")
