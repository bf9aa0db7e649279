"""The API of real TensorRT releases, read from their Python bindings without their libraries.

The bindings of every release are wheels of about 1 MB on the package index; the libraries they link to are not. They
can be imported all the same when the nine C functions they look up exist, so a shared library of nine empty functions
is compiled and put where the loader finds it. What was read is kept in ``tests/engine/fixtures/surfaces``, so that the
tests that use it always run; one test holds the record against the bindings wherever they can be had.

``python -m tests.support.tensorrt_surfaces`` writes the record again. With the name of a module this file is also the
program of the subprocess that imports one release and prints its API.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

# release -> (requirement for pip, module inside the wheel, major version in the library names)
RELEASES = {
    "10.3": ("tensorrt-cu12-bindings==10.3.0", "tensorrt_bindings", "10"),
    "10.13": ("tensorrt-cu13-bindings==10.13.*", "tensorrt_bindings", "10"),
    "11.4": ("tensorrt-cu13-bindings==11.4.*", "tensorrt_bindings", "11"),
}

SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


RECORDS = Path(__file__).resolve().parents[1] / "engine" / "fixtures" / "surfaces"


# Classes of what the parser makes and the backend only reads; the fake has simpler stand-ins for them.
PARSED = {
    "ITensor": ("name", "shape", "dtype", "get_dimension_name"),
    "ILayer": ("type", "name", "metadata", "num_inputs", "num_outputs", "get_input", "get_output"),
    "IMatrixMultiplyLayer": ("op0",),
    "IConvolutionLayer": ("kernel_size_nd", "num_groups"),
    "IAttentionInputLayer": ("attention",),
    "IAttention": ("decomposable",),
    "ParserError": ("code", "desc", "node", "node_name", "node_operator"),
}

# Methods called with keyword arguments: their signatures are part of what is used.
DOCUMENTED = ("IBuilderConfig.set_timing_cache",)


class Unavailable(Exception):
    """The bindings or a compiler cannot be had here."""


def cache_folder() -> Path:
    """Where wheels and stubs are kept between test runs, outside the repository."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "vitexport-tests" / "tensorrt-bindings"


def surface(release: str) -> dict[str, Any]:
    """Return classes with their attributes, and enums with their members, of one release.

    Raises:
        Unavailable: The registry cannot be reached, has no wheel for this Python, or there is no C compiler.
    """
    requirement, module, major = RELEASES[release]
    folder = cache_folder() / f"{release}-py{sys.version_info[0]}{sys.version_info[1]}"
    if not (folder / module).is_dir():
        _download(requirement, folder)
    stubs = cache_folder() / f"stubs-{major}"
    _compile_stubs(stubs, major)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, __file__, module], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"the bindings of {release} do not import: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def recorded(release: str) -> dict[str, Any]:
    """Return what the record says of a release."""
    found: dict[str, Any] = json.loads((RECORDS / f"{release}.json").read_text(encoding="utf-8"))
    return found


def used(found: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an API that the fake, and so the backend, has to do with."""
    from tests.support.fake_tensorrt.machine import Machine

    names = [name for name in vars(Machine(ahead_of_time=True).tensorrt) if not name.startswith("_")]
    names = list(dict.fromkeys([*names, *PARSED]))
    kept = {key: {name: found[key][name] for name in names if name in found[key]} for key in ("classes", "enums")}
    documents = {name: text for name, text in found["documents"].items() if name in DOCUMENTED}
    return {"version": found["version"], **kept, "documents": documents}


def _download(requirement: str, folder: Path) -> None:
    """Unpack a wheel into ``folder``, in one step: tests in another process may do the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wheels, unpacked = Path(temporary) / "wheels", Path(temporary) / "unpacked"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(wheels)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=300, check=False)
        found = list(wheels.glob("*.whl")) if done.returncode == 0 else []
        if not found:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise Unavailable(f"'{requirement}' cannot be downloaded: {reason}")
        with zipfile.ZipFile(found[0]) as wheel:
            wheel.extractall(unpacked)
        with suppress(OSError):  # the other was faster, with the same
            unpacked.replace(folder)


def _compile_stubs(folder: Path, major: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unavailable("there is no C compiler to make stub libraries with")
    folder.mkdir(parents=True, exist_ok=True)
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{library}.so.{major}"
        if (folder / name).exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            source, made = Path(temporary) / "stubs.c", Path(temporary) / name
            source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}"]
            subprocess.run([compiler, *flags, "-o", str(made), str(source)], check=True, timeout=120)
            made.replace(folder / name)


def describe(module: Any) -> dict[str, Any]:
    """Return what a module of bindings offers."""
    classes: dict[str, list[str]] = {}
    enums: dict[str, dict[str, int]] = {}
    documents: dict[str, str] = {}
    for name in dir(module):
        value = getattr(module, name)
        members = getattr(value, "__members__", None)
        if members:
            enums[name] = {key: int(member) for key, member in members.items()}
        elif inspect.isclass(value):
            classes[name] = [attribute for attribute in dir(value) if not attribute.startswith("_")]
            for attribute in classes[name]:
                documents[f"{name}.{attribute}"] = (getattr(value, attribute).__doc__ or "").split("\n")[0]
    return {"version": module.__version__, "classes": classes, "enums": enums, "documents": documents}


def record() -> None:
    """Write the record of every release."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    for release in RELEASES:
        text = json.dumps(used(surface(release)), indent=1, sort_keys=True)
        (RECORDS / f"{release}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(describe(importlib.import_module(sys.argv[1]))))
    else:
        record()
