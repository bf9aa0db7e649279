"""From a report's document to the pages people read."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitexport.errors import MissingDependencyError
from vitexport.report.figures import build_figures
from vitexport.report.wording import FILTERS

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_html", "render_markdown", "thumbnail"]

_EDGE = 160


def render_html(document: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Render the self-contained page.

    Args:
        document: As :func:`vitexport.report.document.build_document` makes it.
        pictures: Image name to a ``data:`` address of its thumbnail; images without one are named only.

    Raises:
        MissingDependencyError: Jinja2 or matplotlib is not installed.
    """
    environment = _environment(escape=True)
    figures = {figure.key: figure for figure in build_figures(document)}
    return environment.get_template("report.html.j2").render(report=document, figures=figures, pictures=pictures)


def render_markdown(document: Mapping[str, Any]) -> str:
    """Render the page for terminals, pull requests and model cards.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    return _environment(escape=False).get_template("report.md.j2").render(report=document)


def thumbnail(pixels: NDArray[np.uint8], channel_order: str = "rgb") -> str:
    """Return uint8 ``[H, W, C]`` pixels (grey, colours, or colours with alpha) as a ``data:`` address of a small JPEG.

    Small inputs (digits, icons) are enlarged without smoothing, so that one sees what the model sees.
    """
    array = pixels if channel_order == "rgb" else pixels[:, :, ::-1]
    image = Image.fromarray(np.ascontiguousarray(array.squeeze(axis=2) if array.shape[2] == 1 else array))
    longest = max(image.size)
    scale = _EDGE / longest
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)
    image = image.convert("RGB") if image.mode == "RGBA" else image  # JPEG holds no alpha
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _environment(*, escape: bool) -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError("Jinja2", "report", "Writing report.html") from error
    environment = Environment(
        loader=PackageLoader("vitexport.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment
