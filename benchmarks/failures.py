"""Why a process ended, from what it wrote on standard error."""

from __future__ import annotations

import re

__all__ = ["last_error"]


def last_error(stderr: str) -> str:
    """Return the message of the exception that ended a process, all its lines; its last line where there is none."""
    lines = stderr.strip().splitlines() or ["it ended without a word"]
    starts = [
        index for index, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b", line)
    ]
    return "\n".join(lines[starts[-1] if starts else -1 :])
