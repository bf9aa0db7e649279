"""Create one virtual environment per peer, each from its pinned requirements file in this folder.

    python -m benchmarks.peers.install                  every peer
    python -m benchmarks.peers.install nncf modelopt    these

The environments go to ``.peers/`` in the project's root, or to ``$VITEXPORT_PEERS``. A peer that does not install is
reported with pip's reason and left out; the benchmarks skip it by name.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.paths import ROOT

__all__ = ["install", "peer_names", "peer_python", "peers_folder", "why_absent"]

HERE = Path(__file__).resolve().parent
_DONE, _FAILED = "installed.txt", "failed.txt"


def peers_folder() -> Path:
    """Return where the environments are: ``$VITEXPORT_PEERS``, or ``.peers`` in the project's root."""
    chosen = os.environ.get("VITEXPORT_PEERS")
    return Path(chosen).expanduser().resolve() if chosen else ROOT / ".peers"


def peer_names() -> tuple[str, ...]:
    """Return the peers that have a requirements file."""
    return tuple(sorted(path.stem for path in HERE.glob("*.txt")))


def peer_python(name: str) -> Path | None:
    """Return the interpreter of a peer's environment, or None where it is not installed."""
    environment = peers_folder() / name
    python = _interpreter(environment)
    return python if python.is_file() and (environment / _DONE).is_file() else None


def why_absent(name: str) -> str:
    """Return why a peer is not installed, in one line."""
    failed = peers_folder() / f"{name}-{_FAILED}"
    if failed.is_file():
        return f"does not install: {failed.read_text(encoding='utf-8').strip()}"
    return "not installed (`make peers`)"


def install(name: str) -> str:
    """Make a peer's environment; nothing is done where its requirements were installed already.

    Returns:
        An empty string, or why pip could not.
    """
    requirements = HERE / f"{name}.txt"
    pinned = hashlib.sha256(requirements.read_bytes()).hexdigest()
    environment = peers_folder() / name
    done, failed = environment / _DONE, peers_folder() / f"{name}-{_FAILED}"
    if done.is_file() and done.read_text(encoding="utf-8").strip() == pinned:
        return ""
    done.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    if not _interpreter(environment).is_file():
        venv.create(environment)
    # This interpreter's pip installs into the other environment (pip >= 22.3), which then needs none of its own.
    command = [sys.executable, "-m", "pip", "--python", str(_interpreter(environment)), "install", "--quiet"]
    command += ["--disable-pip-version-check", "-r", str(requirements)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        lines = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR:")] or ["pip failed"]
        reason = lines[-1].removeprefix("ERROR:").strip()
        failed.write_text(f"{reason}\n", encoding="utf-8")
        return reason
    done.write_text(f"{pinned}\n", encoding="utf-8")
    return ""


def _interpreter(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> int:
    """Install what was asked for; returns 1 when a peer could not be installed."""
    parser = command_parser("peers.install", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(peer_names())}; all by default")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(peer_names()))
    if unknown:
        parser.error(f"no requirements file for {', '.join(unknown)}; there are {', '.join(peer_names())}")
    failed = 0
    for name in arguments.names or peer_names():
        reason = install(name)
        print(f"{name}: {reason or 'installed'}", flush=True)
        failed += bool(reason)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
