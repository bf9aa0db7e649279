"""``vitexport triton``: a bundle as a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitexport.api import deploy as api
from vitexport.cli.screen import say_choice

__all__ = ["triton"]


@click.command(epilog="Example: vitexport triton out/quickstart -o model_repository")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Repository.")
@click.option("--name", help="Name of the model.  [default: the bundle's]")
@click.option("--variant", help="Model inside the bundle.  [default: the last one its checks accept]")
@click.option("--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="Largest batch.")
@click.option("--max-delay-us", type=click.IntRange(min=0), default=2000, show_default=True, help="Wait for a batch.")
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of the model.")
@click.option("--kind", type=click.Choice(["gpu", "cpu"]), default="gpu", show_default=True, help="Where to run.")
@click.option("--tensorrt", is_flag=True, help="Run the ONNX file through ONNX Runtime's TensorRT execution provider.")
def triton(
    bundle: Path,
    output: Path,
    name: str | None,
    variant: str | None,
    max_batch: int,
    max_delay_us: int,
    instances: int,
    kind: Any,
    tensorrt: bool,
) -> None:
    """Write a Triton model repository: model, config.pbtxt and labels."""
    done = api.triton(
        bundle,
        output,
        name=name,
        variant=variant,
        max_batch=max_batch,
        max_delay_us=max_delay_us,
        instances=instances,
        kind=kind,
        tensorrt=tensorrt,
    )
    say_choice(done.choice)
    click.echo(f"{done.model}: start Triton with --model-repository={done.repository}")
