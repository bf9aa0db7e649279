"""What the stages of a run work on: the model, the images and their fingerprints, each made when first needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vitexport.closing import Closing
from vitexport.errors import RecipeError
from vitexport.inputs.images import list_images
from vitexport.inputs.labels.find import find_labels, labels_fingerprint
from vitexport.inputs.labels.rows import Columns
from vitexport.inputs.labels.targets import Labels
from vitexport.pipeline.stages import VerificationImages
from vitexport.pipeline.step import images_fingerprint, source_fingerprint
from vitexport.recipe.settings import Recipe

if TYPE_CHECKING:
    from vitexport.host.sources import LoadedModel

__all__ = ["Materials"]


class Materials(Closing):
    """What a recipe names, loaded when the first stage needs it.

    Attributes:
        recipe: With absolute paths.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def close(self) -> None:
        """Release the decoded images."""
        if "verification" in self.__dict__:
            self.verification.close()

    @cached_property
    def verification(self) -> VerificationImages:
        images = self.recipe.data.verification
        paths = list_images(images.images, limit=images.limit)
        return VerificationImages(images.images, paths)

    @cached_property
    def labels(self) -> Labels | None:
        """What is true of the verification images, as the model numbers it; None where they are unlabelled."""
        images = self.recipe.data.verification
        return find_labels(
            images.images, self.verification.paths, self.loaded.metadata.classes, images.labels, self._columns
        )

    @cached_property
    def calibration(self) -> tuple[Path, ...]:
        images = self.recipe.data.calibration
        if images is None:
            raise RecipeError(
                "Expected calibration images to quantize with, found none.",
                "Name a folder of real images, 128 are good: --calibration DIR, or `data.calibration` in the recipe. "
                "For a float32 bundle say so: --set quantize=null, or `quantize: null` in the recipe.",
            )
        return list_images(images.images, limit=images.limit)

    @cached_property
    def loaded(self) -> LoadedModel:
        from vitexport.host.sources import load_model

        return load_model(self.recipe.model, image_size=self.recipe.export.image_size)

    @cached_property
    def model_key(self) -> str:
        return source_fingerprint(self.recipe.model)

    @cached_property
    def images_key(self) -> str:
        images = self.recipe.data.verification
        labels = labels_fingerprint(images.images, images.labels, self._columns)
        return f"{images_fingerprint(images.images, self.verification.paths)}:{labels}"

    @property
    def _columns(self) -> Columns:
        images = self.recipe.data.verification
        return Columns(images.file_column, images.label_column)

    @property
    def calibration_key(self) -> str:
        """Fingerprint of the calibration images."""
        images = self.recipe.data.calibration
        assert images is not None  # self.calibration has checked it
        return images_fingerprint(images.images, self.calibration)
