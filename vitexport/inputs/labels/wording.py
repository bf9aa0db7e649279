"""Lists in messages, bounded."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["listed"]

_SHOWN = 10


def listed(entries: Sequence[str], shown: int = _SHOWN) -> str:
    """Return the first entries joined by commas, and how many more there are."""
    more = len(entries) - shown
    return ", ".join(entries[:shown]) + (f" and {more} more" if more > 0 else "")
