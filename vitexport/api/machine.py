"""What this machine can do, and which models this package knows by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitexport.device.doctor import MachineDiagnosis, diagnose_machine
from vitexport.files import finite
from vitexport.host.sources.families import FAMILIES, Family
from vitexport.tables import Table, Tabular

__all__ = ["ModelFamilies", "doctor", "models"]

_OTHERS = (
    "Any other timm or Hugging Face model whose forward maps pixel_values to tensors is attempted generically, and the "
    "export says so. Sources: a hub id (owner/name), a Hugging Face directory, timm:NAME, timm:local-dir:PATH, or "
    "timm:NAME@WEIGHTS."
)


def doctor() -> MachineDiagnosis:
    """Say what this machine can do, which runtimes open, and what to install for the rest.

    Runtimes are opened in processes of their own, so this takes seconds, and a broken one crashes only its process.

    Example::

        machine = vx.doctor()
        print(machine)
        print([runtime.name for runtime in machine.runtimes if runtime.usable])

    Returns:
        Packages, GPUs (memory in bytes), CPU features, runtimes and advice; what is missing is a result, not an
        exception.
    """
    return diagnose_machine()


@dataclass(frozen=True, repr=False)
class ModelFamilies(Tabular):
    """The model families that this package knows by name.

    Attributes:
        families: Them, the special ones before the general.
        others: What is done with all other models.
    """

    families: tuple[Family, ...]
    others: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"families": [finite(asdict(family)) for family in self.families], "others": self.others}

    def tables(self) -> tuple[Table, ...]:
        """Return one row per family, and what is done with other models."""
        rows = tuple(
            (
                family.name,
                family.title,
                ", ".join(family.huggingface) or "-",
                "yes" if family.timm else "-",
                family.outputs,
                family.example,
            )
            for family in self.families
        )
        columns = ("family", "model", "Hugging Face", "timm", "gives", "for example")
        return (Table("", columns, rows, text=columns), Table("", ("other models",), ((self.others,),)))


def models() -> ModelFamilies:
    """List the supported model families, where they come from, and what each gives.

    Example::

        print(vx.models())
        print([family.example for family in vx.models().families])
    """
    return ModelFamilies(FAMILIES, _OTHERS)
