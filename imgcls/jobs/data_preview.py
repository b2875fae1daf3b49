"""The verb `data preview`: training images beside what augmentation makes of them, before and in every training."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from imgcls.data.augment import Pipeline, resolve_image_size, store_size, training_pipeline
from imgcls.data.check import drop_unreadable
from imgcls.data.decode import Pixels, shrink, to_channels
from imgcls.data.images import DecodedImages
from imgcls.data.loading import Loader
from imgcls.data.source import scan
from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.jobs.console import Console
from imgcls.jobs.reading import split_data
from imgcls.jobs.weights import open_weights, with_defaults
from imgcls.recipe import Recipe, Resolved
from imgcls.tables import Manifest

NUM_IMAGES, NUM_VARIANTS = 8, 6


def run(resolved: Resolved, out: Path, console: Console) -> None:
    """Write the figure to `out`; of the data set's pixels only those shown are read.

    Raises:
        UserError: `out` cannot be written or is no PNG, or the data are not as they must be.
    """
    _check_writable(out)
    for notice in resolved.notices:
        console.say(f"note: {notice}")
    weights = open_weights(resolved.recipe.model, console, tensors=False)
    recipe = with_defaults(resolved.recipe, weights, console)
    manifest = scan(recipe.data, progress=console.count)
    try:
        _draw_unsized(recipe, split_data(manifest, recipe.data), out)
    except UserError:
        if recipe.data.on_bad_image != "skip":
            raise
        # Only now is it worth looking at every image, as training does.
        manifest = drop_unreadable(manifest, progress=lambda done, total: console.count("checking images", done, total))
        _draw_unsized(recipe, split_data(manifest, recipe.data), out)
    if manifest.skipped:
        count = len(manifest.skipped)
        console.say(f"skipped {count:,} file{'s' * (count != 1)}, as training does, whose runs list them")
    console.say(f"wrote {out.absolute()}")


def _draw_unsized(recipe: Recipe, manifest: Manifest, out: Path) -> None:
    recipe = recipe.replace({"augment.image_size": resolve_image_size(recipe.augment, manifest.part("train"))})
    try:
        draw(recipe, manifest, out)
    except OSError as error:
        raise _cannot_write(out, error) from error


def draw(recipe: Recipe, manifest: Manifest, out: Path) -> None:
    """Write a figure of up to eight training images of different classes, before augmentation and six times after it.

    The variants are those that `train.seed` would give were the images shown a batch of their own: a column an epoch.

    Args:
        recipe: with `augment.image_size` a number.
        manifest: split.
        out: the PNG file.

    Raises:
        UserError: an image cannot be read.
        OSError: `out` cannot be written.
    """
    assert recipe.augment.image_size != "auto"
    size, seed = recipe.augment.image_size, recipe.train.seed
    part = manifest.part("train")
    rows = sorted(_order(part.labels, seed)[:NUM_IMAGES], key=lambda row: int(part.labels[row]))
    originals = [_stored(part, row, recipe.data.channels, store_size(size)) for row in rows]
    pipeline = training_pipeline(recipe.augment, size=size, channels=recipe.data.channels)
    variants = _variants(originals, part.labels[rows], pipeline, seed)
    captions = [f"{manifest.classes[part.labels[row]]}: {part.ids[row]}" for row in rows]
    title = f"Training images and what augmentation makes of them: {size} px, seed {seed}, a column an epoch"
    plots.save(plots.augmentation_preview(originals, variants, captions, title=title), out)


def _order(labels: npt.NDArray[np.int64], seed: int) -> list[int]:
    """All rows: first one of each class, then a second of each, …; which and in which order, the seed decides."""
    rows = np.random.default_rng(seed).permutation(len(labels))
    turn = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
    return [int(row) for row in rows[np.argsort(turn, kind="stable")]]


def _stored(part: Manifest, row: int, channels: int, short_side: int) -> Pixels:
    """An image as a training keeps it, before the pipeline."""
    if part.images is None:
        return DecodedImages(part, channels=channels, short_side=short_side)[row]
    pixels = part.images[part.frame["row"].to_numpy()[row]]
    return shrink(to_channels(pixels, channels), short_side)


def _variants(
    originals: list[Pixels], labels: npt.NDArray[np.int64], pipeline: Pipeline, seed: int
) -> list[list[Pixels]]:
    """For each image its variants, made by the very loader of training, batch by batch."""
    loader = Loader(originals, labels, pipeline, batch_size=len(originals), seed=seed)
    epochs = [next(loader.epoch(epoch)).images.numpy() for epoch in range(1, NUM_VARIANTS + 1)]
    return [[epoch[row] for epoch in epochs] for row in range(len(originals))]


def _check_writable(out: Path) -> None:
    """Before the work: whether the figure can be put there."""
    if out.suffix.casefold() != ".png":
        raise UserError(f"found --out {out}; expected the name of a PNG file, such as preview.png.")
    is_new = not out.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab"):
            pass
        if is_new:
            out.unlink()
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> UserError:
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"cannot write {out}: {error.strerror}{where}. Give the name of a PNG file with --out.")
