"""What the user writes: one YAML file that says everything, validated at the edge.

Every stage's settings are a frozen model of their own, so that a stage sees only what concerns it and its settings can
be hashed for resume. Paths in a recipe are relative to the recipe file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from vitexport.recipe.engine_settings import EngineSettings
from vitexport.recipe.frozen import Settings
from vitexport.scoring import Scoring, Task

__all__ = [
    "WITH_16_BIT_KERNELS",
    "Attention",
    "BenchmarkSettings",
    "Budget",
    "DataSettings",
    "ExportSettings",
    "Gates",
    "ImageSet",
    "ModelSettings",
    "QuantizeSettings",
    "Recipe",
    "Scoring",
    "SimplifySettings",
    "Task",
    "Tolerance",
    "VerifySettings",
]

Target = Literal["tensorrt", "ort-x86", "ort-arm64", "portable"]
WITH_16_BIT_KERNELS: frozenset[Target] = frozenset({"tensorrt", "portable"})
"""Targets that gain by a 16-bit body; ONNX Runtime's CPU kernels compute it in float32 behind casts."""

Precision = Literal["int8", "fp8", "fp16", "bf16"]
Attention = Literal["float", "int8", "int8-rows", "fp8"]


class ModelSettings(Settings):
    """Which checkpoint.

    Attributes:
        source: See :mod:`vitexport.source`: hub id, Hugging Face directory, ``timm:NAME``, ``timm:NAME@FILE`` or
            ``timm:local-dir:PATH``.
        task: ``classify``, ``segment``, ``depth`` or ``features``; None takes what the checkpoint was saved for.
        features: Names of the blocks whose outputs a features model gives, e.g. ``blocks.5``; empty for its last ones.
        class_names: File with the class names in the order of the outputs (``.txt`` with one a line, ``.json``,
            ``.csv``), or the directory of the training images, whose folders are in that order; None takes those of
            the checkpoint.
        scoring: What turns a classifier's logits into scores: ``softmax``, ``sigmoid`` (several labels at once, or a
            single one) or ``none`` (a regression); None takes what the checkpoint says.
        revision: Hub branch, tag or commit.
        allow_pickle: Accept a pickle checkpoint (still loaded with ``weights_only=True``).
    """

    source: str
    task: Task | None = None
    features: tuple[str, ...] = ()
    class_names: Path | None = None
    scoring: Scoring | None = None
    revision: str | None = None
    allow_pickle: bool = False


class ImageSet(Settings):
    """A folder of images.

    Attributes:
        images: Folder, searched recursively.
        labels: ``.csv``, ``.tsv``, ``.json`` or ``.jsonl`` file with the label of each image; None looks for
            ``manifest.json``, ``metadata.csv`` and ``metadata.jsonl`` in and beside the folder, then for class folders;
            ``none`` says that there are no labels, whatever the folders are called.
        file_column: Column of the file names in a table of labels; None takes a usual name.
        label_column: Column of the labels.
        limit: Use at most so many, spread evenly over the sorted files.
    """

    images: Path
    labels: Literal["none"] | Path | None = None
    file_column: str | None = None
    label_column: str | None = None
    limit: int | None = Field(default=None, ge=1)


class DataSettings(Settings):
    """Images: ``calibration`` for quantization, ``verification`` (never the same files) for the proof."""

    calibration: ImageSet | None = None
    verification: ImageSet


class ExportSettings(Settings):
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


class SimplifySettings(Settings):
    """Graph simplification.

    Attributes:
        onnxsim: Run onnxsim before the canonical ViT passes.
    """

    onnxsim: bool = True


class Budget(Settings):
    """What a mixed-precision search may lose; None means not limited.

    Attributes:
        max_top1_drop: Points of top-1 (or of agreement, without labels) against float32.
        min_agreement: Top-1 agreement with float32, 0 to 1.
        min_sqnr_db: Logit signal-to-quantization-noise ratio in dB.
    """

    max_top1_drop: float | None = Field(default=None, ge=0)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_sqnr_db: float | None = None


class QuantizeSettings(Settings):
    """Post-training quantization.

    Attributes:
        precision: ``int8``, ``fp8`` (E4M3), or a 16-bit body only.
        target: Which runtime the Q/DQ form is made for.
        attention: ``float``, or how the two products of attention are quantized too, all or nothing per block:
            ``int8`` in the form that TensorRT fuses into one kernel; ``int8-rows`` with each row of probabilities
            divided by its maximum before and multiplied after, which is more accurate and runs as separate kernels;
            ``fp8`` with precision ``fp8``.
        preset: ``default``, or ``fast`` which skips every search.
        method: How activation ranges are found; ``auto`` chooses per tensor by measured layer-output error.
        margin: Fraction added to every activation range; None lets the method decide.
        rotate: Rotate the input of every fc2 in blocks of 16 or 64 channels before it is quantized; ``auto`` chooses
            per block by what that gains in the layer's output, against its cost on the target.
        keep_float: ``auto`` leaves the few layers in float whose noise is large for the work they do; ``none`` none.
        exclude: Layers and attentions that stay float: names of PyTorch modules, groups (``7.fc2``), roles (``qkv``,
            ``proj``, ``fc1``, ``fc2``, ``attention``), or shell patterns on these. One that names nothing is an error.
        rounding: ``learned`` compensates each weight's rounding error in later weights (GPTQ); ``nearest`` does not.
        batch_size: Calibration images decoded at a time; changes memory, never a result.
        budget: Search for layers to keep in float until this holds.
    """

    precision: Precision = "int8"
    target: Target = "ort-x86"
    attention: Attention = "float"
    preset: Literal["default", "fast"] = "default"
    method: Literal["auto", "max", "percentile", "entropy", "mse"] = "auto"
    margin: float | None = Field(default=None, ge=0, le=1)
    rotate: Literal["auto", "none", "16", "64"] = "auto"
    keep_float: Literal["auto", "none"] = "auto"
    exclude: tuple[str, ...] = ()
    rounding: Literal["learned", "nearest"] = "learned"
    batch_size: int = Field(default=8, ge=1)
    budget: Budget | None = None

    @field_validator("attention")
    @classmethod
    def _same_precision(cls, value: Attention, info: ValidationInfo) -> Attention:
        precision = info.data.get("precision")
        if value == "float" or precision is None or value.removesuffix("-rows") == precision:
            return value
        fitting = [name for name in get_args(Attention) if name.removesuffix("-rows") in ("float", precision)]
        raise ValueError(f"with precision {precision} attention is {' or '.join(fitting)}")

    @field_validator("rotate", mode="before")
    @classmethod
    def _block_size(cls, value: object) -> object:
        """Take the number that YAML reads."""
        return str(value) if isinstance(value, int) else value


