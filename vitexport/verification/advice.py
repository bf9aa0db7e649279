"""What to try after a rejection, in order of promise: from what failed, and what the recipe has not used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import ERRORS, read_analysis
from vitexport.recipe.settings import WITH_16_BIT_KERNELS, Budget, Gates, QuantizeSettings, Recipe
from vitexport.verification.gates import GATES
from vitexport.verification.result import VerificationResult

__all__ = ["accuracy_budget", "advise", "advise_on", "worst_layers"]

_NAMED = 3
"""Layers that are proposed to stay in float."""

_EXCLUDABLE = ("qkv", "proj", "fc1", "fc2")
"""Roles of the layers that a quantization can leave in float."""

_OBTAINABLE = 50_000
"""More labelled images than this (the validation set of ImageNet-1k) are no advice."""

_DEFAULT_DROP = 1.0
"""Points that a budget allows where no gate says how many."""

_EIGHT_BITS = ("int8", "fp8")


def advise(verification: VerificationResult, recipe: Recipe, worst: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what to try next, the most promising first; nothing for a run that passed.

    Args:
        verification: The verdict of a run.
        recipe: What was asked for.
        worst: Names of the layers that lose most, the worst first; see :func:`worst_layers`.
    """
    if verification.passed or len(verification.variants) < 2:
        return ()
    checks = [check for check in verification.checks if check.passed is False]
    if checks:  # what surrounds the models is wrong, and so is every figure
        return tuple(
            f"Put this right before anything else (checked: {check.name}): {check.finding}" for check in checks
        )
    floats = [one.name for one in verification.variants if one.precision == "float32" and one.parity and not one.passed]
    if floats:
        return (
            f"{floats[0]} is float32 and differs already, so that no setting of the quantization helps: find the layer "
            f"with `vitexport bisect BUNDLE --variant {floats[-1]}`, or widen verify.float_tolerance.",
        )
    found = [*_not_run(verification, recipe), *_not_measured(verification)]
    failed = [gate for gate in verification.gates if not gate.passed and gate.value is not None]
    gains = [gate.gate for gate in failed if GATES[gate.gate].asks_gain]
    parity = verification.variants[-1].parity
    if len(failed) > len(gains) or (parity is not None and not parity.passed):
        found += _accuracy(verification, recipe, worst)
    if gains:
        found += _gain(gains, recipe)
    return tuple(found)


def advise_on(bundle: Bundle, verification: VerificationResult, recipe: Recipe) -> tuple[str, ...]:
    """Return :func:`advise` of a bundle, with the layers that its error analysis names, if it has one."""
    errors = read_analysis(bundle, ERRORS) or {}
    return advise(verification, recipe, worst_layers(errors, verification.variants[-1].name))


def accuracy_budget(gates: Gates) -> Budget:
    """Return the budget of a search for float layers that asks for what the gates ask for."""
    asked = Budget(max_top1_drop=gates.max_top1_drop, min_agreement=gates.min_agreement)
    return Budget(max_top1_drop=_DEFAULT_DROP) if asked == Budget() else asked


def worst_layers(errors: Mapping[str, Any], variant: str) -> tuple[str, ...]:
    """Return the layers that add most error of their own, the worst first, by the names that ``exclude`` takes.

    Args:
        errors: The error analysis of a bundle.
        variant: Name of the quantized variant.
    """
    culprits = errors.get("variants", {}).get(variant, {}).get("culprits", [])
    return tuple(culprit["layer"] for culprit in culprits if culprit["role"] in _EXCLUDABLE)


def _not_run(verification: VerificationResult, recipe: Recipe) -> Iterator[str]:
    for variant in verification.variants:
        if variant.not_run:
            yield (
                f"Judge {variant.name} on a machine that can run it: `vitexport verify BUNDLE`, or as an engine "
                f"`vitexport build-engine BUNDLE --variant {variant.name}` and `vitexport verify BUNDLE --engine`."
            )
            if recipe.quantize is not None and recipe.quantize.precision != "int8":
                yield "Or quantize to what runs here: --set quantize.precision=int8."


