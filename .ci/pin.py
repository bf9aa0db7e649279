"""Write constraints.txt from the environment this runs in: what ``.[dev]`` resolved to, one pin per package."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from packaging.specifiers import SpecifierSet

OLDEST = "3.10"
# Packages whose current release has dropped the oldest Python; the last release that supports it.
ON_OLDEST = {"numpy": "2.2.6"}
HEADER = """# What a reproducible install uses; written by .ci/pin.py.
# Pins without a marker hold for every supported Python; the others where that release exists.
"""


def pins() -> list[str]:
    """Return one line per installed distribution, except this package and the installer's own tools."""
    lines = []
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name in ("vitexport", "pip", "setuptools", "wheel"):
            continue
        line = f"{name}=={distribution.version.partition('+')[0]}"
        requires = distribution.metadata.get("Requires-Python") or ""
        if requires and not SpecifierSet(requires).contains(f"{OLDEST}.99"):
            line += f' ; python_version > "{OLDEST}"'
        lines.append(line)
    lines += [f'{name}=={version} ; python_version <= "{OLDEST}"' for name, version in ON_OLDEST.items()]
    return sorted(set(lines))


if __name__ == "__main__":
    Path("constraints.txt").write_text(HEADER + "\n".join(pins()) + "\n", encoding="utf-8")
