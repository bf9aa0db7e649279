"""Checks that run on a GPU, each as a process of its own that prints one line of JSON.

``python -m tests.support.gpu_checks CHECK PRODUCT MODEL FOLDER``. They build the engine here with the product that
accepts this GPU, so they are the whole path: build, deserialize, run.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitexport.bundle.layout import model_path
from vitexport.engine.build import build_engine
from vitexport.engine.refit import refit_engine
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.tensorrt.audit import audit_engine
from vitexport.runtimes.tensorrt.sidecar import read_sidecar

BATCH = "1,8"


def build(product: str, model: Path, folder: Path, **settings: Any) -> Path:
    options = {"product": product, "batch": BATCH, "timing_cache": folder / "timing.cache", **settings}
    return build_engine(model, EngineSettings.model_validate(options), folder / "model.engine").path


def feeds(runtime: Runtime, batch: int, seed: int) -> dict[str, np.ndarray]:
    (spec,) = runtime.inputs
    shape = (batch, *(int(axis) for axis in spec.shape[1:]))
    return {spec.name: np.random.default_rng(seed).standard_normal(shape).astype(spec.dtype)}


def compare(model: Path, engine: Path, **options: Any) -> dict[str, float]:
    """Largest error against ONNX Runtime relative to the largest value, and the smallest cosine, over batch sizes."""
    largest, cosine = 0.0, 1.0
    with (
        open_runtime(model, "onnxruntime", RuntimeOptions(optimize=False)) as reference,
        open_runtime(engine, options=RuntimeOptions(**options)) as runtime,
    ):
        for seed, batch in enumerate((1, 8, 3, 1)):
            given = feeds(reference, batch, seed)
            wanted, found = reference.run(given), runtime.run(given)
            for name, value in wanted.items():
                left = value.astype(np.float64).reshape(batch, -1)
                right = found[name].astype(np.float64).reshape(batch, -1)
                largest = max(largest, float(np.abs(left - right).max() / np.abs(left).max()))
                norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
                cosine = min(cosine, float(((left * right).sum(1) / norms).min()))
    return {"relative": largest, "cosine": cosine}


def deserialize(product: str, model: Path, folder: Path) -> dict[str, Any]:
    engine = build(product, model, folder)
    with open_runtime(engine) as runtime:
        sidecar = read_sidecar(engine)
        assert sidecar is not None
        return {
            "inputs": [spec.describe() for spec in runtime.inputs],
            "sidecar": [item.spec.describe() for item in sidecar.inputs],
        }


def parity(product: str, model: Path, folder: Path) -> dict[str, float]:
    return compare(model, build(product, model, folder))


def pycuda(product: str, model: Path, folder: Path) -> dict[str, float]:
    """The same with device memory from pycuda."""
    return compare(model, build(product, model, folder), cuda_binding="pycuda")


def graph(product: str, model: Path, folder: Path) -> dict[str, Any]:
    engine = build(product, model, folder)
    same = True
    options = RuntimeOptions(cuda_graph=True)
    with open_runtime(engine) as plain, open_runtime(engine, options=options) as recorded:
        for seed in range(6):
            given = feeds(plain, (1, 8)[seed % 2], seed)
            first, second = plain.run(given), recorded.run(given)
            same &= all(np.array_equal(first[name], second[name]) for name in first)
    return {"same": same}


def audit(product: str, model: Path, folder: Path) -> dict[str, Any]:
    return audit_engine(build(product, model, folder)).to_dict()


def latency(product: str, model: Path, folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    with open_runtime(build(product, model, folder)) as runtime:
        for batch in (1, 8):
            given = feeds(runtime, batch, 0)
            for _ in range(20):
                runtime.run(given)
            times = []
            for _ in range(200):
                start = time.perf_counter()
                runtime.run(given)
                times.append(time.perf_counter() - start)
            found[f"p50_ms_batch_{batch}"] = float(np.median(times) * 1e3)
    return found


def refit(product: str, model: Path, folder: Path) -> dict[str, float]:
    """A stripped engine, completed, must answer as the ONNX file does; a dropped bias would show."""
    engine = build(product, model, folder, strip_weights=True)
    refit_engine(engine, model, folder / "full.engine")
    return compare(model, folder / "full.engine")


def threads(product: str, model: Path, folder: Path) -> dict[str, Any]:
    wrong = 0
    with open_runtime(build(product, model, folder)) as runtime:
        given = [feeds(runtime, batch, batch) for batch in (1, 8)]
        wanted = [runtime.run(item) for item in given]

        def work(index: int) -> None:
            nonlocal wrong
            for _ in range(200):
                found = runtime.run(given[index])
                wrong += any(not np.array_equal(found[name], wanted[index][name]) for name in found)

        workers = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return {"wrong": wrong}


def growth(product: str, model: Path, folder: Path, *, runs: int = 10_000) -> dict[str, float]:
    """Resident host memory and free device memory over many runs of changing batch sizes."""
    from cuda.bindings import runtime as cudart

    with open_runtime(build(product, model, folder)) as runtime:
        given = [feeds(runtime, batch, batch) for batch in (1, 8, 3)]
        for step in range(runs // 10):
            runtime.run(given[step % 3])
        host, device = _resident(), cudart.cudaMemGetInfo()[1]
        for step in range(runs):
            runtime.run(given[step % 3])
        return {"host_mib": (_resident() - host) / 2**20, "device_mib": (device - cudart.cudaMemGetInfo()[1]) / 2**20}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


CHECKS: dict[str, Callable[[str, Path, Path], dict[str, Any]]] = {
    check.__name__: check for check in (deserialize, parity, pycuda, graph, audit, latency, refit, threads, growth)
}

if __name__ == "__main__":
    name, product_name, model_path, folder_path = sys.argv[1:]
    print(json.dumps(CHECKS[name](product_name, Path(model_path), Path(folder_path))))
