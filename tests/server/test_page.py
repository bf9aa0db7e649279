"""The page, in a real browser."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, browser
from tests.support.http_server import running
from tests.support.linear_model import save_image
from vitexport.predict.predictor import Predictor

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


def test_dropping_an_image_shows_its_classes_and_dropping_text_says_why_not(bundle_dir: Path, tmp_path: Path) -> None:
    photo = save_image(tmp_path / "photo.png", 5, height=200, width=300)
    other = tmp_path / "notes.png"
    other.write_text("not an image")
    with Predictor.open(bundle_dir) as predictor:
        expected = predictor.predict(photo).predictions

    with running(bundle_dir) as server, browser(tmp_path / "profile") as page:
        page.call("Page.enable")
        page.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait_for("document.readyState === 'complete' && document.querySelector('#drop') !== null")
        assert page.evaluate("document.querySelector('h1').textContent") == "linear"

        page.drop(photo, "#drop")
        page.wait_for("document.querySelectorAll('#results tr').length === 5")
        rows = json.loads(
            page.evaluate(
                "JSON.stringify([...document.querySelectorAll('#results tr')].map(r => r.innerText.split('\\t')))"
            )
        )
        assert [row[0] for row in rows] == [prediction.label for prediction in expected]
        assert rows[0][-1] == f"{100 * expected[0].score:.2f} %"
        page.wait_for("document.querySelector('#preview').naturalWidth === 300")
        if os.environ.get("VITEXPORT_SCREENSHOT"):
            shot = page.call("Page.captureScreenshot")["data"]
            Path(os.environ["VITEXPORT_SCREENSHOT"]).write_bytes(base64.b64decode(shot))

        page.drop(other, "#drop")
        said = page.wait_for("document.querySelector('#message.error')?.textContent")
        assert "Expected an image" in said
        assert page.evaluate("document.querySelectorAll('#results tr').length") == 0
