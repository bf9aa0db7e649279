"""What the zoo does with one model, each step in a process of its own: build, export, int8, and the plain exporter."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.suites.zoo_rows import ZooRow, build, image_size, source_of
from vitexport.errors import FeedMismatchError, VitexportError

__all__ = ["BATCHES", "PRELOADED", "STEPS", "carry_out", "run_step"]

PRELOADED = (
    *("torch", "timm", "transformers", "onnxruntime", "onnxscript"),
    *("vitexport.host.export", "vitexport.host.simplify", "vitexport.host.quantize"),
    *("vitexport.host.sources.timm", "vitexport.host.sources.huggingface"),
)
"""What every step imports, which takes longer than most steps do."""

BATCHES = (1, 3)
_IMAGES = 24
_LAST_SEED = 4
_MODEL = "simplified.onnx"


def carry_out(name: str, row: ZooRow, folder: Path, out: Path, gigabytes: float) -> None:
    """Run a step in a process made for it and write what it found, or what ended it, as JSON.

    Args:
        name: The step.
        row: The model.
        folder: What the steps of a row share.
        out: The file to write.
        gigabytes: The memory it may take.
    """
    _limit_memory(gigabytes)
    with Path(os.devnull).open("w") as silent, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            found = run_step(name, row, folder)
        except Exception as error:  # a row of the table, whatever it is
            words = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
            found = {"failed": f"{type(error).__name__}: {words[0]}"}
    out.write_text(json.dumps(found).replace(f"{folder}/", ""), encoding="utf-8")


def _limit_memory(gigabytes: float) -> None:
    """Let this process hold at most so many GB of its own data; beyond it allocations fail, which is a row."""
    size = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def run_step(name: str, row: ZooRow, folder: Path) -> dict[str, Any]:
    """Carry out a step; a refusal of the package's own is part of the result."""
    try:
        return STEPS[name](row, folder)
    except FeedMismatchError:
        raise  # a model that takes another input than its library's is wrong, not refused
    except VitexportError as error:
        return {"refused": error.message.splitlines()[0]}


def _build(row: ZooRow, folder: Path) -> dict[str, Any]:
    """Write the checkpoint, inputs, and what the source library answers in float32 and in float64."""
    import torch
    from safetensors.torch import save_file

    model, settings, pixels, answers = _answering(row, folder)
    save_file({"pixel_values": pixels}, folder / "pixels.safetensors")
    save_file(answers, folder / "float32.safetensors")
    try:
        with torch.no_grad():
            exact = _named(model.double(), pixels.double())
    except RuntimeError:  # its own code makes float32 of something
        exact = {name: value.double() for name, value in answers.items()}
    save_file(exact, folder / "float64.safetensors")
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "settings": settings}


def _answering(row: ZooRow, folder: Path) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
    """Return the first model that runs and answers more than 0, how it was built, what it was shown, its answers."""
    import numpy as np
    import torch

    pictures = _pictures(folder / "images")[: max(BATCHES)]
    shallow, seed = True, 0
    while True:
        settings = {"seed": seed, "shallow": shallow}
        try:
            model = build(row, folder / "checkpoint", **settings)
            height, width = image_size(model)
            resized = [np.asarray(p.resize((width, height)), dtype=np.float32) / 127.5 - 1 for p in pictures]
            pixels = torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2).copy())
            with torch.no_grad():
                answers = _named(model, pixels)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
            if not shallow or row.library == "timm":
                raise
            shallow = False  # it reads blocks that the cut left out
            continue
        # Zeros, as a head gives them behind its ReLU, would compare nothing.
        if all(value.any() for value in answers.values()) or seed == _LAST_SEED:
            return model, settings, pixels, answers
        seed += 1


def _named(model: Any, pixels: Any) -> dict[str, Any]:
    """Return every tensor of the library's own forward; timm's features beside its answer."""
    import torch

    found = model(pixels, **_in_order(model, pixels))
    outputs: dict[str, Any] = {"output": found} if isinstance(found, torch.Tensor) else {}
    if not outputs:
        entries = found.items() if isinstance(found, Mapping) else enumerate(found)
        outputs = {str(name): value for name, value in entries if isinstance(value, torch.Tensor)}
        for name, value in entries if isinstance(found, Mapping) else ():
            if isinstance(value, tuple | list):
                outputs |= {f"{name}.{i}": part for i, part in enumerate(value) if isinstance(part, torch.Tensor)}
    elif hasattr(model, "forward_features"):
        features = model.forward_features(pixels)
        outputs |= {"last_hidden_state": features} if isinstance(features, torch.Tensor) else {}
    return {name: value.detach().clone().contiguous() for name, value in outputs.items()}


