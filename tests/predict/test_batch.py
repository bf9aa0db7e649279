from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.linear_model import CLASSES, save_image, write_model
from vitexport.cli.predict import predict
from vitexport.errors import ImageError, VitexportError
from vitexport.predict.batch import Chunk, ChunkPredictor, ChunkResult, Row, chunks
from vitexport.predict.job import predict_to_file
from vitexport.predict.journal import Journal, job_identity, journal_path
from vitexport.predict.predictor import Prediction, Predictor
from vitexport.predict.results import row_from_json, row_to_json
from vitexport.predict.settings import JobSettings
from vitexport.predict.sources import expand_sources

COUNT = 2000
BROKEN = COUNT // 20

_START = "from vitexport.cli.predict import predict; predict()"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 000 images in folders; every twentieth is broken, in five ways."""
    folder = tmp_path_factory.mktemp("photos")
    whole = save_image(folder.parent / "whole.png", 0).read_bytes()
    broken = (b"", b"hello", whole[:60], whole[:-40], b"\xff\xd8\xff" + bytes(50))
    for index in range(COUNT):
        path = folder / f"{index % 7}" / f"{index:05}.png"
        if index % 20 == 7:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(broken[index // 20 % 5])
        else:
            save_image(path, index)
    return folder


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(bundle_dir: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "results.jsonl"
    result = predict_to_file(JobSettings(bundle_dir), expand_sources([str(photos)]), out)
    assert (result.images, result.failed, result.resumed) == (COUNT, BROKEN, 0)
    return out


def test_every_image_has_a_row_and_every_broken_one_a_reason(reference: Path, photos: Path, bundle_dir: Path) -> None:
    rows = read(reference)
    assert [row["image"] for row in rows] == [str(path) for path in sorted(photos.rglob("*.png"))]
    bad = [row for row in rows if row["error"]]
    assert len(bad) == BROKEN
    assert all(int(Path(str(row["image"])).stem) % 20 == 7 for row in bad)
    assert all(row["label"] is None and row["top"] == [] for row in bad)
    assert {str(row["error"]).partition("'")[0] for row in bad} == {"Expected an image in ", ""}
    with Predictor.open(bundle_dir) as predictor:
        for row in rows[:40]:
            if not row["error"]:
                best = predictor.predict(str(row["image"])).best
                assert row["label"] == best.label
                assert row["score"] == pytest.approx(best.score, rel=1e-4)


def test_killed_job_resumes_with_nothing_lost_or_doubled(
    bundle_dir: Path, photos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-c", _START, str(bundle_dir), str(photos), "-o", str(out)]
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = journal_path(out).stat().st_size if journal_path(out).exists() else 0
        while process.poll() is None:
            if journal_path(out).exists() and journal_path(out).stat().st_size > before + 60_000:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.001)
        process.wait()
        assert out.exists() or journal_path(out).exists()
    assert kills >= 1
    with journal_path(out).open("r+b") as journal:  # as if the last kill had hit in the middle of a line
        journal.truncate(journal_path(out).stat().st_size - 100)
    result = predict_to_file(JobSettings(bundle_dir), expand_sources([str(photos)]), out)
    assert 0 < result.resumed < COUNT
    assert (result.images, result.failed) == (COUNT, BROKEN)
    assert out.read_bytes() == reference.read_bytes()
    assert not journal_path(out).exists()


def test_all_formats_say_the_same(bundle_dir: Path, photos: Path, reference: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = expand_sources([str(photos)])[:100]
    expected = read(reference)[:100]
    for suffix in (".csv", ".parquet"):
        predict_to_file(JobSettings(bundle_dir), paths, tmp_path / f"results{suffix}")
    assert parquet.read_table(tmp_path / "results.parquet").to_pylist() == expected
    with (tmp_path / "results.csv").open(newline="") as stream:
        for found, want in zip(csv.DictReader(stream), expected, strict=True):
            assert found["label"] == (want["label"] or "")
            assert (json.loads(found["top"]) if found["top"] else []) == want["top"]
            assert found["error"] == (want["error"] or "")


def test_paths_may_be_text(bundle_dir: Path, photos: Path, reference: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in expand_sources([photos])[:20]]
    predict_to_file(JobSettings(str(bundle_dir)), paths, str(tmp_path / "r.jsonl"))
    assert read(tmp_path / "r.jsonl") == read(reference)[:20]


def test_features_are_written_as_vectors(photos: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "features.onnx", task="features")
    predict_to_file(JobSettings(model), expand_sources([str(photos)])[:30], tmp_path / "vectors.jsonl")
    rows = read(tmp_path / "vectors.jsonl")
    assert list(rows[0]) == ["image", "features", "error", "variant", "model_version"]
    assert {len(row["features"]) for row in rows if not row["error"]} == {len(CLASSES)}  # type: ignore[arg-type]
    assert all(row["features"] is None for row in rows if row["error"])


def test_exit_code_says_that_images_were_bad(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    arguments = [str(bundle_dir), str(photos / "0"), "-o", str(tmp_path / "r.jsonl")]
    result = CliRunner().invoke(predict, arguments)
    assert isinstance(result.exception, ImageError)
    assert "images could not be used" in str(result.exception)
    assert (tmp_path / "r.jsonl").exists()


def test_existing_results_and_other_jobs_are_not_overwritten_by_accident(
    bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    paths = expand_sources([str(photos / "0")])[:20]
    out = tmp_path / "r.jsonl"
    out.write_text("precious")
    with pytest.raises(VitexportError, match="exists already"):
        predict_to_file(JobSettings(bundle_dir), paths, out)
    assert out.read_text() == "precious"
    predict_to_file(JobSettings(bundle_dir), paths, out, overwrite=True)
    assert len(read(out)) == 20
    other = tmp_path / "other.jsonl"
    Journal(journal_path(other), job_identity(chunks(paths, 4), {"top": 9})).__exit__(None, None, None)
    with pytest.raises(VitexportError, match="another job"):
        predict_to_file(JobSettings(bundle_dir), paths, other)
    with pytest.raises(VitexportError, match=r"\.jsonl, \.csv, \.parquet"):
        predict_to_file(JobSettings(bundle_dir), paths, tmp_path / "r.xlsx")


def test_journal_survives_a_cut_at_every_byte(tmp_path: Path) -> None:
    results = [ChunkResult(index, (Row(f"{index}.png", (Prediction("ä", 0.5),)),)) for index in range(3)]
    identity = job_identity(chunks([Path("a"), Path("b"), Path("c")], 1), {"top": 1})
    path = tmp_path / "whole"
    with Journal(path, identity) as journal:
        for result in results:
            journal.add(result)
        assert list(journal.rows()) == [row for result in results for row in result.rows]
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        part = tmp_path / "part"
        part.write_bytes(data[:cut])
        with Journal(part, identity) as journal:
            for result in results:
                if result.index not in journal.done:
                    journal.add(result)
            assert list(journal.rows()) == [row for result in results for row in result.rows]
        assert part.read_bytes() == data


def test_rows_survive_json() -> None:
    rows = [Row("a", (Prediction("x", 0.25),)), Row("b", features=(1.5, -2.0)), Row("c", error="why")]
    assert [row_from_json(json.loads(json.dumps(row_to_json(row)))) for row in rows] == rows


def test_chunk_of_bad_images_only_needs_no_model(bundle_dir: Path, tmp_path: Path) -> None:
    with Predictor.open(bundle_dir) as predictor:
        result = ChunkPredictor(predictor, 1)(Chunk(3, (tmp_path / "absent.png",)))
    assert result.index == 3
    assert "Cannot read the image" in result.rows[0].error


@pytest.mark.filterwarnings("ignore")  # Ray and what it imports warn about their own deprecations
def test_ray_engine_writes_an_identical_file(bundle_dir: Path, photos: Path, reference: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="ray[data] is not installed")
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-c", _START, str(bundle_dir), str(photos), "-o", str(out), "--engine", "ray"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    )
    assert out.exists(), done.stderr[-3000:]
    assert out.read_bytes() == reference.read_bytes()
    assert done.returncode == 1  # images were bad
