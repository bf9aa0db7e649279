"""From a YAML file, a model source or ``key=value`` pairs to a validated recipe."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vitexport.errors import RecipeError
from vitexport.inputs.labels.find import NO_LABELS
from vitexport.recipe.settings import ImageSet, Recipe
from vitexport.source import ModelSource

__all__ = [
    "GivenData",
    "default_recipe",
    "load_recipe",
    "override_data",
    "override_settings",
    "parse_recipe",
    "validated",
]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and make its relative paths absolute.

    Raises:
        RecipeError: The file is missing, is not YAML, or does not describe a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Expected a recipe at '{path}', found: {error}", "Give the path of a YAML file.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"'{path}' is not valid YAML: {error}", "Fix the syntax at that position.") from error
    return _resolve_paths(parse_recipe(data, where=str(path)), path.resolve().parent)


def parse_recipe(data: object, *, where: str) -> Recipe:
    """Validate recipe data.

    Args:
        data: What YAML made of the file.
        where: Name of the file, for error messages.

    Raises:
        RecipeError: Names every wrong key by its path in the file, with a suggestion where one is close.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(
            f"Expected '{where}' to hold a mapping of settings, found {type(data).__name__}.",
            "A recipe starts with `name:`, `model:` and `data:`; see recipes/ for examples.",
        )
    return validated(Recipe, data, where=where)


Settings = TypeVar("Settings", bound=BaseModel)


def validated(model: type[Settings], data: Mapping[str, Any], *, where: str) -> Settings:
    """Validate settings of any stage.

    Args:
        model: The settings' class.
        data: Values by name.
        where: What the error message calls them.

    Raises:
        RecipeError: Names every wrong key, with a suggestion where one is close.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, dict(item)) for item in error.errors()]
        raise RecipeError(
            f"'{where}' has {len(lines)} wrong setting{'s' * (len(lines) > 1)}:\n" + "\n".join(f"  {x}" for x in lines),
            "Correct the named keys; docs/recipes.md lists all of them.",
        ) from error


def _explain(root: type[BaseModel], item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    dotted = ".".join(location)
    if item["type"] != "extra_forbidden":
        found = "" if item["type"] == "missing" else f", found {item['input']!r}"
        return f"{dotted}: {item['msg']}{found}"
    known = list(_settings_at(root, location[:-1]))
    close = difflib.get_close_matches(location[-1], known, n=1)
    suggestion = f"did you mean '{close[0]}'?" if close else f"known keys here: {', '.join(known)}"
    return f"{dotted}: unknown key; {suggestion}"


def _settings_at(root: type[BaseModel], location: list[str]) -> Mapping[str, object]:
    """Return the fields of the settings model found by following ``location`` from ``root``."""
    model = root
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return model.model_fields


def _resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    """Make relative paths absolute; a model source is a path only if that path exists."""

    def image_set(images: ImageSet | None) -> ImageSet | None:
        if images is None:
            return None
        labels = base / images.labels if isinstance(images.labels, Path) else images.labels
        return images.model_copy(update={"images": base / images.images, "labels": labels})

    data = recipe.data.model_copy(
        update={"calibration": image_set(recipe.data.calibration), "verification": image_set(recipe.data.verification)}
    )
    source = str(ModelSource.parse(recipe.model.source, base).absolute())
    engine = recipe.engine
    if engine is not None and engine.timing_cache is not None:
        engine = engine.model_copy(update={"timing_cache": base / engine.timing_cache})
    class_names = None if recipe.model.class_names is None else base / recipe.model.class_names
    model = recipe.model.model_copy(update={"source": source, "class_names": class_names})
    return recipe.model_copy(update={"data": data, "model": model, "engine": engine})


@dataclass(frozen=True)
class GivenData:
    """Images and names that a person gives beside a recipe or a source; None where nothing is given.

    Attributes:
        images: Verification images.
        labels: Their labels, or ``none`` for images without.
        calibration: Calibration images.
        class_names: File with the class names.
        file_column: Column of the file names in a table of labels.
        label_column: Column of the labels.
    """

    images: Path | None = None
    labels: Path | None = None
    calibration: Path | None = None
    class_names: Path | None = None
    file_column: str | None = None
    label_column: str | None = None


def default_recipe(source: str, given: GivenData) -> Recipe:
    """Return the default recipe for a model source; without calibration images it asks for some when it is run.

    Raises:
        RecipeError: There are no images.
    """
    images = given.images
    if images is None:
        raise RecipeError(
            f"Expected a recipe (.yaml) or a model source with images, found '{source}' alone.",
            "Add --images DIR (to verify on) and --calibration DIR (to quantize with), or write a recipe.",
        )
    parsed = ModelSource.parse(source).absolute()
    content: dict[str, Any] = {
        "name": parsed.title,
        "model": {"source": str(parsed)},
        "data": {"verification": {"images": str(images.resolve())}},
    }
    return override_data(parse_recipe(content, where="command line"), given)


def override_data(recipe: Recipe, given: GivenData) -> Recipe:
    """Return the recipe with other images; labels belong to their folder, so other images drop those of the recipe.

    Args:
        recipe: With absolute paths.
        given: What takes the place of the recipe's own.
    """
    data, model = recipe.data, recipe.model
    labels: dict[str, Any] = {}
    if given.images is not None:
        labels |= {"images": given.images.resolve(), "labels": None, "file_column": None, "label_column": None}
    if given.labels is not None:
        labels["labels"] = NO_LABELS if str(given.labels) == NO_LABELS else given.labels.resolve()
    columns = {"file_column": given.file_column, "label_column": given.label_column}
    labels |= {name: column for name, column in columns.items() if column is not None}
    data = data.model_copy(update={"verification": data.verification.model_copy(update=labels)})
    if given.calibration is not None:
        kept = data.calibration or ImageSet(images=given.calibration)
        changed = kept.model_copy(update={"images": given.calibration.resolve(), "labels": None})
        data = data.model_copy(update={"calibration": changed})
    if given.class_names is not None:
        model = model.model_copy(update={"class_names": given.class_names.resolve()})
    return recipe.model_copy(update={"data": data, "model": model})


def override_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some settings replaced.

    Args:
        recipe: With absolute paths.
        settings: Values by dotted name, e.g. ``{"quantize.preset": "fast"}``.

    Raises:
        RecipeError: A name is no setting, or a value does not fit.
    """
    if not settings:
        return recipe
    content = recipe.model_dump(mode="json")
    for key, value in settings.items():
        *parents, last = key.split(".")
        place: Any = content
        for parent in parents:
            if isinstance(place, dict) and place.get(parent) is None:
                place[parent] = {}  # a stage that is switched off
            place = place[parent] if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise RecipeError(f"'{key}' is not a setting: '{parent}' holds no settings.", "See docs/recipes.md.")
        place[last] = value
    return parse_recipe(content, where="settings")