def _in_order(model: Any, pixels: Any) -> dict[str, Any]:
    """Return what keeps a masked autoencoder, built to mask nothing, from shuffling its patches."""
    import torch

    if "noise" not in inspect.signature(model.forward).parameters:
        return {}
    patches = (model.config.image_size // model.config.patch_size) ** 2
    return {"noise": torch.arange(patches, dtype=pixels.dtype).expand(len(pixels), -1)}


def _export(row: ZooRow, folder: Path) -> dict[str, Any]:
    from vitexport.api.stages import export, simplify

    export(source_of(row, folder / "checkpoint"), folder / "exported.onnx")
    done = simplify(folder / "exported.onnx", folder / _MODEL)
    return {"nodes": done.details["nodes"], **_errors(folder, folder / _MODEL)}


def _int8(row: ZooRow, folder: Path) -> dict[str, Any]:
    from vitexport.api.stages import quantize

    done = quantize(folder / _MODEL, folder / "images", folder / "int8.onnx")
    quality = done.details["quality"]
    layers = len(done.details["quantized"])
    return {"sqnr_db": None if quality is None else quality["sqnr_db"], "layers": layers}


def _plain(row: ZooRow, folder: Path) -> dict[str, Any]:
    """Export as the exporter's documentation shows it, with a dynamic batch."""
    import torch
    from safetensors.torch import load_file

    class Tensors(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.model(pixel_values)
            if isinstance(found, torch.Tensor):
                return (found,)
            values = found.values() if isinstance(found, Mapping) else found
            return tuple(value for value in values if isinstance(value, torch.Tensor))

    settings = json.loads((folder / "build.json").read_text(encoding="utf-8"))["settings"]
    model = Tensors(build(row, folder / "again", **settings)).eval()
    pixels = load_file(folder / "pixels.safetensors")["pixel_values"]
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (pixels[:2],), str(folder / "plain.onnx"), dynamic_shapes=shapes, verbose=False)
    return _errors(folder, folder / "plain.onnx")


def _errors(folder: Path, file: Path) -> dict[str, Any]:
    """Compare a file with the library's answers at each batch size.

    Returns:
        ``errors``: the largest max |difference| / max |reference| over the outputs, per batch; ``from_float64`` the
        same against float64, ``float32_from_float64`` that of float32 PyTorch; ``outputs``: their names.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from vitexport.runtimes import open_runtime

    pixels = load_file(folder / "pixels.safetensors")["pixel_values"]
    single, double = (load_file(folder / f"{name}.safetensors") for name in ("float32", "float64"))
    errors: list[float] = []
    exact: list[float] = []
    rounding = 0.0
    with open_runtime(file) as runtime:
        for size in BATCHES:
            found = runtime.run({runtime.inputs[0].name: pixels[:size]})
            pairs = {name: _counterpart(name, value, single, double) for name, value in found.items()}
            missing = [name for name, key in pairs.items() if key is None]
            if missing:
                raise ValueError(f"the library's forward returns nothing like '{missing[0]}' {found[missing[0]].shape}")
            rows = {name: str(key) for name, key in pairs.items()}
            errors.append(max(_relative(single[key][: len(found[name])], found[name]) for name, key in rows.items()))
            exact.append(max(_relative(double[key][: len(found[name])], found[name]) for name, key in rows.items()))
            rounding = max(rounding, *(_relative(double[key], single[key].astype(np.float64)) for key in rows.values()))
    return {"errors": errors, "from_float64": exact, "float32_from_float64": rounding, "outputs": list(found)}


def _counterpart(name: str, value: Any, single: Mapping[str, Any], double: Mapping[str, Any]) -> str | None:
    """Return the library's output of that name and shape, or else the nearest of those of its shape."""
    same = [key for key, other in single.items() if other.shape[1:] == value.shape[1:]]
    if name in same:
        return name
    return min(same, key=lambda key: _relative(double[key][: len(value)], value), default=None)


def _relative(reference: Any, found: Any) -> float:
    """Return max |difference| / max |reference|; infinite where a value is not finite."""
    import numpy as np

    if reference.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    difference = np.abs(reference.astype(np.float64) - found.astype(np.float64)).max()
    return float(difference / max(np.abs(reference).max(), 1e-30))


def _pictures(folder: Path) -> list[Any]:
    """Write and return images of waves and noise, seeded: the zoo measures arithmetic and needs no photographs."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(7)
    pictures = []
    for index in range(_IMAGES):
        rows, columns = np.mgrid[0:1:256j, 0:1:256j]
        waves = [np.sin(2 * np.pi * (a * rows + b * columns)) for a, b in generator.uniform(0.5, 6, size=(3, 2))]
        noise = generator.normal(scale=12, size=(256, 256, 3))
        pixels = np.clip(127 + 90 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
        pictures.append(Image.fromarray(pixels))
        pictures[-1].save(folder / f"{index:02}.png")
    return pictures


STEPS: dict[str, Callable[[ZooRow, Path], dict[str, Any]]] = {
    "build": _build,
    "export": _export,
    "int8": _int8,
    "plain": _plain,
}
"""In order; each reads what those before it left in the folder."""
