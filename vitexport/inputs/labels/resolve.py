"""From labels as they are written to targets, as the head of the model asks for."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.match import Matching, Rule, match
from vitexport.inputs.labels.rows import Written
from vitexport.inputs.labels.targets import Labels, Mapped, Target
from vitexport.inputs.labels.wording import listed

__all__ = ["resolve"]

_PRESENT = frozenset({"1", "true", "yes", "present", "positive"})
_ABSENT = frozenset({"0", "false", "no", "absent", "negative"})
_BITS = {"0": False, "1": True, "0.0": False, "1.0": True}
_SEPARATORS = (";", "|", ",", None)
"""Between several labels in one cell; None stands for white space."""


def resolve(written: Mapping[str, Written], classes: Classes, *, what: str, origin: str) -> Labels:
    """Match the label of each image to the outputs of a model.

    Args:
        written: Image to label, in the order of the images.
        classes: The outputs.
        what: What messages call the labels, in the plural, e.g. ``class folders of 'holdout'``.
        origin: Where they come from, for people.

    Raises:
        ImageError: A label has no meaning, or several, or is not of the form that the head asks for.
    """
    if classes.scoring == "none":
        return Labels(origin, tuple(_value(image, label, classes.count) for image, label in written.items()))
    if classes.scoring == "sigmoid":
        return _of_sigmoid(written, classes, what, origin)
    values = {image: _single(image, label) for image, label in written.items()}
    matching = match(values.values(), classes).require(what, classes)
    targets = tuple(matching.found[value][0] for value in values.values())
    return _labels(origin, targets, matching, Counter(values.values()), classes)


def _of_sigmoid(written: Mapping[str, Written], classes: Classes, what: str, origin: str) -> Labels:
    if classes.count == 1:
        values = {image: _single(image, label) if label else "0" for image, label in written.items()}
        matching = _presence(values.values(), classes, what)
        targets: tuple[tuple[int, ...], ...] = tuple(
            (0,) if matching.found[value][0] else () for value in values.values()
        )
        return _labels(origin, targets, matching, Counter(values.values()), classes)
    parts = _split(tuple(written.values()), classes)
    vectors = _vectors(parts, classes)
    if vectors is not None:
        return _of_vectors(vectors, classes, origin)
    _refuse_repeats(tuple(written), parts)
    matching = match((value for row in parts for value in row), classes).require(what, classes)
    targets = tuple(tuple(sorted({matching.found[value][0] for value in row})) for row in parts)
    return _labels(origin, targets, matching, Counter(value for row in parts for value in set(row)), classes)


def _vectors(parts: Sequence[tuple[str, ...]], classes: Classes) -> list[tuple[int, ...]] | None:
    """Return labels that are written as 0 or 1 for every output, or None where they are not.

    As indices they could mean the first two labels only; names that are 0 and 1 are names.
    """
    if any(len(row) != classes.count or not set(row) <= _BITS.keys() for row in parts):
        return None
    if classes.names and _BITS.keys() & set(classes.names):
        return None
    return [tuple(index for index, value in enumerate(row) if _BITS[value]) for row in parts]


def _of_vectors(vectors: list[tuple[int, ...]], classes: Classes, origin: str) -> Labels:
    images = Counter(index for row in vectors for index in row)
    mapping = tuple(
        Mapped(classes.name(index), index, classes.name(index), "present or absent", images[index])
        for index in range(classes.count)
    )
    return Labels(origin, tuple(vectors), mapping, ("each image has 0 or 1 for every output, in their order",))


def _refuse_repeats(images: Sequence[str], parts: Sequence[tuple[str, ...]]) -> None:
    for image, row in zip(images, parts, strict=True):
        twice = [value for value, count in Counter(row).items() if count > 1]
        if twice:
            raise ImageError(
                f"Expected each label of '{image}' once, found '{twice[0]}' {row.count(twice[0])} times.",
                "Write the labels that are there, or 0 or 1 for every output of the model, for every image.",
            )


def _labels(
    origin: str, targets: tuple[Target, ...], matching: Matching, images: Mapping[str, int], classes: Classes
) -> Labels:
    single = classes.scoring == "sigmoid" and classes.count == 1
    mapping = []
    for value, (index, rule) in sorted(matching.found.items(), key=lambda entry: (entry[1][0], entry[0])):
        absent = single and not index
        output = None if absent else 0 if single else index
        name = f"not {classes.name(0)}" if output is None else classes.name(output)
        mapping.append(Mapped(value, output, name, rule, images[value]))
    used = len({entry.index for entry in mapping})
    notes = [matching.note] if matching.note else []
    if not single and used < classes.count:
        notes.append(f"{used} of the model's {classes.count} classes have images")
    return Labels(origin, targets, tuple(mapping), tuple(notes))


def _single(image: str, label: Written) -> str:
    if isinstance(label, str):
        return label
    if len(label) != 1:
        found = listed([f"'{value}'" for value in label]) or "none"
        raise ImageError(
            f"Expected one label for '{image}', for the model chooses one class of several, found {found}.",
            "Keep one, or say that the classes exclude each other not: --scoring sigmoid (model.scoring in a recipe).",
        )
    return label[0]


def _split(labels: Sequence[Written], classes: Classes) -> list[tuple[str, ...]]:
    """Return the labels of each image, of cells that may hold several."""
    cells = [label for label in labels if isinstance(label, str)]
    if match(cells, classes).complete:
        return [(label,) if isinstance(label, str) else label for label in labels]
    attempts = []
    for separator in _SEPARATORS:
        if separator is None or any(separator in cell for cell in cells):
            parts = [_parts(label, separator) if isinstance(label, str) else label for label in labels]
            if match((value for row in parts for value in row), classes).complete:
                return parts
            attempts.append(parts)
    return attempts[0]


def _parts(cell: str, separator: str | None) -> tuple[str, ...]:
    if cell.startswith("["):
        try:
            return tuple(str(value) for value in json.loads(cell))
        except ValueError:
            pass
    return tuple(part.strip() for part in cell.split(separator) if part.strip())


def _presence(values: Iterable[str], classes: Classes, what: str) -> Matching:
    """Read the labels of a single output: present (1) or absent (0), in words, numbers or by the label's own name."""
    found: dict[str, tuple[int, Rule]] = {}
    unknown = []
    words = _PRESENT | _ABSENT
    if any(name.lower() in words for name in classes.names):  # of a label that is called "no", words say nothing
        words = frozenset({"0", "1"})
    for value in dict.fromkeys(values):
        plain = value.lower().removesuffix(".0")
        negated = [plain.removeprefix(word).lstrip(" _-") for word in ("not", "non", "no") if plain.startswith(word)]
        if plain in words and plain not in (name.lower() for name in classes.names):
            found[value] = (int(plain in _PRESENT), "present or absent")
        elif classes.names and match([value], classes).complete:
            found[value] = (1, match([value], classes).found[value][1])
        elif classes.names and any(match([name], classes).complete for name in negated if name):
            found[value] = (0, "present or absent")
        else:
            unknown.append(value)
    if unknown:
        own = f", '{classes.names[0]}' or 'not {classes.names[0]}'" if classes.names else ""
        raise ImageError(
            f"Expected the {what} to say whether the model's one label is there, found "
            f"{listed([repr(value) for value in unknown])}.",
            f"Write 1 or 0{', yes or no' if len(words) > 2 else ''}{own}.",
        )
    return Matching(found)


def _value(image: str, label: Written, count: int) -> float | tuple[float, ...]:
    texts = (label,) if isinstance(label, str) and count == 1 else label
    if isinstance(texts, str):
        texts = tuple(texts.replace(";", " ").split())
    try:
        values = tuple(float(text) for text in texts)
    except ValueError:
        values = ()
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise ImageError(
            f"Expected {'a number' if count == 1 else f'{count} numbers'} for '{image}', for the model gives values, "
            f"found {label!r}.",
            "Write what the model was trained to give, or leave the image out.",
        )
    return values[0] if count == 1 else values
