"""One candidate of the inference benchmarks in a process of its own: loads a model, then runs when it is told to.

    python -m benchmarks.peers.inference_worker KIND MODEL BATCH INPUTS.npy

Lines on standard input are commands; each is answered by one line of JSON. ``time N`` runs N times and returns the
seconds of each run, ``logits FILE`` runs every image of INPUTS.npy and saves the outputs. NumPy is all that is needed
beside the candidate's own packages. KIND ``openvino-int8`` quantizes MODEL with NNCF to OpenVINO's format first, on the
images in INPUTS.npy, and writes it beside.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]
SIZE = 2048
"""Rows and columns of the product that measures what the machine can do."""


def _onnxruntime(model: Path, batch: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _vitexport(model: Path, batch: int) -> Run:
    from vitexport.runtimes import open_runtime

    runtime = open_runtime(model)
    name, out = runtime.inputs[0].name, runtime.outputs[0].name
    return lambda images: runtime.run({name: images})[out]


def _module(model: Path) -> Any:
    """Load the PyTorch model whose source the file names."""
    from vitexport.host.sources import load_model
    from vitexport.recipe.settings import ModelSettings

    return load_model(ModelSettings(source=model.read_text(encoding="utf-8"))).module


def _torch(model: Path, batch: int) -> Run:
    return _torch_run(_module(model))


def _torch_compile(model: Path, batch: int) -> Run:
    import torch

    return _torch_run(torch.compile(_module(model)))


def _torch_cuda(model: Path, batch: int) -> Run:
    return _cuda_run(_module(model).to("cuda"), "float32")


def _torch_cuda_half(model: Path, batch: int) -> Run:
    return _cuda_run(_module(model).to("cuda").half(), "float16")


def _torch_cuda_half_compile(model: Path, batch: int) -> Run:
    import torch

    return _cuda_run(torch.compile(_module(model).to("cuda").half(), mode="max-autotune"), "float16")


def _cuda_run(module: Any, dtype: str) -> Run:
    """Run from an array in host memory to an array in host memory, as an engine's caller does."""
    import torch

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(images).to("cuda", getattr(torch, dtype)))[0].float().cpu().numpy()

    return run


def _torch_run(module: Any) -> Run:
    import torch

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(images))[0].numpy()

    return run


def _openvino(model: Path, batch: int) -> Run:
    import openvino

    core = openvino.Core()
    graph = core.read_model(model)
    graph.reshape([batch, *(axis.get_length() for axis in list(graph.inputs[0].partial_shape)[1:])])
    compiled = core.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]


def _gemm_numpy(model: Path, batch: int) -> Run:
    a = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32)
    return lambda images: a @ a


def _gemm_torch(model: Path, batch: int) -> Run:
    import torch

    a = torch.from_numpy(np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32))
    return lambda images: a @ a


KINDS: dict[str, tuple[Callable[[Path, int], Run], str]] = {
    "onnxruntime": (_onnxruntime, "onnxruntime"),
    "vitexport": (_vitexport, "onnxruntime"),
    "torch": (_torch, "torch"),
    "torch-compile": (_torch_compile, "torch"),
    "openvino": (_openvino, "openvino"),
    "torch-cuda": (_torch_cuda, "torch"),
    "torch-cuda-half": (_torch_cuda_half, "torch"),
    "torch-cuda-half-compile": (_torch_cuda_half_compile, "torch"),
    "engine": (_vitexport, "vitexport"),
    "gemm-numpy": (_gemm_numpy, "numpy"),
    "gemm-torch": (_gemm_torch, "torch"),
}


def quantize_openvino(model: Path, images: Any) -> None:
    """Write MODEL with NNCF's performance preset as OpenVINO IR, ``NAME-openvino.xml``."""
    import nncf
    import openvino

    graph = openvino.Core().read_model(model)
    feeds = nncf.Dataset([image[None] for image in images])
    settings = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(images)}
    quantized = nncf.quantize(graph, feeds, preset=nncf.QuantizationPreset.PERFORMANCE, **settings)
    openvino.save_model(quantized, model.with_name(f"{model.stem}-openvino.xml"), compress_to_fp16=False)


def _logits(run: Run, images: Any, batch: int, out: Path) -> None:
    found = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        rows = len(chunk)
        found.append(np.asarray(run(np.resize(chunk, (batch, *images.shape[1:]))))[:rows].copy())
    np.save(out, np.concatenate(found))


def main() -> None:
    """Load, report readiness, then answer commands until standard input ends."""
    warnings.simplefilter("ignore")
    kind, model, batch, inputs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), np.load(sys.argv[4])
    if kind == "openvino-int8":
        quantize_openvino(model, inputs)
        return
    open_model, package = KINDS[kind]
    run = open_model(model, batch)
    images = np.resize(inputs, (batch, *inputs.shape[1:]))
    run(images)
    answer(package=package, version=importlib.metadata.version(package))
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        if command == "logits":
            _logits(run, inputs, batch, Path(argument.strip()))
            answer(done=True)
            continue
        run(images)  # another process had the machine: caches are warmed again before the clock starts
        seconds = []
        for _ in range(int(argument)):
            started = time.perf_counter()
            run(images)
            seconds.append(time.perf_counter() - started)
        answer(seconds=seconds)


def answer(**content: Any) -> None:
    """Write one line of JSON; the marker tells it from what libraries print."""
    print(f"@{json.dumps(content)}", flush=True)


if __name__ == "__main__":
    main()
