"""Vision Transformers from PyTorch to production, with proof.

vitexport exports a Vision Transformer to ONNX, quantizes it with real calibration images, builds TensorRT engines, and
checks on real images that what runs there still matches PyTorch. Every command of the command line is a function here
(`predict` is :class:`Predictor`, and :func:`predict_files` for many)::

    import vitexport as vx

    bundle = vx.run("recipes/quickstart.yaml", "out/quickstart", progress=True)    # everything, as a recipe says
    print(bundle.passed, bundle.verification)

    vx.export("google/vit-base-patch16-224", "vit.onnx")                           # one stage at a time
    vx.quantize("vit.onnx", images="calib/", target="tensorrt", out="vit-int8.onnx")

    vx.verify("out/quickstart")                                                    # on any machine, without PyTorch
    with vx.Predictor.open("out/quickstart") as predictor:
        print(predictor.predict("photo.jpg"))

Paths are ``str`` or ``Path``. Results are small frozen objects: ``to_dict()`` gives plain values, ``print`` a table, a
notebook shows the same. Long work takes ``progress=True`` for a bar, or a function that gets every
:class:`StepEvent`. A model that does not match PyTorch is a result (``passed`` is False); what could not be done at all
raises a :class:`VitexportError` that says what was expected, found, and what to do; its kinds are in
``vitexport.errors``.

Importing this module imports nothing else; each function imports what it needs when it is first used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # what type checkers take for true, without the milliseconds that importing typing takes
if TYPE_CHECKING:
    from vitexport.api.analysis import bisect as bisect
    from vitexport.api.analysis import diagnose as diagnose
    from vitexport.api.analysis import lint as lint
    from vitexport.api.bench import bench as bench
    from vitexport.api.checks import evaluate as evaluate
    from vitexport.api.checks import verify as verify
    from vitexport.api.deploy import deepstream as deepstream
    from vitexport.api.deploy import kit as kit
    from vitexport.api.deploy import triton as triton
    from vitexport.api.engine import build_engine as build_engine
    from vitexport.api.engine import refit as refit
    from vitexport.api.engine import trtexec as trtexec
    from vitexport.api.inspection import inspect as inspect
    from vitexport.api.labels import labels as labels
    from vitexport.api.machine import doctor as doctor
    from vitexport.api.machine import models as models
    from vitexport.api.predict import predict_files as predict_files
    from vitexport.api.run import run as run
    from vitexport.api.serving import serve as serve
    from vitexport.api.stages import export as export
    from vitexport.api.stages import quantize as quantize
    from vitexport.api.stages import simplify as simplify
    from vitexport.bundle.bundle import Bundle as Bundle
    from vitexport.errors import VitexportError as VitexportError
    from vitexport.files import StepEvent as StepEvent
    from vitexport.inputs.preprocess import PreprocessSpec as PreprocessSpec
    from vitexport.predict.predictor import Predictor as Predictor
    from vitexport.runtimes.base import RuntimeOptions as RuntimeOptions

__version__ = "0.1.0"

# public name -> module that defines it, imported when the name is first used
_EXPORTS = {
    "Bundle": "vitexport.bundle.bundle",
    "Predictor": "vitexport.predict.predictor",
    "PreprocessSpec": "vitexport.inputs.preprocess",
    "RuntimeOptions": "vitexport.runtimes.base",
    "StepEvent": "vitexport.files",
    "VitexportError": "vitexport.errors",
    "bench": "vitexport.api.bench",
    "bisect": "vitexport.api.analysis",
    "build_engine": "vitexport.api.engine",
    "deepstream": "vitexport.api.deploy",
    "diagnose": "vitexport.api.analysis",
    "doctor": "vitexport.api.machine",
    "evaluate": "vitexport.api.checks",
    "export": "vitexport.api.stages",
    "inspect": "vitexport.api.inspection",
    "labels": "vitexport.api.labels",
    "kit": "vitexport.api.deploy",
    "lint": "vitexport.api.analysis",
    "models": "vitexport.api.machine",
    "predict_files": "vitexport.api.predict",
    "quantize": "vitexport.api.stages",
    "refit": "vitexport.api.engine",
    "run": "vitexport.api.run",
    "serve": "vitexport.api.serving",
    "simplify": "vitexport.api.stages",
    "triton": "vitexport.api.deploy",
    "trtexec": "vitexport.api.engine",
    "verify": "vitexport.api.checks",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vitexport' has no attribute '{name}'")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