def _not_measured(verification: VerificationResult) -> Iterator[str]:
    if verification.variants[-1].not_run:
        return
    for gate in verification.gates:
        if gate.value is None:
            yield f"{gate.gate} could not be judged, {gate.note}: provide that, or leave the gate out."


def _accuracy(verification: VerificationResult, recipe: Recipe, worst: Sequence[str]) -> Iterator[str]:
    """Yield what brings accuracy back, from the surest and cheapest on."""
    settings, gates = recipe.quantize, recipe.gates
    if settings is not None:
        yield from _switched_off(settings)
        if settings.attention != "float":
            yield "Keep attention in float: --set quantize.attention=float."
        if settings.precision in _EIGHT_BITS:
            if settings.budget is None:
                limits = accuracy_budget(gates).model_dump(exclude_none=True)
                words = " ".join(f"--set quantize.budget.{name}={value:g}" for name, value in limits.items())
                yield f"Search for the fewest layers to keep in float: {words}."
            if gates.on_failure == "fail":
                yield "Let the run try the next safer quantization by itself: --set gates.on_failure=fallback."
            if worst:
                named = [*settings.exclude, *worst[:_NAMED]]
                yield f"Keep the layers in float that lose most: --set 'quantize.exclude=[{', '.join(named)}]'."
    yield from _more_images(verification, gates)
    if settings is not None and settings.precision in _EIGHT_BITS:
        if settings.target in WITH_16_BIT_KERNELS:
            yield "Compute in 16 bits: --set quantize.precision=fp16."
        else:
            changes = "--set quantize.target=tensorrt --set quantize.precision=fp16"
            yield f"Where a GPU may run it, compute in 16 bits: {changes}."


def _switched_off(settings: QuantizeSettings) -> Iterator[str]:
    """Yield the searches that the recipe leaves out, and that cost no speed."""
    if settings.precision != "int8":
        return
    if settings.preset == "fast":
        yield "Make the searches that the fast preset leaves out: --set quantize.preset=default."
    usual = QuantizeSettings()
    for name in ("method", "rounding", "rotate", "keep_float"):
        value, default = getattr(settings, name), getattr(usual, name)
        if value != default and not (name == "method" and settings.preset == "fast"):
            yield f"Let the quantizer choose again: --set quantize.{name}={default} (it is {value})."


def _more_images(verification: VerificationResult, gates: Gates) -> Iterator[str]:
    for gate in verification.gates:
        if gate.undecided and not gate.passed:
            accept = "--set gates.on_undecided=pass accepts what is not decided"
            if gate.images_needed is None or gate.images_needed > _OBTAINABLE:
                yield f"{gate.gate} is so near its limit that no number of images one could label decides it: {accept}."
            else:
                yield f"Verify on more images: about {gate.images_needed:,} would decide {gate.gate}; {accept}."


def _gain(failed: Sequence[str], recipe: Recipe) -> Iterator[str]:
    """Yield what brings speed, size or precision: less in float, or another runtime."""
    settings = recipe.quantize
    if settings is None:
        yield f"A float32 model gains nothing ({', '.join(failed)}): quantize it, --set quantize.precision=int8."
        return
    kept = [name for name in ("exclude", "budget") if getattr(settings, name)]
    if kept:
        yield f"Leave less in float: without {' and '.join(f'quantize.{name}' for name in kept)}."
    if settings.target == "tensorrt" and "min_speedup" in failed:
        yield "Judge its speed where it is meant to run: `vitexport build-engine BUNDLE`, then `vitexport bench`."
    elif "min_speedup" in failed:
        yield "Find the threads it is fastest with: `vitexport bench BUNDLE --tune`, then benchmark.threads."
    if recipe.gates.on_failure == "fallback":
        yield f"Ask for less ({', '.join(failed)}): nothing that was tried reaches it, and the report lists all of it."
    else:
        yield "Ship what it was to replace where nothing is gained: --set gates.on_failure=fallback."
