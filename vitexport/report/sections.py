"""Sections of a report that are a table: each is one function here, and both forms of the report show it.

Adding a section is adding a function to :data:`SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitexport.bundle.bundle import Bundle
from vitexport.verification.result import VerificationResult

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """A titled table.

    Attributes:
        key: Anchor in the page.
        title: Its heading.
        lead: One sentence under it.
        columns: Headings; the first column names the row.
        rows: Cells; ``passed``, ``failed`` and ``not checked`` are shown as tags.
    """

    key: str
    title: str
    lead: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def checks(bundle: Bundle, verification: VerificationResult) -> Section | None:
    """Return the checks of pixels and labels; None where there are none."""
    if not verification.checks:
        return None
    verdicts = {True: "passed", False: "failed", None: "not checked"}
    rows = tuple((check.name, verdicts[check.passed], check.finding) for check in verification.checks)
    lead = "A model is only as right as the pixels and labels it is given."
    return Section("checks", "Checks around the model", lead, ("Check", "Verdict", "Finding"), rows)


def float32_nodes(bundle: Bundle, verification: VerificationResult) -> Section | None:
    """Return the nodes that a 16-bit body left in float32; None where there are none."""
    rows = tuple(
        (node, str(reason), artifact.name)
        for artifact in bundle.models
        for node, reason in artifact.details.get("kept_float32", {}).items()
    )
    if not rows:
        return None
    lead = "A 16-bit body leaves in float32 what would overflow, and what ONNX permits no such type."
    return Section("float32", "Kept in float32", lead, ("Node", "Why", "Variant"), rows)


SECTIONS: tuple[Callable[[Bundle, VerificationResult], Section | None], ...] = (checks, float32_nodes)
"""In the order in which they are shown."""
