from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.linear_model import CLASSES, write_bundle
from vitexport.bundle.bundle import Bundle
from vitexport.cli.triton import triton
from vitexport.deploy.triton import TritonSettings, write_repository
from vitexport.errors import VitexportError
from vitexport.files import sha256_file
from vitexport.verification.select import choose_variant

config_module = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")


def parse(folder: Path) -> Any:
    """Parse with the definition that Triton itself parses with; unknown fields and wrong types are errors."""
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), config_module.ModelConfig())


def test_repository_has_what_triton_expects(tmp_path: Path, bundle_dir: Path) -> None:
    result = CliRunner().invoke(triton, [str(bundle_dir), "-o", str(tmp_path), "--max-delay-us", "500"])
    assert result.exit_code == 0, result.output
    config = parse(tmp_path / "linear")
    assert (config.name, config.backend, config.max_batch_size) == ("linear", "onnxruntime", 8)
    (tensor,) = config.input
    assert (tensor.name, tensor.data_type, list(tensor.dims)) == (
        "pixel_values",
        config_module.DataType.TYPE_FP32,
        [3, 16, 16],
    )
    (answer,) = config.output
    assert (answer.name, list(answer.dims), answer.label_filename) == ("logits", [len(CLASSES)], "labels.txt")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, config_module.ModelInstanceGroup.KIND_GPU)
    ]
    assert (tmp_path / "linear" / "labels.txt").read_text().splitlines() == list(CLASSES)
    assert sha256_file(tmp_path / "linear" / "1" / "model.onnx") == Bundle.open(bundle_dir).models[-1].file.sha256


def test_fixed_batch_is_part_of_the_shape_and_is_not_batched(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", batch=4))
    config = parse(
        write_repository(bundle, choose_variant(bundle), tmp_path / "repository", TritonSettings(kind="cpu"))
    )
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 3, 16, 16]
    assert not config.HasField("dynamic_batching")


def test_tensorrt_provider_and_instances(tmp_path: Path, bundle_dir: Path) -> None:
    settings = TritonSettings(name="vit-b.16", instances=3, tensorrt=True)
    bundle = Bundle.open(bundle_dir)
    config = parse(write_repository(bundle, choose_variant(bundle), str(tmp_path), settings))
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in accelerators] == ["tensorrt"]
    assert config.instance_group[0].count == 3
    assert config.name == "vit-b.16"


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", 'x" platform: "y'])
def test_name_that_is_no_directory_name_is_refused(tmp_path: Path, bundle_dir: Path, name: str) -> None:
    bundle = Bundle.open(bundle_dir)
    with pytest.raises(VitexportError, match="model name"):
        write_repository(bundle, choose_variant(bundle), tmp_path / "repository", TritonSettings(name=name))
    assert not (tmp_path / "repository").exists()
