"""The report, and the page of an engine's audit, in a real browser: no network, no console error, accessible, in light
and dark, wide and narrow.

Needs Chromium, and axe-core from npm: ``npm install --prefix DIR axe-core``, with ``VITEXPORT_AXE`` set to
``DIR/node_modules/axe-core/axe.min.js``.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.audits import fixture_audit
from tests.support.report_case import make_case
from vitexport.pipeline.run import run
from vitexport.recipe.load import parse_recipe
from vitexport.recipe.settings import Gates
from vitexport.report import write_report
from vitexport.report.engine_audit import render_html
from vitexport.runtimes.tensorrt.audit import EngineFacts

pytestmark = pytest.mark.slow

# WCAG 2.2 up to level AA, and axe's own best practices (heading order, landmarks).
_RUN = """
<script>%s</script>
<script>
const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
axe.run(document, {runOnly: tags}).then((result) => {
  const out = document.createElement("pre");
  out.id = "axe-result";
  out.textContent = JSON.stringify({
    violations: result.violations.map((v) => ({id: v.id, impact: v.impact, nodes: v.nodes.map((n) => n.html)})),
    passes: result.passes.map((p) => p.id),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
  document.body.appendChild(out);
});
</script>
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("needs Chromium, found none on the PATH")
    return found


@pytest.fixture(scope="module")
def axe() -> str:
    path = Path(os.environ.get("VITEXPORT_AXE", "node_modules/axe-core/axe.min.js"))
    if not path.is_file():
        pytest.skip(f"needs axe-core, found none at '{path}'; see the top of this file")
    return path.read_text(encoding="utf-8")


def visit(chromium: str, page: Path, profile: Path, *, width: int, dark: bool) -> tuple[str, str]:
    """Open a page without any network and return its DOM and the browser's log."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=20000",
        f"--user-data-dir={profile}",
        f"--window-size={width},1200",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def deit_tiny(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run of DeiT-Tiny with its real weights, on few photographs."""
    sample = shared / "data" / "imagenet-1k-sample"
    labels = str(sample / "synsets.json")
    content = {
        "name": "deit-tiny",
        "model": {"source": str(shared / "models" / "deit-tiny-hf")},
        "data": {
            "calibration": {"images": str(sample / "calib"), "limit": 64},
            "verification": {"images": str(sample / "dev"), "labels": labels, "limit": 96},
        },
        "quantize": {"preset": "fast"},
        "verify": {"quantized_tolerance": {"min_agreement": 0.8}},
        "gates": {"max_top1_drop": 5.0, "min_agreement": 0.8},
        "benchmark": {"seconds": 0.3},
    }
    result = run(parse_recipe(content, where="test"), tmp_path_factory.mktemp("deit") / "bundle")
    assert result.verification is not None and result.verification.passed, (
        result.verification and result.verification.failures()
    )
    assert result.bundle is not None
    return result.bundle.root / "report.html"


def test_the_report_of_deit_tiny_is_below_two_megabytes_and_complete(deit_tiny: Path) -> None:
    assert deit_tiny.stat().st_size < 2_000_000
    content = deit_tiny.read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>([^<]*)", content)
    assert headings[:4] == ["Accepted", "Variants", "Who lost what", "Gates"]
    assert {"Checks around the model", "Where the error enters", "Where it comes from"} <= set(headings)
    figures = re.findall(r'<svg[^>]* aria-label="([^"]*)', content)
    assert [label.partition(":")[0].partition(".")[0] for label in figures] == [
        "Latency at batch 1",
        "Error after every block, relative to the float model, by variant",
        "Error each block adds",
        "Signal to noise of every layer of int8",
        "Activation ranges of 44 quantized tensors against what they can represent",
        "Massive activations and rotation",
    ]
    assert content.count("<img") == 8


@pytest.fixture(scope="module", params=["accepted", "rejected", "engine", "deit-tiny"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of either verdict, the audit of an engine that partly fell back, and the report of a real run."""
    if request.param == "deit-tiny":
        return Path(request.getfixturevalue("deit_tiny"))
    root = tmp_path_factory.mktemp("browser") / "bundle"
    if request.param == "engine":
        facts = EngineFacts(Path("vit.engine"), None, fixture_audit("tensorrt10-fallback"), "")
        root.mkdir()
        (root / "engine.html").write_text(render_html(facts), encoding="utf-8")
        return root / "engine.html"
    if request.param == "accepted":
        made = make_case(root, gates=Gates(min_agreement=0.9, min_speedup=1.1))
    else:
        made = make_case(root, noise=2.0, speed=0.5, gates=Gates(max_top1_drop=0.5, min_actual_precision=0.5))
    write_report(made.bundle, made.verification, made.recipe)
    return root / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500], ids=["desktop", "phone"])
def test_page_is_accessible_and_needs_no_network(
    page: Path, chromium: str, axe: str, tmp_path: Path, width: int, dark: bool
) -> None:
    result, log = examine(page, chromium, axe, tmp_path, width=width, dark=dark)
    assert result["dark"] is dark
    assert result["violations"] == []
    pictures = {"image-alt"} if page.name == "report.html" else set()
    assert {"color-contrast", "heading-order"} | pictures <= set(result["passes"])
    assert result["overflow"] <= 0, "the page scrolls sideways"
    assert not re.findall(r"CONSOLE.*|ERR_[A-Z_]+.*", log)


def test_the_check_would_notice_a_bad_page(chromium: str, axe: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><html lang=en><title>bad</title><body><h1>a</h1><h4>b</h4>"
        "<p style='color:#ccc;background:#fff'>pale</p><img src='https://example.invalid/a.png'><script>console.error('broken')</script></body></html>"
    )
    result, log = examine(page, chromium, axe, tmp_path, width=1280, dark=False)
    assert {"color-contrast", "heading-order", "image-alt"} <= {entry["id"] for entry in result["violations"]}
    assert "broken" in log


def examine(page: Path, chromium: str, axe: str, folder: Path, *, width: int, dark: bool) -> tuple[dict[str, Any], str]:
    """Run axe inside a copy of a page."""
    copy = folder / "page.html"
    content = page.read_text(encoding="utf-8")
    copy.write_text(content.replace("</body>", _RUN.replace("%s", axe, 1) + "</body>"), encoding="utf-8")
    dom, log = visit(chromium, copy, folder / "profile", width=width, dark=dark)
    found = re.search(r'<pre id="axe-result">(.*?)</pre>', dom, re.DOTALL)
    assert found, "axe did not finish"
    parsed: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return parsed, log
