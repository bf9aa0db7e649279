"""The command line that all benchmark commands have in common."""

from __future__ import annotations

import argparse

__all__ = ["command_parser"]


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m benchmarks.NAME``, with the module's docstring as its help."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
