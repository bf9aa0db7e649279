"""The products TensorRT and TensorRT-RTX behind one door: loading, logging, and what a release can do.

Nothing here compares version numbers. Capabilities are asked of the API's classes (``hasattr``, enum members): the two
products number their releases differently, and TensorRT 11 removed what 10 had.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from vitexport.errors import MissingDependencyError, RuntimeBackendError

__all__ = ["NO_GPU", "PRODUCTS", "ProductName", "TensorRTApi", "load_api"]

ProductName = Literal["tensorrt", "tensorrt-rtx"]

# What TensorRT-RTX logs beside every real message on a machine without a GPU; it says nothing about the model.
NO_GPU = re.compile(r"catchCudaError.*cudaError 35", re.DOTALL)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Product:
    module: str
    package: str
    extra: str


PRODUCTS: dict[str, _Product] = {
    "tensorrt": _Product("tensorrt", "tensorrt", "tensorrt"),
    "tensorrt-rtx": _Product("tensorrt_rtx", "tensorrt-rtx-cu13", "tensorrt-rtx"),
}


@dataclass(frozen=True)
class TensorRTApi:
    """One loaded product: its Python module, and what its release can do.

    Attributes:
        product: ``tensorrt`` or ``tensorrt-rtx``.
        module: The Python module, ``tensorrt`` or ``tensorrt_rtx``.
        logger: The one logger of this process; TensorRT keeps the first logger it is given, so there is only one.
    """

    product: ProductName
    module: Any
    logger: Any
    _records: _Records = field(repr=False)

    @property
    def version(self) -> str:
        """Version of the product, e.g. ``10.3.0``."""
        return str(self.module.__version__)

    @property
    def network_flags(self) -> int:
        """Flags for ``create_network``: strongly typed. Enum values differ between releases, so none is hard-coded."""
        member = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if member is None else 1 << int(member)

    @property
    def builds_without_gpu(self) -> bool:
        """True if compute capabilities can be given, so that no GPU has to be there to ask (TensorRT-RTX)."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def target_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that can be targeted, e.g. ``("7.5", "8.6")``; empty where there is no choice."""
        if not self.builds_without_gpu:
            return ()
        names = [name for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)

    def member(self, enum: str, name: str) -> Any | None:
        """Return an enum member, or None where this release has no such enum or member."""
        return getattr(getattr(self.module, enum, None), name, None)

    @contextmanager
    def messages(self) -> Iterator[list[str]]:
        """Collect the warnings and errors that TensorRT logs inside the block, oldest first."""
        collected: list[str] = []
        with self._records.lock:
            self._records.open.append(collected)
        try:
            yield collected
        finally:
            with self._records.lock:
                self._records.open[:] = [other for other in self._records.open if other is not collected]


@dataclass
class _Records:
    open: list[list[str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@functools.cache
def load_api(product: ProductName) -> TensorRTApi:
    """Import the Python module of a product.

    Raises:
        MissingDependencyError: Its package is not installed.
        RuntimeBackendError: Its package is there but its libraries do not load.
    """
    known = PRODUCTS[product]
    try:
        module = importlib.import_module(known.module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(known.package, known.extra, f"The runtime '{product}'") from error
    except (ImportError, OSError) as error:
        raise RuntimeBackendError(
            f"The Python module '{known.module}' is installed, but its libraries do not load: {error}",
            "On Jetson install TensorRT with JetPack (apt install tensorrt python3-libnvinfer); elsewhere reinstall "
            f"{known.package}. `vitexport doctor` shows what was found.",
        ) from error
    return wrap_module(product, module)


def wrap_module(product: ProductName, module: Any) -> TensorRTApi:
    """Wrap an imported module, with a logger that keeps what TensorRT says."""
    records = _Records()
    return TensorRTApi(product, module, _make_logger(module, records), records)


def _make_logger(module: Any, records: _Records) -> Any:
    levels = {
        module.ILogger.INTERNAL_ERROR: logging.ERROR,
        module.ILogger.ERROR: logging.ERROR,
        module.ILogger.WARNING: logging.WARNING,
        module.ILogger.INFO: logging.INFO,
    }

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            # Warnings and errors reach the user as part of our messages, so they are not also printed.
            _LOGGER.debug("%s", message)
            if level >= logging.WARNING and not NO_GPU.search(message):
                with records.lock:
                    for collected in records.open:
                        collected.append(str(message).strip())

    return Logger()
