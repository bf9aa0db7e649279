"""Which output of a model a text means: by class name, synset or index.

All values of a set of labels are read by one kind of rule, the first under which every one of them has a meaning: names
(exact, then apart from case and separators, then as one of ImageNet's comma-separated synonyms), synset ids, indices.
So the folders ``0`` to ``11`` of a model whose classes have these names mean the names.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.wording import listed

__all__ = ["RULES", "Matching", "Rule", "match"]

Rule = Literal[
    "exact class name",
    "class name apart from case and separators",
    "synonym of a class name",
    "synset",
    "index",
    "present or absent",
    "value",
]
RULES: tuple[Rule, ...] = get_args(Rule)
"""From the strictest to the loosest."""

_INTEGER = re.compile(r"([+-]?\d+)(\.0*)?")
_Lookup = Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class Matching:
    """What a set of values means.

    Attributes:
        found: Value to index and rule, of those that have one meaning.
        unknown: Values without a meaning.
        ambiguous: Values with several, and their indices.
        note: What else the values could have meant; empty where nothing.
    """

    found: Mapping[str, tuple[int, Rule]]
    unknown: tuple[str, ...] = ()
    ambiguous: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether every value has one meaning."""
        return not self.unknown and not self.ambiguous

    def require(self, what: str, classes: Classes) -> Matching:
        """Return the matching itself.

        Args:
            what: What the values are, in the plural, e.g. ``class folders of 'holdout'``.
            classes: What they were matched to.

        Raises:
            ImageError: A value has no meaning, or several; the message lists them.
        """
        if self.unknown:
            raise _unknown(self.unknown, what, classes)
        if self.ambiguous:
            several = [f"'{value}' ({', '.join(map(str, indices))})" for value, indices in self.ambiguous.items()]
            raise ImageError(
                f"Expected the {what} to mean one class each, found several of that name: {listed(several)}.",
                "Use synset ids or the indices in brackets for all of them.",
            )
        return self


def match(values: Iterable[str], classes: Classes) -> Matching:
    """Find out what values mean.

    Args:
        values: As they are written.
        classes: The outputs they may mean.

    Returns:
        The first complete matching; where there is none, the one in which most values have a meaning.
    """
    wanted = tuple(dict.fromkeys(values))
    by_index = _match(wanted, lambda value: _by_index(value, classes.count))
    attempts = []
    if classes.names:
        attempts.append(_match(wanted, _Names(classes.names)))
    if classes.synsets:
        ids = _lookup((name, index) for index, name in enumerate(classes.synsets))
        attempts.append(_match(wanted, lambda value: (ids.get(value.strip().lower(), frozenset()), "synset")))
    attempts.append(by_index)
    chosen = next((a for a in attempts if a.complete), None)
    if chosen is None:
        return max(attempts, key=lambda attempt: len(attempt.found))
    if chosen is not by_index and by_index.complete:
        if any(chosen.found[value][0] != by_index.found[value][0] for value in wanted):
            # Decided, and said.
            return Matching(chosen.found, note="the labels are class names and were not read as indices")
    elif chosen is by_index and attempts[0].found and attempts[0] is not by_index:
        no_name = listed([f"'{value}'" for value in attempts[0].unknown], 3)
        return Matching(chosen.found, note=f"{no_name} being no class name, the labels were read as indices")
    return chosen


def _match(values: Iterable[str], rule: Callable[[str], tuple[frozenset[int], Rule]]) -> Matching:
    found: dict[str, tuple[int, Rule]] = {}
    unknown, ambiguous = [], {}
    for value in values:
        indices, name = rule(value)
        if len(indices) == 1:
            found[value] = (next(iter(indices)), name)
        elif indices:
            ambiguous[value] = tuple(sorted(indices))
        else:
            unknown.append(value)
    return Matching(found, tuple(unknown), ambiguous)


class _Names:
    """Class names as they are, apart from case and separators, and synonym by synonym."""

    def __init__(self, names: tuple[str, ...]) -> None:
        numbered = [(name, index) for index, name in enumerate(names)]
        synonyms = [(part, index) for name, index in numbered for part in name.split(",")]
        self._rules: tuple[tuple[Callable[[str], str], _Lookup, Rule], ...] = (
            (str, _lookup(numbered), "exact class name"),
            (_plain, _lookup((_plain(n), i) for n, i in numbered), "class name apart from case and separators"),
            (_plain, _lookup((_plain(n), i) for n, i in synonyms), "synonym of a class name"),
        )

    def __call__(self, value: str) -> tuple[frozenset[int], Rule]:
        for key, lookup, rule in self._rules:
            indices = lookup.get(key(value))
            if indices:
                return indices, rule
        return frozenset(), RULES[0]


def _lookup(entries: Iterable[tuple[str, int]]) -> _Lookup:
    found: dict[str, frozenset[int]] = {}
    for key, index in entries:
        found[key] = found.get(key, frozenset()) | {index}
    return found


def _plain(name: str) -> str:
    """Return a name without case, spaces, ``_`` and ``-``, in one Unicode form; a number without leading zeros."""
    number = _INTEGER.fullmatch(name.strip())
    if number:
        return str(int(number.group(1)))
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _by_index(value: str, count: int) -> tuple[frozenset[int], Rule]:
    found = _INTEGER.fullmatch(value.strip())
    inside = found is not None and 0 <= int(found.group(1)) < count
    return frozenset({int(found.group(1))} if found and inside else ()), "index"


def _unknown(unknown: tuple[str, ...], what: str, classes: Classes) -> ImageError:
    if all(_INTEGER.fullmatch(value.strip()) for value in unknown):
        return ImageError(
            f"Expected the {what} to be within the model's {classes.count} classes, 0 to {classes.count - 1}, found "
            f"{listed(sorted(unknown, key=lambda value: float(value)))}.",
            "Count from 0, or use the model's class names.",
        )
    if not classes.names:
        return ImageError(
            f"Expected the {what} to be indices from 0 to {classes.count - 1}, for the model has no class names, found "
            f"{listed([repr(value) for value in unknown])}.",
            "Give the names in the order of the outputs with --class-names FILE (model.class_names in a recipe).",
        )
    known = {_plain(name): name for name in classes.names}
    described = []
    for value in unknown:
        close = difflib.get_close_matches(_plain(value), known, n=1, cutoff=0.75)
        described.append(f"'{value}'" + (f" (did you mean '{known[close[0]]}'?)" if close else ""))
    return ImageError(
        f"Expected the {what} to be classes of the model, found {len(unknown)} of other names: {listed(described)}.",
        f"The model has {classes.count} classes: {listed(list(classes.names))}. Correct the labels, or leave those "
        "images out.",
    )
