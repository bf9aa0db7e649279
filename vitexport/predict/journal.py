"""The journal of a batch job: what is done so far, so that a killed job resumes with nothing lost or doubled.

A journal is a file of JSON lines beside the results: a header that identifies the job, then one line per finished
chunk. A line cut short by a kill is dropped on resume. When every chunk is there, the results are written in order, in
one step, and the journal goes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitexport.closing import Closing
from vitexport.errors import VitexportError
from vitexport.predict.batch import Chunk, ChunkResult, Row
from vitexport.predict.results import row_from_json, row_to_json

__all__ = ["Journal", "job_identity", "journal_path"]


def journal_path(results: str | Path) -> Path:
    """Return where the journal of a results file lies."""
    results = Path(results)
    return results.with_name(f".{results.name}.journal")


def job_identity(work: Sequence[Chunk], settings: Mapping[str, object]) -> dict[str, object]:
    """Return what must be equal for one run to resume another: the sources in order, and the settings."""
    digest = hashlib.sha256()
    for chunk in work:
        digest.update(b"\1".join(os.fsencode(path) for path in chunk.paths) + b"\0")
    return {"journal": 1, "sources": digest.hexdigest(), "chunks": len(work), **settings}


class Journal(Closing):
    """An open journal.

    Attributes:
        done: Indices of the chunks already in it.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, object], *, overwrite: bool = False) -> None:
        """Open the journal at ``path``, or begin one.

        Args:
            path: From :func:`journal_path`.
            identity: From :func:`job_identity`.
            overwrite: Drop a journal of another job.

        Raises:
            VitexportError: The journal belongs to another job.
        """
        self.path = Path(path)
        self._offsets: dict[int, int] = {}
        end = 0 if overwrite else self._scan(identity)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("r+b" if end else "wb")
        self._stream.truncate(end)
        self._stream.seek(end)
        if end == 0:
            self._offsets.clear()
            self._write(dict(identity))

    @property
    def done(self) -> frozenset[int]:
        """Indices of the chunks in the journal."""
        return frozenset(self._offsets)

    def _scan(self, identity: Mapping[str, object]) -> int:
        """Read which chunks are there; returns where the last complete line ends, 0 for none."""
        if not self.path.exists():
            return 0
        end = 0
        with self.path.open("rb") as stream:
            for line in stream:
                data = _parse(line)
                if data is None:
                    break
                if end == 0 and data != json.loads(json.dumps(identity)):
                    raise VitexportError(
                        f"'{self.path}' is the journal of another job: other sources, model or settings.",
                        "Use another -o file, or start over with --overwrite.",
                    )
                if end:
                    self._offsets[data["chunk"]] = end
                end += len(line)
        return end

    def add(self, result: ChunkResult) -> None:
        """Append a finished chunk; once this returns, a kill of the process does not lose it."""
        self._offsets[result.index] = self._stream.tell()
        self._write({"chunk": result.index, "rows": [row_to_json(row) for row in result.rows]})

    def _write(self, data: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(data).encode() + b"\n")
        self._stream.flush()

    def rows(self) -> Iterator[Row]:
        """Yield all rows in the order of the chunks."""
        with self.path.open("rb") as stream:
            for index in sorted(self._offsets):
                stream.seek(self._offsets[index])
                yield from (row_from_json(row) for row in json.loads(stream.readline())["rows"])

    def remove(self) -> None:
        """Delete the journal, after its results have been written."""
        self._stream.close()
        self.path.unlink()

    def close(self) -> None:
        """Close the file; the journal stays, for the job to be resumed."""
        self._stream.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the data of a line, or None for one cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
