"""What well-behaved clients get."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import vitexport as vx
from tests.support.deep_images import png16, tiff
from tests.support.dense_models import save
from tests.support.http_server import Running, message, running
from tests.support.linear_model import CLASSES, PREPROCESS, random_pixels, save_image, write_model
from vitexport.inputs.preprocess import preprocess
from vitexport.predict.predictor import Predictor
from vitexport.runtimes import open_runtime


@pytest.fixture(scope="module")
def server(bundle_dir: Path) -> Iterator[Running]:
    with running(bundle_dir, "--max-delay-ms", "5") as started:
        yield started


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("photos")
    return [save_image(folder / f"{index}.png", index).read_bytes() for index in range(5)]


def _expected(bundle: Path, seed: int, top: int) -> list[tuple[str, float]]:
    with Predictor.open(bundle) as predictor:
        result = predictor.predict(random_pixels(seed), top)
    return [(prediction.label, prediction.score) for prediction in result.predictions]


def _check(found: list[dict[str, object]], expected: list[tuple[str, float]]) -> None:
    assert [entry["label"] for entry in found] == [label for label, _ in expected]
    np.testing.assert_allclose([entry["score"] for entry in found], [score for _, score in expected], rtol=1e-4)


def test_score_answers_azures_shape_with_the_predictors_numbers(
    server: Running, bundle_dir: Path, photos: list[bytes]
) -> None:
    body = {"input_data": [base64.b64encode(photo).decode() for photo in photos]}
    response = server.ask("POST", "/score?top=3", body, {"Content-Type": "application/json"})
    assert response.status == 200
    assert len(response.json()) == len(photos)
    for seed, found in enumerate(response.json()):
        assert all(set(entry) == {"label", "score"} for entry in found)
        _check(found, _expected(bundle_dir, seed, 3))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"input_data": {"columns": ["image"], "data": [text]}},
        lambda text: {"input_data": {"columns": ["image"], "index": [0], "data": [[text]]}},
        lambda text: {"input_data": ["data:image/png;base64," + text]},
        lambda text: {"input_data": ["\n".join(text[start : start + 76] for start in range(0, len(text), 76))]},
    ],
)
def test_score_takes_the_usual_variants(server: Running, bundle_dir: Path, photos: list[bytes], wrap: object) -> None:
    body = wrap(base64.b64encode(photos[2]).decode())  # type: ignore[operator]
    _check(server.ask("POST", "/score?top=2", body).json()[0], _expected(bundle_dir, 2, 2))


def test_predict_takes_an_image_as_it_is(server: Running, bundle_dir: Path, photos: list[bytes]) -> None:
    response = server.ask("POST", "/predict", photos[1], {"Content-Type": "image/png"})
    assert response.json()["model"] == "linear"
    _check(response.json()["results"][0], _expected(bundle_dir, 1, 5))


def test_every_route_sees_photos_upright_and_16_bits_as_8(server: Running, bundle_dir: Path) -> None:
    image = Image.fromarray(random_pixels(2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    stream = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_270).save(stream, "PNG", exif=exif)
    for data in (stream.getvalue(), png16(np.asarray(image).astype(np.uint16) * np.uint16(257))):
        _check(server.ask("POST", "/predict?top=2", data).json()["results"][0], _expected(bundle_dir, 2, 2))
        body = {"input_data": [base64.b64encode(data).decode()]}
        _check(server.ask("POST", "/score?top=2", body).json()[0], _expected(bundle_dir, 2, 2))


def test_values_without_a_known_range_are_refused_by_name(server: Running) -> None:
    response = server.ask("POST", "/predict", tiff(bytes(4 * 24 * 32), 24, 32, 32, sample_format=3))
    assert response.status == 400
    assert "floats (Pillow's mode F)" in message(response)


def test_predict_takes_several_files_as_a_form(server: Running, bundle_dir: Path, photos: list[bytes]) -> None:
    parts = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="../../etc/%d.png"\r\n'
        b"Content-Type: image/png\r\n\r\n%b\r\n" % (index, photo)
        for index, photo in enumerate(photos)
    )
    field = b'--cut\r\nContent-Disposition: form-data; name="comment"\r\n\r\nhello\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    response = server.ask("POST", "/predict?top=1", field + parts + b"--cut--\r\n", headers)
    assert response.status == 200, response.body
    assert len(response.json()["results"]) == len(photos)
    for seed, found in enumerate(response.json()["results"]):
        _check(found, _expected(bundle_dir, seed, 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tritonclient.*")  # a dependency of the client, not of ours
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_runtimes_numbers(server: Running, bundle_dir: Path, binary: bool) -> None:
    client_module = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    images = [Image.fromarray(random_pixels(seed)) for seed in range(3)]
    feed = np.stack([preprocess(image, PREPROCESS) for image in images])
    with open_runtime(bundle_dir / "models" / "simplified.onnx") as runtime:
        expected = runtime.run({"pixel_values": feed})["logits"]

    client = client_module.InferenceServerClient(f"127.0.0.1:{server.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("linear")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("linear")
        assert metadata["inputs"] == [{"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]
        tensor = client_module.InferInput("pixel_values", feed.shape, "FP32")
        tensor.set_data_from_numpy(feed, binary_data=binary)
        wanted = client_module.InferRequestedOutput("logits", binary_data=binary)
        version = metadata["versions"][0]
        for kwargs in ({}, {"outputs": [wanted]}, {"outputs": [wanted], "model_version": version, "request_id": "a1"}):
            result = client.infer("linear", [tensor], **kwargs)
            np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5, atol=1e-5)
        assert result.get_response()["id"] == "a1"
        assert result.get_response()["model_version"] == version
    finally:
        client.close()


def test_kserve_takes_flat_and_nested_json(server: Running) -> None:
    feed = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    responses = [
        server.ask(
            "POST",
            "/v2/models/linear/infer",
            {
                "id": "x",
                "inputs": [{"name": "pixel_values", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": data}],
            },
        ).json()
        for data in (feed.tolist(), feed.reshape(-1).tolist())
    ]
    assert responses[0] == responses[1]
    assert responses[0]["id"] == "x"
    assert responses[0]["outputs"][0]["shape"] == [1, len(CLASSES)]


def test_requests_that_arrive_together_share_runs(bundle_dir: Path, photos: list[bytes]) -> None:
    with running(bundle_dir, "--max-delay-ms", "200", "--max-batch", "4") as server:
        body = {"input_data": [base64.b64encode(photo).decode() for photo in photos[:4]]}
        assert server.ask("POST", "/score", body).status == 200
        text = server.ask("GET", "/metrics").body.decode()
    assert "vitexport_batch_images_sum 4.0" in text
    assert "vitexport_batch_images_count 1.0" in text


def test_features_model_answers_with_numbers(tmp_path: Path, photos: list[bytes]) -> None:
    model = write_model(tmp_path / "features.onnx", task="features")
    with running(model) as server:
        (vector,) = server.ask("POST", "/predict", photos[0]).json()["results"]
    with Predictor.open(model) as predictor:
        expected = predictor.infer([predictor.prepare(Image.fromarray(random_pixels(0)))])[0]
    np.testing.assert_allclose(vector, expected, rtol=1e-4)


def test_a_model_of_maps_answers_tensors_and_refuses_images_by_name(tmp_path: Path, photos: list[bytes]) -> None:
    save("segformer", tmp_path / "segformer")
    model = vx.export(tmp_path / "segformer", tmp_path / "segformer.onnx").path
    planes = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    tensor = {"name": "pixel_values", "shape": planes.shape, "datatype": "FP32", "data": planes.ravel().tolist()}
    body = {"input_data": [base64.b64encode(photos[0]).decode()]}
    with running(model) as server, open_runtime(model) as runtime:
        answer = server.ask("POST", "/v2/models/segformer/infer", {"inputs": [tensor]})
        expected = runtime.run({"pixel_values": planes})["logits"]
        (found,) = answer.json()["outputs"]
        assert (found["name"], found["shape"]) == ("logits", [2, 5, 16, 16])
        np.testing.assert_allclose(np.reshape(found["data"], found["shape"]), expected, rtol=1e-4, atol=1e-5)
        for refused in (
            server.ask("POST", "/predict", photos[0]),
            server.ask("POST", "/score", body, {"Content-Type": "application/json"}),
        ):
            assert refused.status == 400 and "one vector per image, found logits" in refused.body.decode()


def test_metrics_are_prometheus_text(server: Running, photos: list[bytes]) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    server.ask("POST", "/predict", photos[0])
    server.ask("POST", "/predict", b"nothing")
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families(server.ask("GET", "/metrics").body.decode())
    }
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["vitexport_requests"].samples
        if sample.name == "vitexport_requests_total"
    }
    assert counted["predict", "200"] >= 1
    assert counted["predict", "400"] >= 1
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert families["vitexport_queued_images"].samples[0].value == 0


def test_docs_and_openapi_name_every_route(server: Running) -> None:
    description = server.ask("GET", "/openapi.json").json()
    docs = server.ask("GET", "/docs").body.decode()
    for path, operations in description["paths"].items():
        assert path in docs
        if "get" in operations:
            assert server.ask("GET", path).status == 200
    assert {"/score", "/predict", "/v2/models/linear/infer", "/metrics"} <= set(description["paths"])
    json.dumps(description)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("path", ["/score", "/predict"])
def test_documented_command_works_as_written(server: Running, bundle_dir: Path, tmp_path: Path, path: str) -> None:
    save_image(tmp_path / "photo.jpg", 2, height=600, width=800)
    example = server.ask("GET", "/openapi.json").json()["paths"][path]["post"]["x-example"]
    command = example.replace("localhost:8000", f"127.0.0.1:{server.port}").replace("curl", "curl -sS")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    with Predictor.open(bundle_dir) as predictor:
        expected = predictor.predict(tmp_path / "photo.jpg").predictions
    response = json.loads(done.stdout)
    (found,) = response if path == "/score" else response["results"]
    _check(found, [(prediction.label, prediction.score) for prediction in expected])


def test_page_runs_its_own_script_and_nothing_else(server: Running) -> None:
    response = server.ask("GET", "/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy
