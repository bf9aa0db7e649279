"""The base of everything a recipe holds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings"]


class Settings(BaseModel):
    """Settings that never change once they are read; a key that they do not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
