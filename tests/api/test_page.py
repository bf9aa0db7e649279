"""Every snippet of docs/python.md runs, in order, from a folder like the repository's root."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "python.md"
SNIPPET = re.compile(r"(?:<!-- needs: (?P<needs>\w+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*load average.*")
def test_every_snippet_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {"__name__": "page"}
    snippets = list(SNIPPET.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(snippets) >= 8
    for snippet in snippets:
        if snippet["needs"] is None or importlib.util.find_spec(snippet["needs"]):
            exec(compile(snippet["code"], PAGE.name, "exec"), names)
