"""Where a model comes from: the grammar of a source, parsed in one place.

``owner/name`` is a repository of the Hugging Face hub, an existing path a Hugging Face directory, ``timm:NAME`` a model
of timm's registry with weights from the hub, ``timm:NAME@FILE`` the same architecture with weights from a file, and
``timm:local-dir:PATH`` a directory as timm writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vitexport.files import sha256_file

__all__ = ["ModelSource"]

_TIMM = "timm:"
_TIMM_FOLDER = "local-dir:"


@dataclass(frozen=True)
class ModelSource:
    """A parsed source; ``str()`` gives its text again.

    Attributes:
        library: Whose model it is.
        name: Hub id or timm architecture, with its tag; empty for a directory.
        path: The directory, or the weights of ``timm:NAME@FILE``; None where the weights come from the hub.
    """

    library: Literal["huggingface", "timm"]
    name: str = ""
    path: Path | None = None

    @classmethod
    def parse(cls, text: str, base: Path | None = None) -> ModelSource:
        """Parse a source.

        Args:
            text: As a user writes it.
            base: Folder that relative paths are relative to; None takes the working directory. Text without a prefix
                is a path only if something is there.
        """
        base = base or Path()
        if not text.startswith(_TIMM):
            path = base / text
            return cls("huggingface", path=path) if path.exists() else cls("huggingface", name=text)
        rest = text.removeprefix(_TIMM)
        if rest.startswith(_TIMM_FOLDER):
            return cls("timm", path=base / rest.removeprefix(_TIMM_FOLDER))
        name, _, weights = rest.partition("@")
        return cls("timm", name=name, path=base / weights if weights else None)

    def __str__(self) -> str:
        if self.library == "huggingface":
            return self.name or str(self.path)
        if not self.name:
            return f"{_TIMM}{_TIMM_FOLDER}{self.path}"
        return f"{_TIMM}{self.name}" + (f"@{self.path}" if self.path else "")

    @property
    def title(self) -> str:
        """A short name for people: of the directory, or the last part of the id."""
        return self.path.resolve().name if self.path is not None and not self.name else self.name.rpartition("/")[2]

    def absolute(self) -> ModelSource:
        """Return the source with an absolute path."""
        return self if self.path is None else replace(self, path=self.path.resolve())

    def content(self) -> Iterator[tuple[str, str]]:
        """Yield name and SHA-256 of every file that lies here; nothing where everything comes from the hub.

        What a hub serves under one name may change, and this cannot see it.
        """
        if self.path is None:
            return
        if self.path.is_file():
            yield "", sha256_file(self.path)
        elif self.path.is_dir():
            for file in sorted(p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith(".")):
                yield file.relative_to(self.path).as_posix(), sha256_file(file)
