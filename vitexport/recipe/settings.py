"""What the user writes: one YAML file that says everything, validated at the edge.

Every stage's settings are a frozen model of their own, so that a stage sees only what concerns it and its settings can
be hashed for resume. Paths in a recipe are relative to the recipe file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vitexport.bundle.metadata import Task
from vitexport.engine_settings import EngineSettings
from vitexport.errors import RecipeError

__all__ = [
    "BenchmarkSettings",
    "Budget",
    "DataSettings",
    "EngineSettings",
    "ExportSettings",
    "Gates",
    "ImageSet",
    "ModelSettings",
    "QuantizeSettings",
    "Recipe",
    "SimplifySettings",
    "Tolerance",
    "VerifySettings",
    "load_recipe",
    "parse_recipe",
]

Target = Literal["tensorrt", "ort-x86", "ort-arm64", "portable"]
Precision = Literal["int8", "fp8", "fp16", "bf16"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Settings):
    """Which checkpoint.

    Attributes:
        source: Hub id, Hugging Face directory, ``timm:NAME`` or ``timm:local-dir:PATH``.
        task: ``classify`` or ``features``; None takes what the checkpoint was saved for.
        revision: Hub branch, tag or commit.
        allow_pickle: Accept a pickle checkpoint (still loaded with ``weights_only=True``).
    """

    source: str
    task: Task | None = None
    revision: str | None = None
    allow_pickle: bool = False


class ImageSet(_Settings):
    """A folder of images.

    Attributes:
        images: Folder, searched recursively.
        labels: JSON file with the class of each image; None looks for ``manifest.json`` in the folder, then for class
            folders.
        limit: Use only the first so many, in sorted order.
    """

    images: Path
    labels: Path | None = None
    limit: int | None = Field(default=None, ge=1)


class DataSettings(_Settings):
    """Images: ``calibration`` for quantization, ``verification`` (never the same files) for the proof."""

    calibration: ImageSet | None = None
    verification: ImageSet


class ExportSettings(_Settings):
    """PyTorch to ONNX.

    Attributes:
        batch: ``dynamic`` or a fixed batch size.
        opset: ONNX opset; 20 is the first with Gelu as a single node.
        image_size: (height, width) in pixels, or None for the checkpoint's own.
        input: ``float32`` NCHW normalized planes, or ``uint8`` NHWC pixels with the normalization folded into the
            graph.
    """

    batch: Literal["dynamic"] | int = "dynamic"
    opset: int = Field(default=20, ge=17, le=23)
    image_size: tuple[int, int] | None = None
    input: Literal["float32", "uint8"] = "float32"

    @field_validator("batch")
    @classmethod
    def _positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("batch must be 'dynamic' or at least 1")
        return value


class SimplifySettings(_Settings):
    """Graph simplification.

    Attributes:
        onnxsim: Run onnxsim before the canonical ViT passes.
    """

    onnxsim: bool = True


class Budget(_Settings):
    """What a mixed-precision search may lose; None means not limited.

    Attributes:
        max_top1_drop: Points of top-1 (or of agreement, without labels) against float32.
        min_agreement: Top-1 agreement with float32, 0 to 1.
        min_sqnr_db: Logit signal-to-quantization-noise ratio in dB.
    """

    max_top1_drop: float | None = Field(default=None, ge=0)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_sqnr_db: float | None = None


class QuantizeSettings(_Settings):
    """Post-training quantization.

    Attributes:
        precision: ``int8``, ``fp8`` (E4M3), or a 16-bit body only.
        target: Which runtime the Q/DQ form is made for.
        attention: ``int8`` also quantizes the attention batch matmuls, all or nothing per block.
        preset: ``default``, or ``fast`` which skips every search.
        method: How activation ranges are found; ``auto`` chooses per tensor by measured layer-output error.
        margin: Fraction added to every activation range; None lets the method decide.
        rounding: ``learned`` compensates each weight's rounding error in later weights (GPTQ); ``nearest`` does not.
        batch_size: Calibration images decoded at a time; changes memory, never a result.
        budget: Search for layers to keep in float until this holds.
    """

    precision: Precision = "int8"
    target: Target = "ort-x86"
    attention: Literal["float", "int8"] = "float"
    preset: Literal["default", "fast"] = "default"
    method: Literal["auto", "max", "percentile", "entropy", "mse"] = "auto"
    margin: float | None = Field(default=None, ge=0, le=1)
    rounding: Literal["learned", "nearest"] = "learned"
    batch_size: int = Field(default=8, ge=1)
    budget: Budget | None = None


class Tolerance(_Settings):
    """Agreement that a rung must reach with PyTorch; None means not checked, and the report says so.

    Attributes:
        max_abs: Largest absolute difference of any output element.
        max_rel: Largest absolute difference over the largest reference magnitude.
        min_cosine: Smallest per-image cosine similarity.
        min_sqnr_db: Signal-to-noise ratio over all images, in dB.
        min_agreement: Share of images with the same top-1 class, 0 to 1.
    """

    max_abs: float | None = Field(default=None, ge=0)
    max_rel: float | None = Field(default=None, ge=0)
    min_cosine: float | None = None
    min_sqnr_db: float | None = None
    min_agreement: float | None = Field(default=None, ge=0, le=1)


class VerifySettings(_Settings):
    """Parity against PyTorch.

    Attributes:
        float_tolerance: For the rungs that compute in float32.
        quantized_tolerance: For the rungs that do not.
        batch_size: Images per run.
        replay_images: How many inputs travel with the bundle, so that another machine can repeat the comparison.
    """

    float_tolerance: Tolerance = Tolerance(max_rel=1e-4, min_agreement=1.0)
    quantized_tolerance: Tolerance = Tolerance(min_cosine=0.9, min_agreement=0.9)
    batch_size: int = Field(default=16, ge=1)
    replay_images: int = Field(default=64, ge=1)


class BenchmarkSettings(_Settings):
    """Latency measurement.

    Attributes:
        batch: Batch sizes.
        seconds: Measured time per rung and batch size, in seconds.
        warmup: Runs before measuring.
        threads: Threads of the runtime; None lets the runtime choose.
    """

    batch: tuple[int, ...] = (1,)
    seconds: float = Field(default=2.0, gt=0)
    warmup: int = Field(default=5, ge=0)
    threads: int | None = Field(default=None, ge=1)


class Gates(_Settings):
    """What the final rung must reach to be accepted; None means not checked, and the report says so.

    Attributes:
        max_top1_drop: Points of top-1 lost against PyTorch on the labelled images.
        min_agreement: Top-1 agreement with PyTorch, 0 to 1.
        min_cosine: Smallest per-image cosine similarity with PyTorch.
        min_speedup: Speed against the ``baseline`` rung on the same runtime, measured interleaved.
        max_size_ratio: File size against the ``baseline`` rung.
        min_actual_precision: Share of the multiply-accumulates with weights that the runtime really executes in the
            rung's precision, 0 to 1, read from the runtime's own profile or engine.
        baseline: Rung that speed and size are compared with: what the final one replaces.
        on_failure: ``fail`` ends with exit code 3; ``ladder`` tries the next safer quantization first, down to none.
    """

    max_top1_drop: float | None = Field(default=None, ge=0)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_cosine: float | None = None
    min_speedup: float | None = Field(default=None, gt=0)
    max_size_ratio: float | None = Field(default=None, gt=0)
    min_actual_precision: float | None = Field(default=None, gt=0, le=1)
    baseline: str = "simplified"
    on_failure: Literal["fail", "ladder"] = "fail"

    def limits(self) -> dict[str, float | None]:
        """Return every limit by name; None where it is not set."""
        return {name: value for name, value in self.model_dump().items() if name not in ("baseline", "on_failure")}


class Recipe(_Settings):
    """A whole run. ``name`` is for people; everything else is settings of one stage."""

    name: str
    model: ModelSettings
    data: DataSettings
    export: ExportSettings = ExportSettings()
    simplify: SimplifySettings = SimplifySettings()
    quantize: QuantizeSettings | None = QuantizeSettings()
    engine: EngineSettings | None = None
    verify: VerifySettings = VerifySettings()
    gates: Gates = Gates()
    benchmark: BenchmarkSettings = BenchmarkSettings()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and make its relative paths absolute.

    Raises:
        RecipeError: The file is missing, is not YAML, or does not describe a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Expected a recipe at '{path}', found: {error}", "Give the path of a YAML file.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"'{path}' is not valid YAML: {error}", "Fix the syntax at that position.") from error
    return _resolve_paths(parse_recipe(data, where=str(path)), path.resolve().parent)


def parse_recipe(data: object, *, where: str) -> Recipe:
    """Validate recipe data.

    Args:
        data: What YAML made of the file.
        where: Name of the file, for error messages.

    Raises:
        RecipeError: Names every wrong key by its path in the file, with a suggestion where one is close.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(
            f"Expected '{where}' to hold a mapping of settings, found {type(data).__name__}.",
            "A recipe starts with `name:`, `model:` and `data:`; see recipes/ for examples.",
        )
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors()]
        raise RecipeError(
            f"'{where}' has {len(lines)} wrong setting{'s' * (len(lines) > 1)}:\n" + "\n".join(f"  {x}" for x in lines),
            "Correct the named keys; docs/recipes.md lists all of them.",
        ) from error


