"""Checkpoints on the Hugging Face hub: fetched once into its cache, and said how to fetch when that fails."""

from __future__ import annotations

from pathlib import Path

from vitexport.errors import ModelSourceError

__all__ = ["fetch"]

_DESCRIPTION = ["*.json"]
_SAFE = ["*.safetensors"]
_PICKLES = ["*.bin", "*.pth", "*.pt"]


def fetch(repository: str, revision: str | None, *, allow_pickle: bool) -> tuple[Path, str]:
    """Download a checkpoint, or take it from the cache.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
        allow_pickle: Also fetch pickles when there are no safetensors.

    Returns:
        The local directory and the commit.

    Raises:
        ModelSourceError: The repository does not exist, is not accessible, or is not cached while offline.
    """
    from huggingface_hub import snapshot_download

    def download(patterns: list[str]) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))

    try:
        folder = download([*_DESCRIPTION, *_SAFE])
        if allow_pickle and not any(folder.glob("*.safetensors")):
            folder = download([*_DESCRIPTION, *_PICKLES])
    except _hub_errors() as error:
        at = f" --revision {revision}" if revision else ""
        raise ModelSourceError(
            f"'{repository}' is neither in the local cache nor can it be fetched from the Hugging Face hub: "
            f"{_first_line(error)}",
            f"With a network: `hf download {repository}{at}` (after `hf auth login` if it is gated). Without: copy its "
            "directory here and give the path.",
        ) from error
    return folder, folder.name


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return what a download raises; the HTTP client's own root depends on huggingface_hub (httpx, httpx2)."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    clients = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (HFValidationError, OSError, *clients)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
