"""Weights that do not load: what they are, and what to do, for the kinds of files that people have."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["LOAD_ERRORS", "brief", "hint_for", "prefix_hint"]

LOAD_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, AssertionError, EOFError),
    pickle.UnpicklingError,
)
"""What PyTorch, timm and transformers raise for a checkpoint that is damaged or another model's."""

_LONGEST = 400
_POINTER = b"version https://git-lfs.github.com/spec/"
_DAMAGED = (
    "failed finding central directory",
    "Error while deserializing header",
    "incomplete metadata",
    "Ran out of input",
    "unexpected EOF",
    "pickle data was truncated",
    "invalid load key",
    "Unsupported operand",
    "InvalidHeader",
    "MetadataIncompleteBuffer",
)


def brief(error: BaseException) -> str:
    """Return an error's text, shortened: one that lists every weight of a model fills a screen."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def hint_for(error: BaseException, files: Sequence[Path]) -> str:
    """Return what to do about weights that do not load; empty for a failure of no known kind.

    Args:
        error: What the library raised.
        files: The weight files.
    """
    pointer = next((path for path in files if path.is_file() and path.read_bytes()[:64].startswith(_POINTER)), None)
    if pointer is not None:
        return f"'{pointer}' is a pointer of Git LFS, not the weights; get them with `git lfs pull`."
    text = _text(error)
    if "Unrecognized configuration class" in text:
        return (
            "transformers has no such head for this type of model. Name the task it was saved for, or export its "
            "encoder with `--task features`."
        )
    if isinstance(error, EOFError) or any(sign in text for sign in _DAMAGED):
        sizes = ", ".join(f"'{path}' ({path.stat().st_size:,} bytes)" for path in files if path.is_file())
        return (
            f"A file is cut off or damaged: {sizes}. Copy or download it again, and compare its size with the original."
        )
    blocked = _blocked(text)
    if blocked and all(name.startswith("numpy") for name in blocked):
        return (
            "The checkpoint holds NumPy values beside its weights, such as a best score, which need code to load. "
            "Write the weights alone where you trust the file: torch.save(torch.load(FILE, weights_only=False)"
            "['state_dict'], NEW)."
        )
    if blocked:
        return (
            f"The checkpoint is no table of weights: it holds whole Python objects ({blocked[0]}), which need code to "
            "load. Load it where it was made and save its weights alone, torch.save(model.state_dict(), NEW), or give "
            "the live module to vitexport.export()."
        )
    return ""


def prefix_hint(found: Iterable[str], wanted: Iterable[str]) -> str:
    """Return what to do where a trainer put a prefix in front of every weight's name; empty where it did not.

    Args:
        found: Names in the file.
        wanted: Names that the model has.
    """
    names, known = frozenset(found), frozenset(wanted)
    fronts = Counter(
        name[: -len(tail)] for name in names for tail in _tails(name) if tail in known and len(tail) < len(name)
    )
    front, _ = next(iter(fronts.most_common(1)), ("", 0))
    # A part of a model has such a front too; a trainer's stands before nearly all names, but for those of a loss.
    if not front or sum(name.startswith(front) for name in names) < 0.9 * len(names):
        return ""
    return (
        f"Every weight has the prefix '{front}', which a trainer such as Lightning puts there. Take it off: "
        f"{{name.removeprefix({front!r}): weight for name, weight in state_dict.items()}}, and save that."
    )


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _blocked(text: str) -> list[str]:
    """Return the names of what ``weights_only`` refused to load, from PyTorch's or timm's message."""
    found = re.findall(r"Unsupported global: GLOBAL ([\w.]+)", text) or re.findall(r"Unsupported class ([\w.]+)", text)
    listed = re.search(r"Unsupported globals: (.*?)\. ", text)
    return found or ([name.strip() for name in listed.group(1).split(",")] if listed else [])


def _text(error: BaseException | None) -> str:
    """Return the text of an error and of those that it came from."""
    return "" if error is None else f"{error}\n{_text(error.__cause__ or error.__context__)}"
