"""What a reader of a verdict must know although no limit was broken: noise, slowness, things nobody measured."""

from __future__ import annotations

import platform

from vitexport.recipe.settings import Recipe, Tolerance
from vitexport.scoring import Head
from vitexport.verification.parity import OutputParity
from vitexport.verification.result import LABELS_CHECK, VariantResult, VerificationResult

__all__ = ["headline", "remarks", "replaced_variant"]

SIGNIFICANT = 0.05
"""Below this McNemar p-value a difference in top-1 counts as real (the customary 5 % level)."""

SLOWER = 0.97
"""Below this speed ratio a variant is called slower; interleaved A/A runs of one model differ by up to 3 %."""


def replaced_variant(verification: VerificationResult) -> VariantResult | None:
    """Return the float variant that the final one stands in for, or None when the final one is float itself."""
    last = verification.variants[-1]
    if last.precision == "float32":
        return None
    return next(
        (
            variant
            for variant in reversed(verification.variants[:-1])
            if variant.precision == "float32" and variant.parity
        ),
        None,
    )


def headline(verification: VerificationResult, recipe: Recipe | None = None) -> str:
    """Return the verdict in one sentence; a speed is part of it only where the model is meant to run.

    Args:
        verification: The verdict.
        recipe: What was asked for: it says which runtime the model is meant for.
    """
    last = verification.variants[-1]
    if last.not_run:
        return f"{last.name} was not run: nothing here can execute it, so nothing is known of its answers."
    if last.parity is None:
        return "Nothing was compared with PyTorch."
    main = last.parity.main
    parts = []
    if main is not None:
        parts.append(_answers(main, verification.head, last.parity.images))
    base = replaced_variant(verification)
    ratio = _speedup(verification)
    if base is not None and ratio is not None and _meant_for(verification, recipe) is None:
        parts.append(f"runs at {ratio:.2f}x the speed of {base.name}")
    if base is not None and base.bytes and last.bytes:
        parts.append(f"takes {last.bytes / base.bytes:.0%} of its size")
    return f"{last.name} {_join(parts)}." if parts else f"{last.name} could not be compared with PyTorch."


def _answers(main: OutputParity, head: Head, images: int) -> str:
    """Say in words of the head how the answers compare with PyTorch's."""
    if main.agreement is not None:
        if head.task == "segment":
            return f"gives {main.agreement:.1%} of the places in {images} images the class that PyTorch gives"
        if head.scoring == "sigmoid":
            return f"decides {main.agreement:.1%} of the labels of {images} images as PyTorch does"
        return f"chooses the same class as PyTorch on {main.agreement:.1%} of {images} images"
    if main.correlation is not None:
        return f"follows PyTorch's values with a correlation of {main.correlation:.4f} on {images} images"
    if main.min_cosine is not None:
        return f"stays within a cosine of {main.min_cosine:.4f} of PyTorch on {images} images"
    return f"differs from PyTorch by at most {main.max_rel:.2g} of its largest output on {images} images"


def remarks(verification: VerificationResult, recipe: Recipe | None = None) -> tuple[str, ...]:
    """Return what the numbers do and do not show, one sentence each.

    Args:
        verification: The verdict.
        recipe: What was asked for, to say what of it has not been shown here.
    """
    labels = [f"Labels: {check.finding}." for check in verification.checks if check.name == LABELS_CHECK]
    elsewhere = _elsewhere(verification, recipe)
    speed = [] if elsewhere else _speed(verification)
    found = [*labels, *speed, *_accuracy(verification), *elsewhere]
    if len(verification.variants) > 1 and not verification.gates:
        found.append("No gate is set in the recipe: the variants were held to their tolerances only.")
    loose = [variant.name for variant in verification.variants if variant.parity and not _limited(variant)]
    if loose:
        found.append(f"No tolerance was checked for {', '.join(loose)}: every difference passes there.")
    return tuple(found)


def _speedup(verification: VerificationResult) -> float | None:
    """Return how much faster the last variant is than what it replaces; None where that was not measured."""
    last, base = verification.variants[-1], replaced_variant(verification)
    if base is None or not base.latency or not last.latency or base.runtime != last.runtime:
        return None
    return base.latency[0].p50_ms / last.latency[0].p50_ms