class Tolerance(Settings):
    """Agreement that a variant must reach with PyTorch; None means not checked, and the report says so.

    Attributes:
        max_abs: Largest absolute difference of any output element.
        max_rel: Largest absolute difference over the largest reference magnitude.
        min_cosine: Smallest per-image cosine similarity.
        min_sqnr_db: Signal-to-noise ratio over all images, in dB.
        min_agreement: Fraction of equal decisions, 0 to 1: of images with the same class, or of labels that are
            there in both or in neither.
        min_correlation: Pearson correlation of a regression's values over the images.
    """

    max_abs: float | None = Field(default=None, ge=0)
    max_rel: float | None = Field(default=None, ge=0)
    min_cosine: float | None = None
    min_sqnr_db: float | None = None
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_correlation: float | None = Field(default=None, ge=-1, le=1)


class VerifySettings(Settings):
    """Parity against PyTorch.

    Attributes:
        float_tolerance: For the variants that compute in float32.
        quantized_tolerance: For the variants that do not.
        batch_size: Images per run.
        threshold: Sigmoid score from which a label counts as there.
        replay_images: How many inputs travel with the bundle, so that another machine can repeat the comparison.
    """

    float_tolerance: Tolerance = Tolerance(max_rel=1e-4, min_agreement=1.0)
    quantized_tolerance: Tolerance = Tolerance(min_cosine=0.9, min_agreement=0.9, min_correlation=0.95)
    batch_size: int = Field(default=16, ge=1)
    threshold: float = Field(default=0.5, gt=0, lt=1)
    replay_images: int = Field(default=64, ge=1)


class BenchmarkSettings(Settings):
    """Latency measurement.

    Attributes:
        batch: Batch sizes.
        seconds: Measured time per variant and batch size, in seconds.
        warmup: Runs before measuring.
        threads: Threads of the runtime; None lets the runtime choose.
    """

    batch: tuple[int, ...] = (1,)
    seconds: float = Field(default=2.0, gt=0)
    warmup: int = Field(default=5, ge=0)
    threads: int | None = Field(default=None, ge=1)


class Gates(Settings):
    """What the final variant must reach to be accepted; None means not checked, and the report says so.

    Attributes:
        max_top1_drop: Points of top-1 lost against PyTorch on the labelled images.
        max_map_drop: Points of mean average precision lost against PyTorch, for several labels at once.
        max_mae: Mean absolute difference from PyTorch's values, in their unit, for a regression.
        min_correlation: Correlation with PyTorch's values, for a regression.
        min_agreement: Equal decisions with PyTorch, 0 to 1: of images with the same class, or of labels.
        min_cosine: Smallest per-image cosine similarity with PyTorch.
        min_speedup: Speed against the ``baseline`` variant on the same runtime, measured interleaved.
        max_size_ratio: File size against the ``baseline`` variant.
        min_actual_precision: Fraction of the multiply-accumulates with weights that the runtime really executes in the
            variant's precision, 0 to 1, read from the runtime's own profile or engine.
        baseline: Variant that speed and size are compared with: what the final one replaces.
        on_undecided: What it means that a figure misses its limit by less than its 95 % interval, so that there are too
            few images to tell: ``fail`` or ``pass``.
        on_failure: ``fail`` ends with exit code 3; ``fallback`` tries the next safer quantization first, down to none.
    """

    max_top1_drop: float | None = Field(default=None, ge=0)
    max_map_drop: float | None = Field(default=None, ge=0)
    max_mae: float | None = Field(default=None, ge=0)
    min_correlation: float | None = Field(default=None, ge=-1, le=1)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_cosine: float | None = None
    min_speedup: float | None = Field(default=None, gt=0)
    max_size_ratio: float | None = Field(default=None, gt=0)
    min_actual_precision: float | None = Field(default=None, gt=0, le=1)
    baseline: str = "simplified"
    on_undecided: Literal["pass", "fail"] = "fail"
    on_failure: Literal["fail", "fallback"] = "fail"

    def limits(self) -> dict[str, float | None]:
        """Return every limit by name; None where it is not set."""
        words = ("baseline", "on_undecided", "on_failure")
        return {name: value for name, value in self.model_dump().items() if name not in words}


class Recipe(Settings):
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
