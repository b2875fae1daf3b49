"""From a recipe to its images: found, checked, split and decoded, or kept from an earlier training of the process."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from imgcls.data.augment import store_size
from imgcls.data.check import check, drop_unreadable
from imgcls.data.images import OpenImages, open_images
from imgcls.data.report import Report
from imgcls.data.source import DataConfig, scan
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.recipe import Recipe
from imgcls.tables import SPLITS, Manifest, Split
from imgcls.tracking.store import artifact

Kept = TypeVar("Kept")

SPLIT_TABLE = "tables/split.csv"
"""The artifact of a run that says how its images were split."""


class Shelf:
    """Data that a process which trains again and again, as a sweep's worker does, reads once and keeps."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def get(self, key: str, make: Callable[[], Kept]) -> Kept:
        """What is kept under the key, which `make` makes where there is none."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: Kept = self._kept[key]
        return kept


def read(
    recipe: Recipe, refits: Manifest | None, console: Console, *, with_report: bool
) -> tuple[Manifest, Report | None]:
    """The images, split, and what is to be said of them."""
    manifest = refits or split_data(read_data(recipe.data, console), recipe.data)
    checked = manifest if refits is None else pooled(manifest)
    tell(checked.notices, console)
    return manifest, _check(checked, recipe, console) if with_report else None


def read_data(config: DataConfig, console: Console) -> Manifest:
    """The images that a recipe's `data` section names; without those that cannot be read, where it leaves them out.

    Raises:
        UserError: what a user can mend in the data.
    """
    manifest = scan(config, progress=console.count)
    if config.on_bad_image == "skip":
        manifest = drop_unreadable(manifest, progress=console.counter("checking images"))
    return manifest


def split_data(manifest: Manifest, config: DataConfig) -> Manifest:
    """The manifest split; where that is asked for, by the table that a run or a file holds.

    Raises:
        UserError: it cannot be split as asked, or there is no such run or table.
    """
    if config.split_run is None:
        return split(manifest, config, table=None if config.split_from is None else Path(config.split_from))
    with ExitStack() as stack:
        try:
            path = stack.enter_context(artifact(config.split_run, SPLIT_TABLE))
        except UserError as error:
            raise UserError(f"data.split_from: {error}") from error
        return split(manifest, config, table=path)


def pooled(manifest: Manifest) -> Manifest:
    """The manifest with the images for validation among those for training."""
    return manifest.with_splits(["train" if split == "val" else split for split in manifest.frame["split"]])


def _check(manifest: Manifest, recipe: Recipe, console: Console) -> Report | None:
    """What the check that `data.check` asks for finds; what may mislead is told in a line each."""
    if recipe.data.check == "off":
        return None
    progress = console.counter("checking images")
    report = check(manifest, depth=recipe.data.check, channels=recipe.data.channels, progress=progress)
    # Images that cannot be decoded are refused or left out, and told, further on.
    told = [f for f in report.findings if f.severity != "note" and f.kind != "unreadable"]
    for finding in told:
        console.say(finding.line())
    if told:
        console.say("look at all of it with: imgcls data check (and this recipe)")
    return report


def decode(manifest: Manifest, recipe: Recipe, console: Console) -> OpenImages:
    """The images of all splits. Those of the test split are decoded to prove them readable, and not looked at."""
    assert recipe.augment.image_size != "auto"
    return open_images(
        manifest,
        channels=recipe.data.channels,
        short_side=store_size(recipe.augment.image_size),
        budget=int(recipe.data.store_budget * 2**30),
        progress=lambda done, total: console.count("decoding images", done, total),
        say=console.say,
        origin=recipe.data.origin,
    )


def of_each(images: OpenImages, manifest: Manifest) -> dict[Split, OpenImages]:
    """The images of each split of the manifest."""
    return {name: images.select(np.flatnonzero(manifest.frame["split"] == name)) for name in SPLITS}


def tell(notices: Sequence[str], console: Console) -> None:
    """A line for each notice."""
    for notice in notices:
        console.say(f"note: {notice}")


def tell_skipped(manifest: Manifest, console: Console) -> None:
    """How many files were left out, and the first of them."""
    files = [item for item in manifest.skipped if item.num_files]
    if files:
        first = ", ".join(f"{item.path} ({item.reason})" for item in files[:3])
        count = sum(item.num_files for item in files)
        console.say(f"skipped {count:,} file{'s' * (count != 1)}: {first}{', …' * (len(files) > 3)}")