def _speed(verification: VerificationResult) -> list[str]:
    last, base = verification.variants[-1], replaced_variant(verification)
    if base is None:
        return []
    if not base.latency or not last.latency:
        return [f"Speed was not measured: whether {last.name} is faster than {base.name} is not known."]
    found = []
    for mine, other in zip(last.latency, base.latency, strict=False):
        ratio = other.p50_ms / mine.p50_ms
        if ratio < SLOWER and base.runtime == last.runtime:
            found.append(
                f"{last.name} is slower than {base.name}, which it replaces: {mine.p50_ms:.2f} ms against "
                f"{other.p50_ms:.2f} ms at batch {mine.batch} on {last.runtime} ({ratio:.2f}x)."
            )
    return found


def _accuracy(verification: VerificationResult) -> list[str]:
    last, before = verification.variants[-1], verification.variants[0].accuracy
    if last.not_run:
        return []
    if last.difference is None and last.accuracy is not None and before is not None:
        figures = zip(before.figures(), last.accuracy.figures(), strict=False)
        said = ", ".join(f"{name} {then} to {now}" for (name, then), (_, now) in figures)
        return [f"PyTorch to {last.name} on {last.accuracy.images} labelled images: {said}{_map_interval(last)}."]
    if verification.head.task != "classify":
        return [f"For the task {verification.head.task} no accuracy is measured: outputs were compared with PyTorch's."]
    if last.difference is None:
        return ["The images have no labels: answers were compared with PyTorch's, accuracy was not measured."]
    found = last.difference
    low, high = found.interval_points
    change = "no change" if found.drop_points == 0 else f"{-found.drop_points:+.2f} points"
    if found.p_value >= SIGNIFICANT:
        judgement = "too few images to tell from no change" if found.drop_points else "no sign of a change"
    else:
        judgement = "a real difference at the 5 % level"
    return [
        f"Top-1 of {last.name} against PyTorch: {change} on {found.images} images (95 % interval {0.0 - high:+.2f} to "
        f"{0.0 - low:+.2f} points, McNemar p = {found.p_value:.2g}): {judgement}."
    ]


def _map_interval(last: VariantResult) -> str:
    if last.map_difference is None:
        return ""
    low, high = last.map_difference.interval_points()
    return f"; the change of mAP is {0.0 - high:+.2f} to {0.0 - low:+.2f} points (95 % interval)"


def _elsewhere(verification: VerificationResult, recipe: Recipe | None) -> list[str]:
    """Say that a model has not run where it is meant to: its answers are known, its speed there is not."""
    meant = _meant_for(verification, recipe)
    if meant is None:
        return []
    last, base, ratio = verification.variants[-1], replaced_variant(verification), _speedup(verification)
    where = "was not run" if last.not_run else f"was measured on {_place(last.runtime)}"
    if base is not None and ratio is not None:
        where += f", where it runs at {ratio:.2f}x the speed of {base.name}, which says nothing of {meant}"
    then = "measure it there (`vitexport bench BUNDLE`), after `vitexport verify BUNDLE`."
    if meant == _TENSORRT:
        then = (
            "build the engine where it runs (`vitexport build-engine`), and check it there "
            "(`vitexport verify BUNDLE --engine`)."
        )
    return [f"The model is meant for {meant}, and {where}: {then}"]


_TENSORRT = "TensorRT"
_PROCESSORS = {"ort-x86": ("x86", ("x86_64", "amd64", "i686")), "ort-arm64": ("ARM", ("aarch64", "arm64"))}
"""Target of ONNX Runtime to its processors: their name, and what they call themselves."""


def _meant_for(verification: VerificationResult, recipe: Recipe | None) -> str | None:
    """Return what the last variant is meant to run on where that was not what ran it; None where it was."""
    if recipe is None:
        return None
    quantize, runtimes = recipe.quantize, [variant.runtime for variant in verification.variants]
    if recipe.engine is not None or (quantize is not None and quantize.target == "tensorrt"):
        return None if any(runtime.startswith("tensorrt") for runtime in runtimes) else _TENSORRT
    if quantize is None or quantize.target not in _PROCESSORS or verification.variants[-1].precision == "float32":
        return None
    name, machines = _PROCESSORS[quantize.target]
    return None if platform.machine().lower() in machines else f"ONNX Runtime on {name}"


def _place(runtime: str) -> str:
    return f"{runtime} ({platform.machine()})"


def _limited(variant: VariantResult) -> bool:
    """Whether at least one tolerance was set: parity lists every field of the tolerance that was not."""
    return variant.parity is not None and len(set(variant.parity.unchecked)) < len(Tolerance.model_fields)


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
