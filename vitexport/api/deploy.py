"""Files for another place: a Triton repository, a DeepStream configuration, a device kit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitexport.api.arguments import open_bundle, require_positive
from vitexport.errors import RecipeError
from vitexport.extras import names_missing_extras
from vitexport.files import as_path, finite
from vitexport.inputs.images import load_image
from vitexport.predict.sources import expand_sources
from vitexport.tables import Table, Tabular, cell
from vitexport.verification.select import Choice, choose_variant

if TYPE_CHECKING:
    from vitexport.deploy.deepstream import PreprocessParity

__all__ = ["DeepstreamConfig", "DeviceKit", "TritonRepository", "deepstream", "kit", "triton"]

_PARITY_LIMIT = 1e-5
_PARITY_IMAGES = 64


@dataclass(frozen=True, repr=False)
class TritonRepository(Tabular):
    """A model in a Triton model repository.

    Attributes:
        repository: What ``--model-repository`` of Triton takes.
        model: Folder of the model inside it.
        choice: Which variant of the bundle it is, and why not a later one.
    """

    repository: Path
    model: Path
    choice: Choice

    @property
    def name(self) -> str:
        """Name that Triton serves the model under."""
        return self.model.name

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        places = {"repository": str(self.repository), "model": str(self.model), "name": self.name}
        return {**places, **self.choice.to_dict()}

    def tables(self) -> tuple[Table, ...]:
        """Return where the model lies, and how Triton is started."""
        start = f"tritonserver --model-repository={self.repository}"
        facts = {"model": self.name, **_chosen(self.choice), "folder": str(self.model), "start": start}
        return (Table.of_facts(facts),)


def triton(
    bundle: str | PathLike[str],
    out: str | PathLike[str],
    *,
    name: str | None = None,
    variant: str | None = None,
    max_batch: int = 8,
    max_delay_us: int = 2000,
    instances: int = 1,
    kind: Literal["gpu", "cpu"] = "gpu",
    tensorrt: bool = False,
) -> TritonRepository:
    """Write a bundle as a model of a Triton repository: model, ``config.pbtxt``, labels, preprocessing.

    Example::

        print(vx.triton("out/quickstart", "model_repository", kind="cpu"))

    Args:
        bundle: Bundle directory, or an opened bundle.
        out: Model repository, which may hold other models.
        name: Name of the model; None takes the bundle's.
        variant: Which model of the bundle; None takes the last one its checks accept.
        max_batch: Largest batch; a model of a fixed batch size has its own.
        max_delay_us: Microseconds that a request waits for others.
        instances: Copies of the model that run at the same time.
        kind: ``gpu`` or ``cpu``.
        tensorrt: Run the ONNX file through ONNX Runtime's TensorRT provider.

    Raises:
        BundleError: The bundle has no such model.
        RecipeError: A number is less than 1, ``kind`` is another word, or ``tensorrt`` is asked for on a CPU.
        VitexportError: The name is no directory name, or an engine is asked to run on a CPU.
    """
    from vitexport.deploy.triton import TritonSettings, write_repository

    require_positive(max_batch=max_batch, instances=instances)
    if kind not in ("gpu", "cpu"):
        raise RecipeError(f"Expected kind to be 'gpu' or 'cpu', found '{kind}'.", "Choose one of them.")
    if tensorrt and kind == "cpu":
        raise RecipeError("Expected kind 'gpu' with the TensorRT provider, found 'cpu'.", "Leave one of them out.")
    settings = TritonSettings(name, max_batch, max_delay_us, instances, kind, tensorrt)
    folder, opened = as_path(out, "a model repository"), open_bundle(bundle)
    choice = choose_variant(opened, variant)
    return TritonRepository(folder, write_repository(opened, choice, folder, settings), choice)


@dataclass(frozen=True, repr=False)
class DeepstreamConfig(Tabular):
    """An nvinfer configuration, and what its preprocessing changes.

    Attributes:
        config: The configuration; ``model.onnx`` and ``labels.txt`` lie beside it.
        parity: How far DeepStream is from the bundle; None where no images were given.
        choice: Which variant of the bundle it is, and why not a later one.
    """

    config: Path
    parity: PreprocessParity | None
    choice: Choice

    @property
    def passed(self) -> bool:
        """Whether equal pixels give equal probabilities (to 1e-5); True where it was not measured."""
        return self.parity is None or self.parity.same_pixels <= _PARITY_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        parity = None if self.parity is None else finite(asdict(self.parity))
        return {"config": str(self.config), "parity": parity, **self.choice.to_dict()}

    def tables(self) -> tuple[Table, ...]:
        """Return the file, and the differences in probability."""
        facts = {"config": str(self.config), **_chosen(self.choice)}
        if self.parity is None:
            return (Table.of_facts({**facts, "preprocessing": "not measured"}),)
        found = self.parity
        facts |= {
            "images": str(found.images),
            "largest difference on the same pixels": cell(found.same_pixels, ".1e"),
            "largest with nvinfer's own resize": cell(found.own_resize, ".3f"),
            "mean with nvinfer's own resize": cell(found.own_resize_mean, ".3f"),
            "equal decisions %": cell(found.agreement, ".1f", 100),
        }
        return (Table.of_facts({**facts, **{f"preprocessing {i}": note for i, note in enumerate(found.notes, 1)}}),)


@names_missing_extras("Writing a DeepStream configuration")
def deepstream(
    bundle: str | PathLike[str],
    out: str | PathLike[str],
    *,
    variant: str | None = None,
    batch: int = 8,
    images: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
) -> DeepstreamConfig:
    """Write a DeepStream nvinfer configuration, and measure on images what its preprocessing changes.

    Example::

        print(vx.deepstream("out/quickstart", "deepstream", images="calib/holdout"))

    Args:
        bundle: Bundle directory, or an opened bundle; a classifier.
        out: Directory for ``config_infer.txt``, ``model.onnx`` and ``labels.txt``.
        variant: Which model of the bundle; None takes the last one its checks accept.
        batch: Frames per run.
        images: Images, folders, patterns or lists to measure on, of which the first 64 are used.

    Returns:
        The configuration; probabilities that differ are a result, not an exception.

    Raises:
        BundleError: The bundle has no such ONNX model, or is no classifier.
        ExportError: The model cannot take raw pixels.
        ImageError: An image cannot be used.
        RecipeError: ``batch`` is less than 1.
    """
    from vitexport.deploy.deepstream import measure_parity, write_deepstream

    require_positive(batch=batch)
    opened = open_bundle(bundle)
    choice = choose_variant(opened, variant, onnx=True)
    config = write_deepstream(opened, choice, as_path(out, "a folder"), batch=batch)
    if images is None:
        return DeepstreamConfig(config, None, choice)
    sources = [images] if isinstance(images, str | PathLike) else images
    pictures = [load_image(path) for path in expand_sources(sources)[:_PARITY_IMAGES]]
    return DeepstreamConfig(config, measure_parity(opened, choice, config, pictures), choice)


@dataclass(frozen=True, repr=False)
class DeviceKit(Tabular):
    """An archive with everything a device needs.

    Attributes:
        path: The ``.tar.gz`` file.
        device: Name of the device profile.
        title: Name people know the device by.
        choice: The model that was packed, and why not a later one.
    """

    path: Path
    device: str
    title: str
    choice: Choice

    @property
    def variant(self) -> str:
        """Name of the model that was packed."""
        return self.choice.variant

    @property
    def bytes(self) -> int:
        """Size of the archive in bytes."""
        return self.path.stat().st_size

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        facts = {"path": str(self.path), "bytes": self.bytes, "device": self.device, "title": self.title}
        return {**facts, **self.choice.to_dict()}

    def tables(self) -> tuple[Table, ...]:
        """Return what was packed for which device."""
        size = f"{self.bytes / 2**20:.1f}"
        facts = {"file": str(self.path), "MiB": size, **_chosen(self.choice), "device": self.title}
        return (Table.of_facts(facts),)


def kit(
    bundle: str | PathLike[str],
    device: str,
    out: str | PathLike[str] | None = None,
    *,
    variant: str | None = None,
    jetpack: str | None = None,
) -> DeviceKit:
    """Pack model, recordings, this package and a README for one device; refuse what cannot work there.

    Example::

        print(vx.kit("out/quickstart", "orin-nano"))

    Args:
        bundle: Bundle directory, or an opened bundle, as a finished run leaves it.
        device: Device profile, e.g. ``orin-nano``, ``l4``, ``arm-cpu``.
        out: The ``.tar.gz`` file to write; None takes ``NAME-DEVICE.tar.gz`` in the working directory.
        variant: Which model of the bundle; None takes the last one its checks accept.
        jetpack: JetPack release on the device; None takes the newest for it.

    Raises:
        RecipeError: There is no such device, or it has no JetPack.
        EngineBuildError: The model cannot work on it.
        BundleError: The bundle has no such model, no recording to verify against, or an altered file.
    """
    from vitexport.deploy.device_kit import write_kit
    from vitexport.device.profiles import device_profile

    profile = device_profile(device)
    if jetpack is not None and not profile.jetpacks:
        raise RecipeError(f"Expected no JetPack release for {profile.title}, found '{jetpack}'.", "Leave jetpack out.")
    opened = open_bundle(bundle)
    path = Path(f"{opened.name}-{profile.name}.tar.gz") if out is None else Path(out)
    choice = choose_variant(opened, variant)
    write_kit(opened, choice, profile, path, jetpack=jetpack)
    return DeviceKit(path, profile.name, profile.title, choice)


def _chosen(choice: Choice) -> dict[str, str]:
    """Return the facts of a choice for a table."""
    notes = {f"note {i}": note for i, note in enumerate(choice.notes, 1)}
    return {"variant": choice.variant, "sha256": choice.sha256, **notes}
