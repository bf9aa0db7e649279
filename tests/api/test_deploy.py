"""serve, triton, deepstream and kit as functions."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.linear_model import save_image, write_bundle, write_recorded_bundle
from vitexport.api.deploy import deepstream, kit, triton
from vitexport.api.serving import Serving, serve
from vitexport.bundle.bundle import Bundle
from vitexport.errors import BundleError, EngineBuildError, RecipeError, VitexportError
from vitexport.predict.predictor import Predictor


def test_serve_answers_at_the_address_it_reports_until_it_is_told_to_stop(bundle_dir: Path, image_file: Path) -> None:
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    answers: list[dict[str, object]] = []

    def ask(serving: Serving) -> None:
        try:
            request = urllib.request.Request(f"{serving.url}/predict", image_file.read_bytes())
            request.add_header("Content-Type", "image/png")
            with urllib.request.urlopen(request, timeout=60) as response:
                answers.append(json.load(response))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threads: list[threading.Thread] = []

    def ready(serving: Serving) -> None:
        threads.append(threading.Thread(target=ask, args=(serving,)))
        threads[0].start()

    serving = serve(Bundle.open(bundle_dir), port=0, on_ready=ready)
    threads[0].join()
    with Predictor.open(bundle_dir) as predictor:
        expected = predictor.predict(image_file).best.label
    assert expected in json.dumps(answers)
    assert serving.port > 0 and serving.to_dict()["url"] == f"http://127.0.0.1:{serving.port}"
    assert (serving.name, serving.variant, serving.runtime) == ("linear", "simplified", "onnxruntime")
    assert serving.url in repr(serving)


def test_serve_refuses_a_thread_and_a_number_below_one(bundle_dir: Path) -> None:
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(serve, bundle_dir, port=0).exception()
    assert isinstance(error, VitexportError) and "main thread" in error.message
    with pytest.raises(RecipeError, match="Expected workers to be a number above zero, found 0"):
        serve(bundle_dir, port=0, workers=0)


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    assert Serving("m", "v", "onnxruntime", "::1", 80, "0" * 64).url == "http://[::1]:80"


def test_triton_says_where_the_model_lies(bundle_dir: Path, tmp_path: Path) -> None:
    done = triton(Bundle.open(bundle_dir), tmp_path, name="digits", kind="cpu", instances=2)
    assert (done.repository, done.model, done.name) == (tmp_path, tmp_path / "digits", "digits")
    assert "count: 2 kind: KIND_CPU" in (done.model / "config.pbtxt").read_text()
    identity = {"variant": "simplified", "sha256": done.choice.sha256, "notes": list(done.choice.notes)}
    places = {"repository": str(tmp_path), "model": str(tmp_path / "digits"), "name": "digits"}
    assert done.to_dict() == {**places, **identity}
    assert f"--model-repository={tmp_path}" in repr(done)


def test_triton_refuses_what_its_configuration_cannot_say(bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="kind to be 'gpu' or 'cpu', found 'tpu'"):
        triton(bundle_dir, tmp_path, kind="tpu")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="instances to be a number above zero"):
        triton(bundle_dir, tmp_path, instances=0)
    with pytest.raises(BundleError, match="named 'int8'"):
        triton(bundle_dir, tmp_path, variant="int8")
    assert not list(tmp_path.iterdir())


def test_deepstream_measures_what_its_resize_changes(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", conv=True)
    images = [save_image(tmp_path / f"{seed}.png", seed, height=50, width=70) for seed in range(3)]
    done = deepstream(root, tmp_path / "out", images=images)
    assert done.passed and done.parity is not None
    assert done.parity.images == 3 and done.parity.same_pixels < 1e-5 < done.parity.own_resize
    assert done.to_dict()["parity"]["notes"] == list(done.parity.notes)
    assert "antialiasing" in repr(done)


def test_deepstream_without_images_has_measured_nothing(tmp_path: Path) -> None:
    done = deepstream(Bundle.open(write_bundle(tmp_path / "bundle", conv=True)), tmp_path / "out", batch=4)
    assert "batch-size=4" in done.config.read_text()
    assert done.passed and done.to_dict() == {"config": str(done.config), "parity": None, **done.choice.to_dict()}
    assert "not measured" in repr(done)


def test_kit_is_named_after_bundle_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_recorded_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    done = kit(bundle, "arm-cpu")
    assert done.path == Path("linear-arm-cpu.tar.gz") and done.variant == "simplified"
    assert done.bytes == done.path.stat().st_size == done.to_dict()["bytes"]
    assert done.title in repr(done)
    with pytest.raises(RecipeError, match="did you mean 'orin-nano'"):
        kit(bundle.root, "orin_nano")
    with pytest.raises(EngineBuildError, match=r"JetPack 7.0 does not run"):
        kit(bundle.root, "orin-nano", "kit.tar.gz", jetpack="7.0")
    assert not Path("kit.tar.gz").exists()
