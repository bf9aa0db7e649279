"""Several models, runtimes or thread counts timed against each other in one process, by turns.

What ``vitexport bench`` measures: subjects, what they are fed, their memory and power. The clock is
:mod:`vitexport.benchmark.latency`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vitexport.benchmark.latency import Latency, batch_run, resident_bytes, time_by_turns
from vitexport.benchmark.power import Power, PowerMeter, tegrastats
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_replay_inputs
from vitexport.bundle.target import resolve_target
from vitexport.errors import NoKernelError, RecipeError
from vitexport.inputs.shapes import Shapes, with_shapes
from vitexport.inputs.synthetic import synthetic_image
from vitexport.machine import usable_cores
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.tensors import Array, batch_limit

__all__ = [
    "Measured",
    "Model",
    "Subject",
    "find_models",
    "measure_subjects",
    "open_subject",
    "thread_counts",
    "time_models",
    "tune",
]

_NO_SHAPES: Shapes = MappingProxyType({})

_SAME = 1.03
"""Thread counts whose medians differ by less than this are as good as each other; the smaller one is then better."""


@dataclass(frozen=True)
class Model:
    """A model file, alone or of a bundle.

    Attributes:
        name: What the user knows it by.
        path: The file.
        bundle: Where its inputs come from; None for a single file.
    """

    name: str
    path: Path
    bundle: Bundle | None


@dataclass(frozen=True)
class Subject:
    """An opened model with something to feed it.

    Attributes:
        name: What the user knows it by.
        runtime: The opened model.
        feed: Images in the form it takes, on axis 0.
        memory_bytes: How much the process grew by opening it and running it once; None where that is not known.
    """

    name: str
    runtime: Runtime
    feed: Array
    memory_bytes: int | None

    def call(self, size: int) -> Callable[[], object]:
        """Return a function that runs ``size`` images once."""
        return batch_run(self.runtime, self.feed, size)

    def takes(self, size: int) -> bool:
        """Return whether the model accepts that batch size."""
        return batch_limit(self.runtime.inputs[0]) in (None, size)


@dataclass(frozen=True)
class Measured:
    """What one subject took at one batch size.

    Attributes:
        subject: Its name.
        runtime: Name of its runtime.
        latency: Its latency.
        speedup: Median over the rounds of the first subject's time over its own.
        memory_bytes: See :class:`Subject`.
        threads: Threads it was given, where those were compared.
        power: Mean power while it ran alone; None where tegrastats is not.
    """

    subject: str
    runtime: str
    latency: Latency
    speedup: float
    memory_bytes: int | None = None
    threads: int | None = None
    power: Power | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found: dict[str, Any] = {"model": self.subject, "runtime": self.runtime, **asdict(self.latency)}
        found |= {"speedup": self.speedup, "memory_bytes": self.memory_bytes}
        if self.threads is not None:
            found["threads"] = self.threads
        if self.power is not None:
            energy = self.power.joules_per_image(self.latency.images_per_second)
            found["power"] = {**asdict(self.power), "joules_per_image": energy}
        return found


def find_models(targets: Sequence[str | PathLike[str]]) -> tuple[Model, ...]:
    """Return the models of files and bundles; several bundles put their names in front.

    Raises:
        BundleError: Nothing is there, or a directory is no bundle, or was altered.
    """
    models: list[Model] = []
    for target in map(resolve_target, targets):
        prefix = f"{target.path.name}/" if target.bundle is not None and len(targets) > 1 else ""
        models += [Model(f"{prefix}{model.name}", model.path, target.bundle) for model in target.models]
    return tuple(models)


def open_subject(
    model: Model,
    runtime: str | None,
    options: RuntimeOptions,
    *,
    batch: int,
    name: str = "",
    shapes: Shapes = _NO_SHAPES,
) -> Subject:
    """Open a model and run it once.

    Args:
        model: The model.
        runtime: Runtime name; None takes the file's own.
        options: For the runtime.
        batch: Images of the first run; a model with a fixed batch takes its own.
        name: What to call it; the model's name otherwise.
        shapes: Sizes of dynamic axes of a single file, by the name of the input.

    Raises:
        RuntimeBackendError: The runtime refuses the model.
        RecipeError: A shape does not fit, or is missing.
    """
    before = resident_bytes()
    opened = open_runtime(model.path, runtime, options)
    with ExitStack() as undo:
        undo.callback(opened.close)
        subject = Subject(name or model.name, opened, _feed(opened, model, shapes), None)
        subject.call(batch_limit(opened.inputs[0]) or batch)()
        undo.pop_all()  # whoever asked for it closes it
    after = resident_bytes()
    grown = None if before is None or after is None else max(0, after - before)
    return replace(subject, memory_bytes=grown)


def measure_subjects(subjects: Sequence[Subject], size: int, *, seconds: float, warmup: int) -> tuple[Measured, ...]:
    """Time subjects by turns at one batch size; the first one is what the others are compared with.

    Where there is tegrastats, each one then runs alone for as long again, because power is sampled too slowly to be
    told apart between turns.

    Args:
        subjects: Those that take this batch size.
        size: Images per run.
        seconds: Measured time per subject.
        warmup: Runs of each before anything is measured.
    """
    calls = {subject.name: subject.call(size) for subject in subjects}
    timings = time_by_turns(calls, size, seconds=seconds, warmup=warmup)
    program = tegrastats()
    power = {name: _power_of(call, program, seconds) if program else None for name, call in calls.items()}
    return tuple(
        Measured(
            subject.name,
            subject.runtime.name,
            timings[subject.name].latency,
            timings[subject.name].speedup,
            subject.memory_bytes,
            power=power[subject.name],
        )
        for subject in subjects
    )


def _power_of(call: Callable[[], object], program: str, seconds: float) -> Power | None:
    with PowerMeter(program) as meter:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            call()
    return meter.power


def thread_counts(cores: int | None = None) -> tuple[int, ...]:
    """Return the thread counts worth comparing: powers of two and all cores this process may use."""
    if cores is None:
        cores = usable_cores()
    powers = {1 << bit for bit in range(cores.bit_length()) if 1 << bit <= cores}
    return tuple(sorted(powers | {cores}))


def tune(
    model: Model,
    runtime: str | None,
    options: RuntimeOptions,
    size: int,
    *,
    seconds: float,
    warmup: int,
    shapes: Shapes = _NO_SHAPES,
) -> tuple[Measured, ...]:
    """Time one model with every thread count of :func:`thread_counts`, by turns; the best comes first.

    Raises:
        RuntimeBackendError: The runtime refuses the model.
    """
    counts = {f"{count} threads": count for count in thread_counts()}
    with ExitStack() as opened:
        subjects: list[Subject] = []
        for name, count in counts.items():
            own = replace(options, threads=count)
            subject = open_subject(model, runtime, own, batch=size, name=name, shapes=shapes)
            opened.callback(subject.runtime.close)
            subjects.append(subject)
        _require_used(shapes, subjects)
        fitting = [subject for subject in subjects if subject.takes(size)]
        measured = measure_subjects(fitting, size, seconds=seconds, warmup=warmup)
    rows = [replace(row, subject=model.name, threads=counts[row.subject]) for row in measured]
    return ranked(rows)


def ranked(rows: Sequence[Measured]) -> tuple[Measured, ...]:
    """Return the rows with the best first: the fewest threads among those as fast as the fastest, then by median."""
    if not rows:
        return ()
    fastest = min(row.latency.p50_ms for row in rows)
    good = [row for row in rows if row.latency.p50_ms <= _SAME * fastest]
    best = min(good, key=lambda row: row.threads or 0)
    rest = sorted((row for row in rows if row is not best), key=lambda row: row.latency.p50_ms)
    return (best, *rest)


def _feed(runtime: Runtime, model: Model, shapes: Shapes) -> Array:
    """Return real inputs of a bundle, or a smooth synthetic image for a single file."""
    tensor = runtime.inputs[0]
    if model.bundle is not None:
        return read_replay_inputs(model.bundle).feed(tensor, model.bundle.preprocess)
    names = {spec.name for spec in runtime.inputs}
    own = {name: sizes for name, sizes in shapes.items() if name in names}
    return synthetic_image(with_shapes(runtime.inputs, own)[0])


def _require_used(shapes: Shapes, subjects: Sequence[Subject]) -> None:
    """Raise a RecipeError for a shape of an input that no model has."""
    names = dict.fromkeys(spec.name for subject in subjects for spec in subject.runtime.inputs)
    unknown = [name for name in shapes if name not in names]
    if subjects and unknown:
        raise RecipeError(
            f"Expected shapes of the inputs {', '.join(names)}, found one for '{unknown[0]}'.",
            "`vitexport inspect MODEL` lists the inputs.",
        )


def time_models(
    candidates: Sequence[tuple[Model, str | None]],
    options: RuntimeOptions,
    batch: Sequence[int],
    *,
    seconds: float,
    warmup: int,
    shapes: Shapes = _NO_SHAPES,
) -> tuple[list[Measured], tuple[str, ...]]:
    """Open models and time them by turns, at one batch size after the other.

    Args:
        candidates: Model and runtime name each; None takes the file's own.
        options: For the runtimes.
        batch: Images per run, one measurement each.
        seconds: Measured time per model and batch size.
        warmup: Runs of each before anything is measured.
        shapes: Sizes of dynamic axes of single files, by the name of the input.

    Returns:
        The measurements, and what could not be measured at some size, or at all, in words.

    Raises:
        NoKernelError: No runtime here can execute any of the models.
    """
    several = len({runtime for _, runtime in candidates}) > 1
    rows: list[Measured] = []
    skipped: list[str] = []
    with ExitStack() as opened:
        subjects: list[Subject] = []
        for model, runtime in candidates:
            name = _free_name(f"{model.name} ({runtime})" if several else model.name, subjects)
            try:
                subject = open_subject(model, runtime, options, batch=max(batch), name=name, shapes=shapes)
            except NoKernelError as error:
                skipped.append(f"{name}: not run here: {error.message}")
                if len(skipped) == len(candidates):
                    raise
                continue
            opened.callback(subject.runtime.close)
            subjects.append(subject)
        _require_used(shapes, subjects)
        for size in batch:
            fitting = [subject for subject in subjects if subject.takes(size)]
            skipped += [f"{s.name}: made for another batch than {size}" for s in subjects if s not in fitting]
            rows += measure_subjects(fitting, size, seconds=seconds, warmup=warmup) if fitting else ()
    return rows, tuple(skipped)


def _free_name(name: str, subjects: Sequence[Subject]) -> str:
    """Return a name of its own: a model named twice is measured twice, which shows the noise."""
    count = 1 + sum(subject.name == name or subject.name.startswith(f"{name} #") for subject in subjects)
    return name if count == 1 else f"{name} #{count}"
