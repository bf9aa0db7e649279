"""Modules of this package in processes of their own: how they are started, and why one ended."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from benchmarks.suites.paths import ROOT

__all__ = ["environment", "last_error", "module_command"]


def module_command(name: str, *arguments: object, python: Path | None = None) -> list[str]:
    """Return the command that runs ``benchmarks.NAME``; it needs :func:`environment`.

    Args:
        name: Module below ``benchmarks``.
        arguments: Its command line.
        python: Interpreter of another environment; this one's by default.
    """
    return [str(python or sys.executable), "-m", f"benchmarks.{name}", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return environment variables under which every interpreter finds this project, from whatever folder."""
    earlier = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([earlier] if earlier else [])])}


def last_error(stderr: str) -> str:
    """Return the message of the exception that ended a process, all its lines; its last line where there is none."""
    lines = stderr.strip().splitlines() or ["it ended without a word"]
    starts = [
        index for index, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b", line)
    ]
    return "\n".join(lines[starts[-1] if starts else -1 :])
