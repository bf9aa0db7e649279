"""The device kit: one archive with everything a device needs, this package included.

A kit holds a bundle reduced to the one model that the device shall run, the recorded outputs it is verified against, a
wheel of this package (pure Python, for any processor), and a README with the commands to run there.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import CHOSEN, RECIPE, REFERENCE, recording_name
from vitexport.device.preflight import check_engine, preflight
from vitexport.device.profiles import JETPACKS, DeviceProfile
from vitexport.errors import BundleError, EngineBuildError
from vitexport.files import atomic_path
from vitexport.runtimes.tensorrt.sidecar import read_sidecar
from vitexport.verification.select import Choice

__all__ = ["build_wheel", "write_kit"]

# ONNX Runtime's CPU execution provider has no kernels for these; float16 it computes in float32.
_NOT_ON_CPU = frozenset({"fp8", "fp4", "int4", "bfloat16"})


def write_kit(
    bundle: Bundle, choice: Choice, profile: DeviceProfile, out: str | Path, *, jetpack: str | None = None
) -> None:
    """Write the archive.

    Args:
        bundle: The bundle.
        choice: Which model of it.
        profile: The device.
        out: A ``.tar.gz`` file, written in one step.
        jetpack: JetPack release on the device; None takes the newest that runs on it.

    Raises:
        EngineBuildError: The model cannot work on the device.
        BundleError: The bundle has no recording to verify against, or an altered file.
    """
    artifact = bundle.artifact(choice.variant)
    _check(bundle, artifact, profile, jetpack)
    reference = bundle.find(recording_name(REFERENCE))
    if reference is None:
        raise BundleError(
            f"The bundle '{bundle.root}' has no recorded reference, so the device could not verify anything.",
            "Run its recipe to the end.",
        )
    # The model's own answers too: those are what the device is asked to give again.
    others = (reference, bundle.find(recording_name(choice.variant)), bundle.find(RECIPE))
    kept = [artifact, *(item for item in others if item is not None)]
    for item in kept:
        bundle.check_artifact(item)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / f"{bundle.name}-{profile.name}"
        _copy_bundle(_packed(bundle, kept, choice), root / "bundle")
        wheel = build_wheel(root)
        (root / "README.md").write_text(_readme(bundle, choice, profile, jetpack, wheel.name), encoding="utf-8")
        with atomic_path(Path(out)) as temporary:
            _pack(root, temporary)


def _check(bundle: Bundle, artifact: Artifact, profile: DeviceProfile, jetpack: str | None) -> None:
    if artifact.kind == "engine":
        sidecar = read_sidecar(bundle.path(artifact))
        problems = [] if sidecar is None else check_engine(profile, sidecar, jetpack=jetpack)
        if sidecar is None or problems:
            reasons = "; ".join(problem.why for problem in problems) or "its sidecar is missing"
            raise EngineBuildError(
                f"The engine '{artifact.name}' cannot run on {profile.title}: {reasons}.",
                "Pack the ONNX file it was built from with --variant, and build the engine on the device.",
            )
    elif profile.compute_capability:
        preflight(profile, product="tensorrt", precision=artifact.precision or None, jetpack=jetpack)
    elif artifact.precision in _NOT_ON_CPU:
        raise EngineBuildError(
            f"{profile.title} does not compute {artifact.precision}; it computes {', '.join(profile.precisions)}.",
            "Choose another model of the bundle with --variant.",
        )


def _packed(bundle: Bundle, kept: list[Artifact], choice: Choice) -> Bundle:
    """Return the bundle with what is kept only; its one model says that it was chosen here, and why."""
    reduced = bundle.without([artifact.name for artifact in bundle.artifacts if artifact not in kept])
    model = reduced.artifact(choice.variant)
    details = {**model.details, CHOSEN: list(choice.notes)}
    return reduced.with_artifact(model.model_copy(update={"details": details}))


def _copy_bundle(bundle: Bundle, root: Path) -> None:
    for artifact in bundle.artifacts:
        for record in (artifact.file, *artifact.companions):
            target = root / record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / record.path, target)
    Bundle(root, name=bundle.name, metadata=bundle.metadata, artifacts=bundle.artifacts).save()


def build_wheel(folder: str | Path) -> Path:
    """Write a wheel of this package, from the files it is running from, into ``folder``.

    The archive is laid out as the "Binary distribution format" of the Python Packaging User Guide says.
    """
    distribution = importlib.metadata.distribution("vitexport")
    package = Path(__file__).parent.parent
    info = f"vitexport-{distribution.version}.dist-info"
    contents = {
        f"vitexport/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    # A development install keeps its metadata in an egg-info directory, where the same text is called PKG-INFO.
    metadata = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
    if metadata is None:
        raise BundleError("This vitexport is not installed, so it cannot pack itself.", "Install it with pip.")
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: vitexport\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    lines = [f"{name},sha256={_wheel_hash(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    wheel = Path(folder) / f"vitexport-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return wheel


def _wheel_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _pack(root: Path, archive: Path) -> None:
    """Pack a directory so that equal content gives equal bytes; owners and times stay here."""
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(path.relative_to(root.parent).as_posix())
                entry.size = path.stat().st_size
                entry.mode = 0o644
                with path.open("rb") as stream:
                    tar.addfile(entry, stream if entry.size else io.BytesIO())


def _readme(bundle: Bundle, choice: Choice, profile: DeviceProfile, jetpack: str | None, wheel: str) -> str:
    artifact = bundle.artifact(choice.variant)
    gpu = bool(profile.compute_capability)
    release = jetpack or (profile.jetpacks[-1] if profile.jetpacks else None)
    facts = [
        f"- model: `{bundle.model.id}`, {artifact.name} ({artifact.precision}), {artifact.total_bytes / 2**20:.1f} MiB",
        f"- sha256: `{choice.sha256}`",
        *(f"- note: {note}" for note in choice.notes),
        f"- device: {profile.title}, {profile.architecture}, at least {profile.memory_gib:g} GiB",
        f"- image size: {bundle.preprocess.image_size[0]} x {bundle.preprocess.image_size[1]}",
    ]
    if release in JETPACKS:
        software = JETPACKS[release]
        facts.append(
            f"- JetPack {software.name}: TensorRT {software.tensorrt}, CUDA {software.cuda}, Python {software.python}"
        )
    model = artifact.file.path
    run = (
        f"vitexport build-engine bundle/{model} -o vit.engine --device {profile.name}"
        if gpu
        else "vitexport bench bundle"
    )
    runtime = "" if artifact.kind == "engine" else " onnxruntime"
    if artifact.kind == "engine":
        run = "vitexport bench bundle"
    built_here = run.startswith("vitexport build")
    predict = f"vitexport predict {'vit.engine' if built_here else 'bundle'} photo.jpg"
    venv = "python3 -m venv --system-site-packages .venv" if gpu else "python3 -m venv .venv"
    return "\n".join(
        [
            f"# {bundle.name} for {profile.title}",
            "",
            *facts,
            "",
            "Install (the wheel in this archive; TensorRT, where it is used, comes from the system):",
            "",
            f"    {venv} && . .venv/bin/activate",
            f"    pip install ./{wheel}{runtime}",
            "",
            "Then:",
            "",
            "    vitexport verify bundle",
            f"    {run}",
            *(["    vitexport verify bundle --engine vit.engine"] if built_here else []),
            f"    {predict}",
            "",
            "`verify` runs the model (with --engine, the engine) here on the recorded inputs and compares with",
            "PyTorch's outputs; it exits with 3 when they disagree. `vitexport doctor` says what this machine can do.",
            "",
        ]
    )
