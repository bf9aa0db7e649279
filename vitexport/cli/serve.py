"""``vitexport serve``: a bundle or a model file as an HTTP service."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["serve"]


@click.command(epilog="Example: vitexport serve out/quickstart --port 8000")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--runtime", help="Runtime to use.  [default: by file type]")
@click.option("--variant", help="Model inside a bundle, e.g. int8.  [default: the last one its checks accept]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option("--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per run.")
@click.option("--max-delay-ms", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Wait for a batch.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at the same time.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each run.  [default: cores / workers]")
@click.option("--max-queue", type=click.IntRange(min=1), default=128, show_default=True, help="Images; beyond it, 429.")
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
    device: str,
    max_batch: int,
    max_delay_ms: float,
    workers: int,
    threads: int | None,
    max_queue: int,
    max_images: int,
    max_body_mb: int,
    head_timeout: float,
    body_timeout: float,
    url_host: tuple[str, ...],
    url_private_network: bool,
) -> None:
    """Serve a bundle over HTTP: Azure's /score, /predict, KServe v2 on /v2, /metrics, /docs and a page to try it."""
    from vitexport.errors import MissingDependencyError
    from vitexport.machine import usable_cores
    from vitexport.predict.predictor import Predictor
    from vitexport.runtimes import RuntimeOptions
    from vitexport.server.limits import BatchSettings, Limits

    try:
        from vitexport.server.app import create_app
        from vitexport.server.server import bind, run_server
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "starlette", "serve", "The HTTP server") from error

    body = max_body_mb << 20
    limits = Limits(
        body_bytes=body,
        total_bytes=max(Limits.total_bytes, 2 * body),
        images=max_images,
        queue=max(max_queue, max_images),
        head_seconds=head_timeout,
        body_seconds=body_timeout,
        url_hosts=frozenset(url_host),
        private_urls=url_private_network,
    )
    listener = bind(host, port)
    if threads is None and device == "cpu":
        threads = max(1, usable_cores() // workers)
    predictor = Predictor.open(
        model, runtime=runtime, variant=variant, options=RuntimeOptions(threads=threads, device=device)
    )
    for note in predictor.notes:
        click.echo(note, err=True)
    app = create_app(predictor, limits, BatchSettings(max_batch, max_delay_ms / 1000, workers))
    shown = f"[{host}]" if ":" in host else host
    click.echo(
        f"Serving {predictor.name} ({predictor.variant}, {predictor.runtime.name}) "
        f"on http://{shown}:{listener.getsockname()[1]}; stop with Ctrl-C.",
        err=True,
    )
    run_server(app, listener)
