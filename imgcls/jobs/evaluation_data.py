"""Which labelled images models are held against, and what they say of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import pandas as pd

from imgcls.data.decode import Pixels
from imgcls.data.images import name_of, read_encoded
from imgcls.errors import UserError
from imgcls.inference.ensemble import members_of
from imgcls.inference.stream import Item, stream
from imgcls.inference.views import ONE, Views
from imgcls.jobs.console import Console
from imgcls.jobs.open_model import Opened
from imgcls.jobs.reading import SPLIT_TABLE, read_data, split_data, tell_skipped
from imgcls.recipe import Recipe, diff, resolve
from imgcls.tables import Manifest, Predictions
from imgcls.tracking.store import MissingArtifact, artifact

Part = Literal["train", "val", "test", "all"]
PARTS: tuple[Part, ...] = get_args(Part)
FREE = ("data.", "train.device", "train.output_dir", "evaluate.")
"""What may be given beside a model: the rest of its recipe is its own."""
NAMES = ("data.root", "data.table", "data.parquet", "data.source")
"""Fields that name images other than the model's own."""
NO_USE = {
    **dict.fromkeys(
        ("data.split_from", "data.fold", "data.val_fraction", "data.test_fraction", "data.split_seed",
         "data.tiny_classes"),
        "its own images are split as they were then, and others as their source gives it",
    ),
    "data.channels": "its network says how many it sees",
    **dict.fromkeys(
        ("data.balance", "data.balance_beta", "data.check", "data.device", "data.num_workers", "data.prefetch",
         "data.store_budget"),
        "only a training looks at it",
    ),
}  # fmt: skip
"""Fields of `data` that change nothing beside a model -> why."""


@dataclass(frozen=True)
class Subject:
    """Labelled images to hold models against.

    Attributes:
        recipe: whose `data` section says where they come from.
        whole: all images of the data set, split, with labels into the models' classes.
        part: which of them are meant.
        is_own: they are the data set that the first model was made from, split as it was then.
    """

    recipe: Recipe
    whole: Manifest
    part: Part
    is_own: bool

    @property
    def manifest(self) -> Manifest:
        """The images of the part, with the digest of the whole."""
        return self.of(self.part)

    def of(self, part: Part) -> Manifest:
        """The images of another part."""
        return self.whole if part == "all" else self.whole.part(part)

    @property
    def split(self) -> str:
        """What figures of it are called: those of all images of another data set are a test."""
        return "test" if self.part == "all" and not self.is_own else self.part


def find_subject(
    models: Sequence[Opened],
    console: Console,
    *,
    texts: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    part: Part | None = None,
    others: bool = True,
) -> Subject:
    """The images that models of the same classes are to be held against.

    Without another `data.root` these are the images that the first model was made from, split as they were then. Of
    other data those that their source gives as the part are taken, and all where it gives no split.

    Args:
        models: the models; the first one's recipe says where the images are.
        console: where it is told.
        texts: fields of the recipe as typed, such as data.root.
        overrides: the same as values.
        part: which images; None: test where there is such a split, else all of another data set.
        others: images other than the first model's own may be named; else only where those lie now.

    Raises:
        UserError: there are no such images, the first model's recipe is not known, a field is given that is not one of
            the data, or the classes of data and models differ (which).
    """
    first = models[0]
    recipe, is_named = _recipe(first, texts or {}, overrides or {}, others=others)
    recipe = recipe.replace({"data.channels": max(m.preprocessing.channels for m in members_of(first.model))})
    manifest = read_data(recipe.data, console)
    tell_skipped(manifest, console)
    is_own = first.run_id is not None and manifest.digest == first.digest
    if is_own:
        recipe = recipe.replace({"data.split_from": first.run_id, "data.fold": None})
        manifest = split_data(manifest, recipe.data)
    elif not (is_named and others):
        raise _changed(first, recipe, manifest, others=others)
    chosen = part or ("test" if is_own or manifest.counts()["test"] else "all")
    _check_part(manifest, chosen, recipe, is_own=is_own, others=others)
    manifest = with_classes_of(manifest, first)
    return Subject(recipe, manifest, chosen, is_own)


def _changed(first: Opened, recipe: Recipe, manifest: Manifest, *, others: bool) -> UserError:
    """The images are not those that the model was made from."""
    advice = (
        "Put back what was changed, or name other images to evaluate it on (--data.root FOLDER)."
        if others
        else "A model is promoted on the test images of its own run, which it has not seen. Put back what was changed, "
        "or name the folder with the images of then (--data.root FOLDER)."
    )
    return UserError(
        f"the images in {recipe.data.origin} are not those that the model {first.address} was made from: found "
        f"the digest {manifest.digest}, expected {first.digest}. {advice}"
    )


def _recipe(
    first: Opened, texts: Mapping[str, str], overrides: Mapping[str, object], *, others: bool
) -> tuple[Recipe, bool]:
    """The recipe, and whether its images are named by the caller."""
    given = [*texts, *overrides]
    _check_given(given, others=others)
    is_named = any(name in NAMES for name in given)
    if first.run_id is None:
        if not is_named:
            assert first.recipe  # raises: a folder does not say
        return resolve(None, overrides, texts=texts).recipe, True
    own = first.recipe
    if is_named and others:  # the split of the model's run, and its classes, are of other data
        own = own.replace({"data.split_from": None, "data.fold": None, "data.classes": None})
    recipe = resolve(own.as_dict(), overrides, texts=texts).recipe
    return recipe, is_named and any(name.startswith("data.") for name, _, _ in diff(own, recipe))


