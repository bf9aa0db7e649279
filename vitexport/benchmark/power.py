"""Power of a Jetson while something runs, from ``tegrastats``. Standard library only.

Rails are read as the board names them. What the whole module draws is one rail where the board measures its input
(``VDD_IN`` on Orin Nano, Orin NX and Xavier NX, ``POM_5V_IN`` on Nano and TX2, ``VIN`` on Thor); AGX boards measure the
parts only, and then their sum is given: a lower bound, because regulators and carrier board are not measured.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType

from typing_extensions import Self

__all__ = ["Power", "PowerMeter", "parse_tegrastats", "summarize_power", "tegrastats"]

_RAIL = re.compile(r"\b((?:VDD|VIN|POM|CPU|GPU|SOC|CV|SYS5V|NC)[A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)")
_INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
# Fed by VIN_SYS_5V0 on AGX Orin, so it is in that rail's figure already.
_INSIDE = frozenset({"VDDQ_VDD2_1V8AO"})


@dataclass(frozen=True)
class Power:
    """Mean power over a measurement.

    Attributes:
        watts: Of the whole module, or of all measured rails where its input is not measured.
        of: The rail that is, or ``sum of rails``.
        rails: Mean watts of each rail.
        samples: Lines of tegrastats that were averaged.
    """

    watts: float
    of: str
    rails: Mapping[str, float]
    samples: int

    def joules_per_image(self, images_per_second: float) -> float:
        """Return the energy of one image in joules: watts over images per second."""
        return self.watts / images_per_second


def parse_tegrastats(line: str) -> dict[str, float]:
    """Return the present power of each rail in watts; empty for a line that names none.

    tegrastats prints ``RAIL now/average`` in milliwatts, with the unit since JetPack 5 and without before.
    """
    return {name: int(now) / 1e3 for name, now in _RAIL.findall(line)}


def summarize_power(samples: list[dict[str, float]]) -> Power | None:
    """Average samples of :func:`parse_tegrastats`; None when no line named a rail."""
    kept = [sample for sample in samples if sample]
    if not kept:
        return None
    rails = {name: fmean(sample[name] for sample in kept if name in sample) for name in kept[0]}
    for name in _INPUTS:
        if name in rails:
            return Power(rails[name], name, rails, len(kept))
    return Power(sum(v for name, v in rails.items() if name not in _INSIDE), "sum of rails", rails, len(kept))


def tegrastats() -> str | None:
    """Return the path of the program, or None where this is no Jetson."""
    return shutil.which("tegrastats")


class PowerMeter:
    """Reads tegrastats while the block runs.

    Args:
        program: Path of tegrastats.
        interval_ms: Time between two samples in milliseconds.
    """

    def __init__(self, program: str, interval_ms: int = 100) -> None:
        self._command = [program, "--interval", str(interval_ms)]
        self._samples: list[dict[str, float]] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._samples.append(parse_tegrastats(line))

    @property
    def power(self) -> Power | None:
        """Mean power since the block began; None when tegrastats named no rail."""
        return summarize_power(list(self._samples))