def _explain(item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    dotted = ".".join(location)
    if item["type"] != "extra_forbidden":
        found = "" if item["type"] == "missing" else f", found {item['input']!r}"
        return f"{dotted}: {item['msg']}{found}"
    known = list(_settings_at(location[:-1]))
    close = difflib.get_close_matches(location[-1], known, n=1)
    suggestion = f"did you mean '{close[0]}'?" if close else f"known keys here: {', '.join(known)}"
    return f"{dotted}: unknown key; {suggestion}"


def _settings_at(location: list[str]) -> Mapping[str, object]:
    """Return the fields of the settings model found by following ``location`` from the recipe."""
    model: type[BaseModel] = Recipe
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return model.model_fields


def _resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    """Make relative paths absolute; a model source is a path only if that path exists."""

    def image_set(images: ImageSet | None) -> ImageSet | None:
        if images is None:
            return None
        labels = None if images.labels is None else base / images.labels
        return images.model_copy(update={"images": base / images.images, "labels": labels})

    data = recipe.data.model_copy(
        update={"calibration": image_set(recipe.data.calibration), "verification": image_set(recipe.data.verification)}
    )
    source = recipe.model.source
    prefix = "timm:local-dir:" if source.startswith("timm:local-dir:") else ""
    local = base / source.removeprefix(prefix)
    if prefix or local.exists():
        source = f"{prefix}{local.resolve()}"
    return recipe.model_copy(update={"data": data, "model": recipe.model.model_copy(update={"source": source})})