def _check_given(given: Sequence[str], *, others: bool) -> None:
    """Refuse fields that are not the caller's to say, or that would change nothing."""
    for name in given:
        if not name.startswith(FREE):
            raise UserError(
                f"{name} cannot be given beside a model, whose recipe is its own. Only fields of data and "
                f"{'evaluate' if others else 'promote'}, and train.device and train.output_dir, can."
            )
        why = NO_USE.get(name) or ("the gates name what is measured" if not others and "evaluate." in name else None)
        if why is not None:
            raise UserError(f"{name} changes nothing beside a model: {why}. Leave it out.")


def _check_part(manifest: Manifest, part: Part, recipe: Recipe, *, is_own: bool, others: bool) -> None:
    if part == "all":
        return
    counts = manifest.counts()
    if counts[part]:
        return
    there = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "no split"
    how = "Give --split all, or data that have one"
    if is_own:
        how = f"Train with one (data.{part}_fraction above 0, or a folder {part}/ beside train/)"
        how += ", or give another --split" if others else ""
    raise UserError(f"the images in {recipe.data.origin} have no {part} split (they have {there}). {how}.")


def with_classes_of(manifest: Manifest, opened: Opened) -> Manifest:
    """The images with labels into a model's classes, matched by name; the digest stays that of the data.

    Raises:
        UserError: the images have classes that the model does not know (which).
    """
    known = {name: number for number, name in enumerate(opened.model.classes)}
    used = sorted({int(label) for label in manifest.labels if label >= 0})
    strange = [manifest.classes[label] for label in used if manifest.classes[label] not in known]
    if strange:
        some = ", ".join(repr(name) for name in strange[:5]) + (", …" if len(strange) > 5 else "")
        theirs = ", ".join(repr(name) for name in opened.model.classes[:5])
        theirs += ", …" if len(opened.model.classes) > 5 else ""
        raise UserError(
            f"the images have {len(strange):,} classes that the model {opened.address} does not know: {some}; it knows "
            f"{len(opened.model.classes):,}: {theirs}. Rename them or leave them out (--data.classes), or take another "
            "model."
        )
    if manifest.classes == opened.model.classes:
        return manifest
    table = np.array([known.get(name, -1) for name in manifest.classes])
    labels = np.where(manifest.labels < 0, -1, table[manifest.labels])
    return replace(manifest.with_classes(labels.tolist(), opened.model.classes), digest=manifest.digest)


def trained_on(models: Sequence[Opened]) -> set[str]:
    """The content hashes of the images that one of the models was trained on.

    Those of a model whose run has no table of its split, as one that was not made by imgcls, are not known.

    Raises:
        UserError: the store fails; that they are not known would let images pass as unseen.
    """
    found = set[str]()
    for run_id in {opened.run_id for opened in models if opened.run_id is not None}:
        with suppress(MissingArtifact), artifact(run_id, SPLIT_TABLE) as path:
            table = pd.read_csv(path, usecols=["split", "content"], dtype=str, keep_default_na=False)
            found |= {content for content in table["content"][table["split"] == "train"] if content}
    return found


def num_of(contents: set[str], manifest: Manifest) -> int:
    """How many of the images have one of the content hashes."""
    return int(manifest.frame["content"].isin(contents).sum())


def seen_by(models: Sequence[Opened], manifest: Manifest) -> int:
    """How many of the images one of the models was trained on, by their bytes."""
    return num_of(trained_on(models), manifest)


def predict_images(
    opened: Opened, manifest: Manifest, console: Console, *, split: str, views: Views = ONE, device: str = "cpu"
) -> Predictions:
    """What a model says of labelled images, all of which must be readable.

    Args:
        opened: the model.
        manifest: the images, with labels into its classes.
        console: shows progress.
        split: recorded with the predictions.
        views: what is looked at of each image.
        device: where to compute.

    Raises:
        UserError: images cannot be read; up to five are named.
    """
    probs = np.zeros((len(manifest), len(opened.model.classes)), np.float32)
    bad: list[str] = []
    items = (Item(name, partial(read_image, manifest, row)) for row, name in enumerate(manifest.ids))
    for row, seen in enumerate(stream(opened.model, items, views=views, device=device)):
        if seen.probs is None:
            bad.append(f"cannot read the image {name_of(manifest, row)}: {seen.error}. Mend or remove the file.")
        else:
            probs[row] = seen.probs
        console.count("predicting images", row + 1, len(manifest))
    if bad:
        more = f"\n… and {len(bad) - 5} more unreadable images." if len(bad) > 5 else ""
        raise UserError("\n".join(bad[:5]) + more)
    return Predictions(manifest.ids, probs, manifest.labels, opened.model.classes, split, manifest.digest)


def read_image(manifest: Manifest, row: int) -> bytes | Pixels:
    """An image of a manifest as it is: encoded bytes, or (H, W[, C]) uint8 pixels.

    Raises:
        UserError: its file cannot be read.
    """
    if manifest.images is None:
        return read_encoded(manifest, row)
    pixels: Pixels = manifest.images[int(manifest.frame["row"].to_numpy()[row])]
    return pixels
