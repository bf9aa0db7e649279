"""A model where it is used: an HTTP server, a Triton repository, a DeepStream configuration, a device kit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitexport.api.arguments import open_bundle, require_positive
from vitexport.errors import MissingDependencyError, RecipeError, VitexportError
from vitexport.files import finite
from vitexport.inputs.images import load_image
from vitexport.machine import usable_cores
from vitexport.predict.sources import expand_sources
from vitexport.tables import Table, Tabular, cell

if TYPE_CHECKING:
    from vitexport.bundle.bundle import Bundle
    from vitexport.deploy.deepstream import PreprocessParity

__all__ = ["DeepstreamConfig", "DeviceKit", "Serving", "TritonRepository", "deepstream", "kit", "serve", "triton"]

_PARITY_LIMIT = 1e-5
_PARITY_IMAGES = 64


@dataclass(frozen=True, repr=False)
class Serving(Tabular):
    """A model behind an address.

    Attributes:
        name: Name of the model.
        variant: Which model of the bundle, or the file's name.
        runtime: Runtime that runs it.
        host: Address that is listened on, as it was given.
        port: Port that is listened on; never 0.
        notes: What a person should know, e.g. that a later variant was rejected by its checks.
    """

    name: str
    variant: str
    runtime: str
    host: str
    port: int
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
        facts = {"model": self.name, "variant": self.variant, "runtime": self.runtime, "address": self.url}
        return (_facts({**facts, **{f"note {i}": note for i, note in enumerate(self.notes, 1)}}),)


def serve(
    model: str | Path | Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    runtime: str | None = None,
    variant: str | None = None,
    device: str = "cpu",
    workers: int = 2,
    threads: int | None = None,
    max_batch: int = 8,
    max_delay_ms: float = 2.0,
    max_queue: int = 128,
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
        device: ``cpu`` or ``cuda:N``.
        workers: Runs at the same time.
        threads: Threads of each run; None shares the cores among the workers.
        max_batch: Images per run.
        max_delay_ms: Milliseconds that an image waits for others to join its run.
        max_queue: Images accepted and not yet answered; beyond it the server answers 429.
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
        RecipeError: A number is less than 1.
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
    _require_main_thread()
    body = max_body_mb << 20
    limits = Limits(
        body_bytes=body,
        total_bytes=max(Limits.total_bytes, 2 * body),
        images=max_images,
        queue=max(max_queue, max_images),
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
        Predictor.open(model, runtime=runtime, variant=variant, options=options) as predictor,
    ):
        app = create_app(predictor, limits, BatchSettings(max_batch, max_delay_ms / 1000, workers))
        serving = Serving(
            name=predictor.name,
            variant=predictor.variant,
            runtime=predictor.runtime.name,
            host=host,
            port=listener.getsockname()[1],
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


@dataclass(frozen=True, repr=False)
class TritonRepository(Tabular):
    """A model in a Triton model repository.

    Attributes:
        repository: What ``--model-repository`` of Triton takes.
        model: Folder of the model inside it.
    """

    repository: Path
    model: Path

    @property
    def name(self) -> str:
        """Name that Triton serves the model under."""
        return self.model.name

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"repository": str(self.repository), "model": str(self.model), "name": self.name}

    def tables(self) -> tuple[Table, ...]:
        """Return where the model lies, and how Triton is started."""
        start = f"tritonserver --model-repository={self.repository}"
        return (_facts({"model": self.name, "folder": str(self.model), "start": start}),)


def triton(
    bundle: str | Path | Bundle,
    out: str | Path,
    *,
    name: str | None = None,
    variant: str | None = None,
    max_batch: int = 8,
    max_delay_us: int = 2000,
    instances: int = 1,
    kind: Literal["gpu", "cpu"] = "gpu",
    tensorrt: bool = False,
) -> TritonRepository:
    """Write a bundle as a model of a Triton repository: model, ``config.pbtxt``, labels, preprocessing.

    Example::

        print(vx.triton("out/quickstart", "model_repository", kind="cpu"))

    Args:
        bundle: Bundle directory, or an opened bundle.
        out: Model repository, which may hold other models.
        name: Name of the model; None takes the bundle's.
        variant: Which model of the bundle; None takes the last one its checks accept.
        max_batch: Largest batch; a model of a fixed batch size has its own.
        max_delay_us: Microseconds that a request waits for others.
        instances: Copies of the model that run at the same time.
        kind: ``gpu`` or ``cpu``.
        tensorrt: Run the ONNX file through ONNX Runtime's TensorRT provider.

    Raises:
        BundleError: The bundle has no such model.
        RecipeError: A number is less than 1, or ``kind`` is another word.
        VitexportError: The name is no directory name, or an engine is asked to run on a CPU.
    """
    from vitexport.deploy.triton import TritonSettings, write_repository

    require_positive(max_batch=max_batch, instances=instances)
    if kind not in ("gpu", "cpu"):
        raise RecipeError(f"Expected kind to be 'gpu' or 'cpu', found '{kind}'.", "Choose one of them.")
    settings = TritonSettings(name, variant, max_batch, max_delay_us, instances, kind, tensorrt)
    return TritonRepository(Path(out), write_repository(open_bundle(bundle), out, settings))


@dataclass(frozen=True, repr=False)
class DeepstreamConfig(Tabular):
    """An nvinfer configuration, and what its preprocessing changes.

    Attributes:
        config: The configuration; ``model.onnx`` and ``labels.txt`` lie beside it.
        parity: How far DeepStream is from the bundle; None where no images were given.
    """

    config: Path
    parity: PreprocessParity | None

    @property
    def passed(self) -> bool:
        """Whether equal pixels give equal probabilities (to 1e-5); True where it was not measured."""
        return self.parity is None or self.parity.same_pixels <= _PARITY_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"config": str(self.config), "parity": None if self.parity is None else finite(asdict(self.parity))}

    def tables(self) -> tuple[Table, ...]:
        """Return the file, and the differences in probability."""
        facts = {"config": str(self.config)}
        if self.parity is None:
            return (_facts({**facts, "preprocessing": "not measured"}),)
        found = self.parity
        facts |= {
            "images": str(found.images),
            "largest difference on the same pixels": cell(found.same_pixels, ".1e"),
            "largest with nvinfer's own resize": cell(found.own_resize, ".3f"),
            "mean with nvinfer's own resize": cell(found.own_resize_mean, ".3f"),
            "top-1 agreement %": cell(found.agreement, ".1f", 100),
        }
        return (_facts({**facts, **{f"note {i}": note for i, note in enumerate(found.notes, 1)}}),)


def deepstream(
    bundle: str | Path | Bundle,
    out: str | Path,
    *,
    variant: str | None = None,
    batch: int = 8,
    images: str | Path | Sequence[str | Path] | None = None,
) -> DeepstreamConfig:
    """Write a DeepStream nvinfer configuration, and measure on images what its preprocessing changes.

    Example::

        print(vx.deepstream("out/quickstart", "deepstream", images="calib/holdout"))

    Args:
        bundle: Bundle directory, or an opened bundle; a classifier.
        out: Directory for ``config_infer.txt``, ``model.onnx`` and ``labels.txt``.
        variant: Which model of the bundle; None takes the last one its checks accept.
        batch: Frames per run.
        images: Images, folders, patterns or lists to measure on, of which the first 64 are used.

    Returns:
        The configuration; probabilities that differ are a result, not an exception.

    Raises:
        BundleError: The bundle has no such ONNX model, or is no classifier.
        ExportError: The model cannot take raw pixels.
        ImageError: An image cannot be used.
        RecipeError: ``batch`` is less than 1.
    """
    from vitexport.deploy.deepstream import measure_parity, write_deepstream

    require_positive(batch=batch)
    opened = open_bundle(bundle)
    config = write_deepstream(opened, out, variant=variant, batch=batch)
    if images is None:
        return DeepstreamConfig(config, None)
    sources = [images] if isinstance(images, str | Path) else images
    pictures = [load_image(path) for path in expand_sources(sources)[:_PARITY_IMAGES]]
    return DeepstreamConfig(config, measure_parity(opened, config, pictures, variant=variant))


@dataclass(frozen=True, repr=False)
class DeviceKit(Tabular):
    """An archive with everything a device needs.

    Attributes:
        path: The ``.tar.gz`` file.
        variant: The model that was packed.
        device: Name of the device profile.
        title: Name people know the device by.
    """

    path: Path
    variant: str
    device: str
    title: str

    @property
    def bytes(self) -> int:
        """Size of the archive in bytes."""
        return self.path.stat().st_size

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "path": str(self.path), "bytes": self.bytes}

    def tables(self) -> tuple[Table, ...]:
        """Return what was packed for which device."""
        size = f"{self.bytes / 2**20:.1f}"
        return (_facts({"file": str(self.path), "MiB": size, "model": self.variant, "device": self.title}),)


def kit(
    bundle: str | Path | Bundle,
    device: str,
    out: str | Path | None = None,
    *,
    variant: str | None = None,
    jetpack: str | None = None,
) -> DeviceKit:
    """Pack model, recordings, this package and a README for one device; refuse what cannot work there.

    Example::

        print(vx.kit("out/quickstart", "orin-nano"))

    Args:
        bundle: Bundle directory, or an opened bundle, as a finished run leaves it.
        device: Device profile, e.g. ``orin-nano``, ``l4``, ``arm-cpu``.
        out: The ``.tar.gz`` file to write; None takes ``NAME-DEVICE.tar.gz`` in the working directory.
        variant: Which model of the bundle; None takes the last one its checks accept.
        jetpack: JetPack release on the device; None takes the newest for it.

    Raises:
        RecipeError: There is no such device.
        EngineBuildError: The model cannot work on it.
        BundleError: The bundle has no such model, no recording to verify against, or an altered file.
    """
    from vitexport.deploy.device_kit import write_kit
    from vitexport.device.profiles import device_profile

    profile = device_profile(device)
    opened = open_bundle(bundle)
    path = Path(f"{opened.name}-{profile.name}.tar.gz") if out is None else Path(out)
    artifact = write_kit(opened, profile, path, variant=variant, jetpack=jetpack)
    return DeviceKit(path, artifact.name, profile.name, profile.title)


def _facts(facts: dict[str, str]) -> Table:
    return Table("", ("fact", "value"), tuple(facts.items()), text=("value",))
