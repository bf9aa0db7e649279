"""Whether a model answers as it should: verify, evaluate."""

from __future__ import annotations

from functools import partial
from os import PathLike

from vitexport.api.arguments import require_positive
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_recipe
from vitexport.bundle.target import resolve_target
from vitexport.errors import RecipeError
from vitexport.files import as_path
from vitexport.inputs.images import list_images
from vitexport.inputs.labels.rows import Columns
from vitexport.predict.foreign import ClassNames, Preprocess, describe
from vitexport.scoring import Scoring
from vitexport.verification.evaluate import Evaluation, evaluate_models
from vitexport.verification.replay import replay, replay_engine
from vitexport.verification.result import VerificationResult

__all__ = ["evaluate", "verify"]


def verify(
    bundle: str | PathLike[str],
    *,
    engine: str | PathLike[str] | None = None,
    runtime: str | None = None,
) -> VerificationResult:
    """Run a bundle's models on this machine and compare with PyTorch's recorded outputs; needs no PyTorch.

    Example::

        result = vx.verify("out/vit")
        print(result.passed, result.failures())

    Args:
        bundle: Bundle directory, or an opened bundle.
        engine: Check this TensorRT engine, built from a model of the bundle, instead of the models themselves.
        runtime: Open every model with this runtime; None lets each file choose.

    Returns:
        The result; a model that does not match, or that no runtime here can execute, is a result, not an exception.

    Raises:
        BundleError: The bundle is damaged, or holds nothing to compare with.
        RuntimeBackendError: A model does not open here, for another reason than a kernel that is not there.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = read_recipe(opened)
    if engine is None:
        return replay(opened, recipe, runtime=runtime)
    return replay_engine(opened, recipe, as_path(engine, "an engine"), runtime=runtime)


def evaluate(
    target: str | PathLike[str],
    images: str | PathLike[str],
    *,
    labels: str | PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    class_names: ClassNames | str | None = None,
    scoring: Scoring | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    threshold: float = 0.5,
    batch: int = 16,
    runtime: str | None = None,
) -> Evaluation:
    """Score a model, or every variant of a bundle, on labelled images: by top-1, mAP and F1, or error, as its head is.

    Of one class of several, variants after the first are compared with it image by image (McNemar 1947), so that noise
    is not taken for a difference.

    Example::

        print(vx.evaluate("out/quickstart", "calib/holdout", labels="calib/manifest.json", limit=32))

    Args:
        target: Model file or bundle directory.
        images: Folder of images.
        labels: File with the class of each image (CSV, TSV, JSON, JSON Lines); None looks for ``manifest.json`` and
            ``metadata.csv`` in and beside the folder, then for class folders.
        preprocess: What turns an image into the input of a file that does not say so itself, see
            :meth:`vitexport.Predictor.open`.
        class_names: Names in the order of the outputs, or a file of them; None takes the model's own.
        scoring: ``softmax``, ``sigmoid`` or ``none``; None takes what the model says of itself.
        file_column: Column of the file names in a table of labels; None takes a usual name.
        label_column: Column of the labels.
        limit: Use at most so many images, spread over the folder.
        threshold: Sigmoid score from which a label counts as there, for several labels at once.
        batch: Images per run.
        runtime: Runtime name; None takes each file's own.

    Raises:
        ImageError: The images have no labels, or such as do not fit the model, or the model gives no class scores.
        ModelSourceError: The class names cannot be read, or are not one for each output.
        BundleError: The model is a file of another tool, and no ``preprocess`` is given.
        RecipeError: A number does not fit, or something given does not fit the model.
        NoKernelError: No runtime here can execute any of the models.
    """
    require_positive(batch=batch)
    if not 0 < threshold < 1:
        raise RecipeError(f"Expected a threshold between 0 and 1, found {threshold}.", "0.5 is usual.")
    folder = as_path(images, "a folder of images")
    return evaluate_models(
        resolve_target(target),
        folder,
        list_images(folder, limit=limit),
        labels=None if labels is None else as_path(labels, "a labels file"),
        columns=Columns(file_column, label_column),
        describe=partial(describe, preprocess=preprocess, class_names=class_names, scoring=scoring, order_only=True),
        threshold=threshold,
        batch=batch,
        runtime=runtime,
    )
