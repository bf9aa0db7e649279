"""From the values of a model's tensors to what to write into the recipe. No GPU and no build is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from vitexport.host.diagnose.anatomy import Anatomy, TensorFacts
from vitexport.host.quantize.numerics.qparams import FLOAT16_MAX

__all__ = ["Advice", "advise", "recipe_of"]

_HEADROOM = 4.0
"""Other images have larger values than these; a tensor should stay this factor below the limit."""

_HEAD_SIZES = (16, 32, 64)
_LONGEST = 512
"""Fused int8 attention of TensorRT takes head sizes 16, 32 and 64 and at most 512 tokens (TensorRT developer guide)."""


@dataclass(frozen=True)
class Advice:
    """One finding.

    Attributes:
        level: ``ok``, ``note`` or ``warning``.
        topic: What it is about.
        finding: What was measured.
        why: What will happen because of it, and what to do.
        settings: To merge into the recipe, or None.
    """

    level: str
    topic: str
    finding: str
    why: str
    settings: dict[str, Any] | None = None


def advise(anatomy: Anatomy) -> tuple[Advice, ...]:
    """Turn measurements into findings, the most serious first."""
    advice = [*_body16(anatomy), *_outliers(anatomy), *_gelu(anatomy), *_softmax(anatomy), *_fusion(anatomy)]
    return tuple(sorted(advice, key=lambda entry: ("warning", "note", "ok").index(entry.level)))


def recipe_of(advice: tuple[Advice, ...]) -> str:
    """Return the settings of all findings as YAML to paste; empty when there are none."""
    merged: dict[str, Any] = {}
    for entry in advice:
        for stage, settings in (entry.settings or {}).items():
            merged.setdefault(stage, {}).update(settings)
    return yaml.safe_dump(merged, sort_keys=False) if merged else ""


def _body16(anatomy: Anatomy) -> Iterator[Advice]:
    widest = max(anatomy.tensors, key=lambda entry: entry.largest)
    finding = f"the largest value is {widest.largest:,.1f} ({widest.layer}, {widest.role})"
    if widest.largest > FLOAT16_MAX:
        yield Advice(
            "warning",
            "fp16",
            finding,
            f"float16 ends at {FLOAT16_MAX:,.0f}: this becomes infinite and everything after it NaN. Use bf16, which "
            "has float32's range, or int8 with a float32 body.",
            {"quantize": {"precision": "bf16"}},
        )
    elif widest.largest > FLOAT16_MAX / _HEADROOM:
        yield Advice(
            "warning",
            "fp16",
            finding,
            f"only {FLOAT16_MAX / widest.largest:.1f} times below where float16 ends; another image may overflow. "
            "Prefer bf16.",
            {"quantize": {"precision": "bf16"}},
        )
    else:
        yield Advice(
            "ok",
            "fp16",
            finding,
            f"{FLOAT16_MAX / widest.largest:,.0f} times below where float16 ends ({FLOAT16_MAX:,.0f}).",
        )


def _outliers(anatomy: Anatomy) -> Iterator[Advice]:
    norms = [entry for entry in anatomy.tensors if entry.role == "norm" and entry.outliers]
    if not norms:
        worst = max((e for e in anatomy.tensors if e.role == "norm"), key=lambda e: e.worst_ratio, default=None)
        if worst is not None:
            ratio = f"the widest channel is {worst.worst_ratio:.1f} times the median one ({worst.layer})"
            yield Advice("ok", "LayerNorm outliers", ratio, "One int8 scale per tensor serves all channels.")
        return
    worst = max(norms, key=lambda entry: entry.worst_ratio)
    channels = ", ".join(str(index) for index in worst.outliers[:4])
    yield Advice(
        "warning",
        "LayerNorm outliers",
        f"{len(norms)} LayerNorm outputs have channels more than 20 times the median; the widest is {worst.layer} "
        f"(channel {channels}: {worst.worst_ratio:.0f} times)",
        "One scale per tensor leaves the other channels a few levels. The default preset searches channel scales that "
        "move this into the weights; do not use the fast preset, and set an accuracy gate.",
        {"quantize": {"preset": "default"}, "gates": {"max_top1_drop": 1.0, "on_failure": "fallback"}},
    )


def _gelu(anatomy: Anatomy) -> Iterator[Advice]:
    activations = [entry for entry in anatomy.tensors if entry.role == "activation"]
    if not activations:
        return
    worst = max(activations, key=_tail)
    one_sided = [entry for entry in activations if entry.high > 4 * -entry.low]
    text = (
        f"outputs lie between {min(e.low for e in activations):.2f} and {max(e.high for e in activations):.1f}; "
        f"the longest tail is {worst.layer}: largest {worst.largest:.1f}, 99.9 % below {worst.p999:.2f}"
    )
    if _tail(worst) > 4:
        yield Advice(
            "warning",
            "activation tails",
            text,
            "A few values are many times larger than the rest, and clipping them costs more than a coarse scale: keep "
            "the range search (method auto), and let a budget keep this layer in float if need be.",
            {"quantize": {"method": "auto", "budget": {"min_agreement": 0.98}}},
        )
    elif one_sided:
        yield Advice(
            "note",
            "activation tails",
            text,
            f"{len(one_sided)} of {len(activations)} use almost only the positive half; symmetric int8 wastes the "
            "other. The default preset shifts them by a multiple of the scale.",
            {"quantize": {"preset": "default"}},
        )


def _tail(entry: TensorFacts) -> float:
    return entry.largest / entry.p999 if entry.p999 > 0 else 1.0


def _softmax(anatomy: Anatomy) -> Iterator[Advice]:
    scores = [entry for entry in anatomy.tensors if entry.role == "scores"]
    if not scores:
        return
    worst = max(scores, key=lambda entry: entry.largest)
    text = f"scores reach {worst.largest:.1f} ({worst.layer})"
    if worst.largest > 60:
        yield Advice(
            "note",
            "attention scores",
            text,
            "Softmax is saturated: most heads pick single tokens, and int8 scores would round their order away. Keep "
            "attention in float.",
            {"quantize": {"attention": "float"}},
        )
    else:
        yield Advice("ok", "attention scores", text, "Well inside of what softmax separates in 16 bits.")


def _fusion(anatomy: Anatomy) -> Iterator[Advice]:
    if not anatomy.attentions:
        yield Advice("note", "attention fusion", "no attention was recognised", "Runtimes will run it as single nodes.")
        return
    first = anatomy.attentions[0]
    sizes = sorted({(entry.head_size, entry.sequence) for entry in anatomy.attentions})
    text = ", ".join(f"head size {head}, {tokens} tokens" for head, tokens in sizes)
    fits = all(head in _HEAD_SIZES and tokens <= _LONGEST for head, tokens in sizes)
    if fits:
        yield Advice(
            "ok",
            "attention fusion",
            f"{len(anatomy.attentions)} attentions of {first.heads} heads: {text}",
            "TensorRT can fuse it in int8 (compute capability 7.5 and later).",
        )
    else:
        yield Advice(
            "note",
            "attention fusion",
            f"{len(anatomy.attentions)} attentions: {text}",
            f"TensorRT fuses int8 attention only for head sizes {', '.join(map(str, _HEAD_SIZES))} and at most "
            f"{_LONGEST} tokens: int8 attention would run unfused and slower.",
            {"quantize": {"attention": "float"}},
        )
