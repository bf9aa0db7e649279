"""A model that does not answer the same for the same image is refused, and its file is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vitexport as vx
from vitexport.errors import ExportError
from vitexport.host import export as exporter
from vitexport.host.export_check import compare_with_pytorch
from vitexport.host.sources.live import wrap_module
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.recipe.settings import ExportSettings

SPEC = PreprocessSpec(
    image_size=(16, 16), resize=Resize(mode="squash", size=(16, 16)), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(768, 4)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return self.noise(self.head(planes.flatten(1)))

    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Uniform(Plain):
    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.rand_like(values)


class Dropping(Plain):
    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(values, 0.5, training=True)


class NumPyNoise(Plain):
    """Noise that a trace freezes into a constant, and no graph shows."""

    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.from_numpy(np.random.default_rng().normal(size=4).astype(np.float32))


class ByPlace(Plain):
    """Answers by the place in the batch; the same for the first image whatever is with it."""

    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.arange(values.shape[0], dtype=torch.float32)[:, None]


class NotANumber(Plain):
    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return values * float("nan")


class Mixed(Plain):
    def noise(self, values: torch.Tensor) -> torch.Tensor:
        return values - values.mean(dim=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Uniform(), r"draws random numbers: Random\w+"),
        (Dropping(), r"draws random numbers: \w+"),
        (NumPyNoise(), "PyTorch gives another 'logits' when it is asked twice"),
        (ByPlace(), "PyTorch gives another 'logits' for it at another place of the batch"),
        (NotANumber(), "does not answer as PyTorch does: the largest difference is inf"),
        (Mixed(), "answers otherwise for an image when others are in its batch"),
    ],
    ids=["uniform", "dropout", "numpy", "place", "nan", "mixed"],
)
def test_what_changes_from_run_to_run_is_refused(model: torch.nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        vx.export(model, tmp_path / "m.onnx", preprocess=SPEC)
    assert caught.value.hint and list(tmp_path.iterdir()) == []


def test_a_graph_that_draws_numbers_is_caught_by_its_answers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_refuse_randomness", lambda model, spec: None)
    with pytest.raises(ExportError, match="PyTorch gives another 'logits' when it is asked twice"):
        vx.export(Uniform(), tmp_path / "m.onnx", preprocess=SPEC)
    result = exporter.export_onnx(wrap_module(Uniform(), SPEC), ExportSettings(), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="the exported graph gives another 'logits' when it is asked twice"):
        compare_with_pytorch(wrap_module(Plain(), SPEC), result.path)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_model_passes_and_the_callers_random_state_stays(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    result = vx.export(Plain(), tmp_path / "m.onnx", preprocess=SPEC)
    assert result.details["max_rel_difference"] < 1e-5 and "note" in result.details
    loaded = wrap_module(Plain(), SPEC)
    torch.manual_seed(3)
    compare_with_pytorch(loaded, result.path)
    assert torch.equal(torch.rand(2), expected)
