"""How many channels a model takes, and that its preprocessing makes as many."""

from __future__ import annotations

from typing import Any

from vitexport.errors import ModelSourceError
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.inputs.standard import CHANNEL_MODES

__all__ = ["huggingface_channels", "per_channel", "require_channels", "timm_channels"]


def huggingface_channels(config: Any) -> int | None:
    """Return ``num_channels`` of a transformers config, or of the part of it that sees images; None if it has none."""
    parts = (config, *(getattr(config, name, None) for name in ("vision_config", "backbone_config")))
    found = (getattr(part, "num_channels", None) for part in parts)
    return next((channels for channels in found if isinstance(channels, int)), None)


def timm_channels(model: Any) -> int:
    """Return ``in_chans`` of a timm model; those of the images its configuration names where it does not keep it."""
    found = getattr(model, "in_chans", None)
    return int(found if found is not None else (model.pretrained_cfg.get("input_size") or (3,))[0])


def per_channel(values: Any, channels: int, *, setting: str, where: str, hint: str) -> tuple[float, ...]:
    """Return one value per channel of a ``mean`` or ``std``; a single number, not in a list, counts for all of them.

    Args:
        values: As the source library's configuration has it.
        channels: Number of channels the model takes.
        setting: What the error message calls it.
        where: Where it was found, for the error message.
        hint: What to do about another number of values.

    Raises:
        ModelSourceError: There are more or fewer values, they are no numbers, or no image has so many channels.
    """
    if channels not in CHANNEL_MODES:
        known = ", ".join(f"{count} ({mode})" for count, mode in CHANNEL_MODES.items())
        raise ModelSourceError(
            f"Expected a model that takes images of {known} channels, found one that takes {channels}.",
            "Put a layer in front of it that makes its channels of RGB or RGBA, and export that module from Python.",
        )
    if isinstance(values, int | float):
        return (float(values),) * channels
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        raise ModelSourceError(f"Expected numbers as '{setting}' of {where}, found {values!r}.", hint)
    if len(values) != channels:
        raise ModelSourceError(
            f"Expected as many values in '{setting}' of {where} as the model takes channels, {channels} "
            f"({CHANNEL_MODES[channels]}), found {len(values)}: {', '.join(f'{value:g}' for value in values)}.",
            hint,
        )
    return tuple(float(value) for value in values)


def require_channels(channels: int | None, preprocess: PreprocessSpec, *, where: str) -> None:
    """Raise unless the preprocessing makes as many channels as the model takes, where that is known.

    Raises:
        ModelSourceError: It does not; the message names both.
    """
    if channels is not None and channels != preprocess.channels:
        raise ModelSourceError(
            f"Expected images of {channels} channels for '{where}', found a preprocessing that makes "
            f"{preprocess.channels} ({CHANNEL_MODES[preprocess.channels]}).",
            "Give its mean and std one value per channel of the model.",
        )
