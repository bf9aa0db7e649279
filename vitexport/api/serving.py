"""A model behind an address: the HTTP server, from a Python program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from vitexport.api.arguments import require_positive
from vitexport.errors import MissingDependencyError, RecipeError, VitexportError
from vitexport.machine import usable_cores
from vitexport.scoring import Scoring
from vitexport.tables import Table, Tabular

if TYPE_CHECKING:
    from vitexport.predict.foreign import ClassNames, Preprocess

__all__ = ["Serving", "serve"]


@dataclass(frozen=True, repr=False)
class Serving(Tabular):
    """A model behind an address.

    Attributes:
        name: Name of the model.
        variant: Which model of the bundle, or the file's name.
        runtime: Runtime that runs it.
        host: Address that is listened on, as it was given.
        port: Port that is listened on; never 0.
        sha256: Of the model.
        notes: What a person should know, e.g. that a later variant was rejected by its checks.
    """

    name: str
    variant: str
    runtime: str
    host: str
    port: int
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where a browser shows the page to try the model."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "notes": list(self.notes), "url": self.url}

    def tables(self) -> tuple[Table, ...]:
        """Return the model and its address."""
        facts = {
            "model": self.name,
            "variant": self.variant,
            "sha256": self.sha256,
            "runtime": self.runtime,
            "address": self.url,
        }
        return (Table.of_facts({**facts, **{f"note {i}": note for i, note in enumerate(self.notes, 1)}}),)


def serve(
    model: str | PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    runtime: str | None = None,
    variant: str | None = None,
    preprocess: Preprocess | None = None,
    class_names: ClassNames | str | None = None,
    scoring: Scoring | None = None,
    device: str = "cpu",
    workers: int = 2,
    threads: int | None = None,
    max_batch: int = 8,
    max_delay_ms: float = 2.0,
    max_queue: int | None = None,
    max_images: int = 64,
    max_body_mb: int = 32,
    head_timeout: float = 10.0,
    body_timeout: float = 30.0,
    url_hosts: Collection[str] = (),
    url_private_network: bool = False,
    on_ready: Callable[[Serving], None] | None = None,
) -> Serving:
    """Serve a model over HTTP until SIGTERM or Ctrl-C: Azure's /score, /predict, KServe v2 on /v2, /metrics, a page.

    Blocks, and answers what it accepted before it returns. It handles signals and runs an event loop, so it is called
    from the main thread of a program, not from a notebook.

    Example::

        vx.serve("out/quickstart", port=8000, on_ready=lambda serving: print(serving.url))

    Args:
        model: Bundle, its directory, or a model file.
        host: Address to listen on; ``0.0.0.0`` for all.
        port: 0 takes a free one.
        runtime: Runtime name; None lets the file choose.
        variant: Which model of a bundle; None takes the last one its checks accept.
        preprocess: What turns an image into the input of a file that does not say so itself, see
            :meth:`vitexport.Predictor.open`.
        class_names: Names in the order of the outputs, or a file of them; None takes the model's own.
        scoring: ``softmax``, ``sigmoid`` or ``none``; None takes what the model says of itself.
        device: ``cpu`` or ``cuda:N``.
        workers: Runs at the same time.
        threads: Threads of each run; None shares the cores among the workers.
        max_batch: Images per run.
        max_delay_ms: Milliseconds that an image waits for others to join its run.
        max_queue: Images accepted and not yet answered; beyond it the server answers 429. None takes 128, or
            ``max_images`` where that is more.
        max_images: Images per request.
        max_body_mb: MiB per request.
        head_timeout: Seconds to send a request's head.
        body_timeout: Seconds to send a request's body.
        url_hosts: Hosts (``name`` or ``name:port``) that image URLs may name; none refuses all URLs.
        url_private_network: Let those hosts be inside a private network.
        on_ready: Called once the address is bound and the model is open, before the first request is answered.

    Returns:
        What was served, after it has stopped.

    Raises:
        BundleError: The model cannot be used.
        RuntimeBackendError: The runtime cannot open it.
        MissingDependencyError: The extra ``serve``, or the runtime, is not installed.
        RecipeError: Something given does not fit the model, a number is less than 1, the queue is smaller than a
            request may be, or private addresses are allowed and no host is.
        VitexportError: The address cannot be bound, or this is not the main thread.
    """
    from vitexport.predict.predictor import Predictor
    from vitexport.runtimes import RuntimeOptions
    from vitexport.server.limits import BatchSettings, Limits

    try:
        from vitexport.server.app import create_app
        from vitexport.server.server import bind, run_server
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "starlette", "serve", "The HTTP server") from error

    require_positive(
        workers=workers,
        threads=threads,
        max_batch=max_batch,
        max_queue=max_queue,
        max_images=max_images,
        max_body_mb=max_body_mb,
    )
    if url_private_network and not url_hosts:
        raise RecipeError(
            "Expected hosts that image URLs may name, as they may lie in a private network; found none.",
            "Name them: --url-host HOST, url_hosts=(...).",
        )
    max_queue = max(Limits.queue, max_images) if max_queue is None else max_queue
    if max_queue < max_images:
        raise RecipeError(
            f"Expected a queue of at least one request's {max_images} images, found {max_queue}.",
            "Raise max_queue (--max-queue), or lower max_images (--max-images).",
        )
    _require_main_thread()
    body = max_body_mb << 20
    limits = Limits(
        body_bytes=body,
        total_bytes=max(Limits.total_bytes, 2 * body),
        images=max_images,
        queue=max_queue,
        head_seconds=head_timeout,
        body_seconds=body_timeout,
        url_hosts=frozenset(url_hosts),
        private_urls=url_private_network,
    )
    if threads is None and device == "cpu":
        threads = max(1, usable_cores() // workers)
    options = RuntimeOptions(threads=threads, device=device)
    with (
        bind(host, port) as listener,
        Predictor.open(
            model,
            runtime=runtime,
            variant=variant,
            options=options,
            preprocess=preprocess,
            class_names=class_names,
            scoring=scoring,
        ) as predictor,
    ):
        app = create_app(predictor, limits, BatchSettings(max_batch, max_delay_ms / 1000, workers))
        serving = Serving(
            name=predictor.name,
            variant=predictor.variant,
            runtime=predictor.runtime.name,
            host=host,
            port=listener.getsockname()[1],
            sha256=predictor.sha256,
            notes=predictor.notes,
        )
        if on_ready is not None:
            on_ready(serving)
        run_server(app, listener)
    return serving


def _require_main_thread() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if threading.current_thread() is threading.main_thread():
            return
    raise VitexportError(
        "Expected serve() to be called from the main thread without a running event loop, found another place.",
        "Start `vitexport serve MODEL` as a process of its own, e.g. from a notebook.",
    )
