"""``vitexport serve``: a bundle or a model file as an HTTP service."""

from __future__ import annotations

from pathlib import Path

import click

from vitexport.api import serving as api
from vitexport.cli.label_options import CLASS_NAMES, PREPROCESS, SCORING
from vitexport.recipe.settings import Scoring

__all__ = ["serve"]


@click.command(epilog="Example: vitexport serve out/quickstart --port 8000")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--runtime", help="Runtime to use.  [default: by file type]")
@click.option("--variant", help="Model inside a bundle, e.g. int8.  [default: the last one its checks accept]")
@PREPROCESS
@CLASS_NAMES
@SCORING
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option("--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per run.")
@click.option("--max-delay-ms", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Wait for a batch.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at the same time.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each run.  [default: cores / workers]")
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    help="Images; beyond it, 429.  [default: 128, or --max-images if that is more]",
)
@click.option("--max-images", type=click.IntRange(min=1), default=64, show_default=True, help="Images per request.")
@click.option("--max-body-mb", type=click.IntRange(min=1), default=32, show_default=True, help="MiB per request.")
@click.option("--head-timeout", type=float, default=10.0, show_default=True, help="Seconds to send a request's head.")
@click.option("--body-timeout", type=float, default=30.0, show_default=True, help="Seconds to send a request's body.")
@click.option(
    "--url-host", multiple=True, metavar="HOST[:PORT]", help="Accept image URLs of this host.  [default: none]"
)
@click.option("--url-private-network", is_flag=True, help="Let those hosts be inside a private network.")
def serve(
    *,
    model: Path,
    host: str,
    port: int,
    runtime: str | None,
    variant: str | None,
    preprocess: Path | None,
    class_names: Path | None,
    scoring: Scoring | None,
    device: str,
    max_batch: int,
    max_delay_ms: float,
    workers: int,
    threads: int | None,
    max_queue: int | None,
    max_images: int,
    max_body_mb: int,
    head_timeout: float,
    body_timeout: float,
    url_host: tuple[str, ...],
    url_private_network: bool,
) -> None:
    """Serve a bundle over HTTP: Azure's /score, /predict, KServe v2 on /v2, /metrics, /docs and a page to try it."""
    api.serve(
        model,
        host=host,
        port=port,
        runtime=runtime,
        variant=variant,
        preprocess=preprocess,
        class_names=class_names,
        scoring=scoring,
        device=device,
        workers=workers,
        threads=threads,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        max_queue=max_queue,
        max_images=max_images,
        max_body_mb=max_body_mb,
        head_timeout=head_timeout,
        body_timeout=body_timeout,
        url_hosts=url_host,
        url_private_network=url_private_network,
        on_ready=_announce,
    )


def _announce(serving: api.Serving) -> None:
    for note in serving.notes:
        click.echo(f"note: {note}", err=True)
    what = f"{serving.name} ({serving.variant}, sha256 {serving.sha256[:12]}, {serving.runtime})"
    click.echo(f"Serving {what} on {serving.url}; stop with Ctrl-C.", err=True)
