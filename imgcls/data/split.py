"""Which image goes to training, validation and test: a function of image contents and a seed only."""

from pathlib import Path

from imgcls.data.deal import deal_classes
from imgcls.data.folds import deal_folds
from imgcls.data.given import give_splits
from imgcls.data.groups import deal_groups
from imgcls.data.source import DataConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest


def split(manifest: Manifest, config: DataConfig, *, table: Path | None = None) -> Manifest:
    """The manifest with every image in `train`, `val` or `test`.

    Splits that the source gives stay, also where equal bytes are on two sides of them. Where validation is missing it
    is taken from train, class by class; where the source gives no split at all, so is test. In each class, images are
    ordered by a hash of seed and content, so neither names nor their order matter, and files with equal bytes stay
    together, also where they stand in different classes. With `data.fold`, train and validation are those of a fold.

    Where images have groups, whole groups are dealt instead, so that none is on two sides; the classes' shares are then
    only about those asked for. Groups that share equal bytes count as one.

    Args:
        manifest: the images, with the splits that their source gives.
        config: the `data` section.
        table: the file of `data.split_from`, whose splits replace the source's own.

    Raises:
        UserError: fewer than two classes, fractions that leave nothing to train on, a class with fewer different
            images than there are splits or folds to fill, groups that are too few or leave a class without training
            images, or a table that does not fit the images.
    """
    assert (table is None) == (config.split_from is None), "data.split_from is resolved to a file by the job"
    if table is not None and config.split_from is not None:
        manifest = give_splits(manifest, table, name=config.split_from)
    _check(manifest, config)
    if config.fold is not None:
        return deal_folds(manifest, config)
    given = manifest.counts()
    test_fraction = config.test_fraction if not any(given.values()) else 0.0
    val_fraction = config.val_fraction if not given["val"] else 0.0
    fractions = {"test": test_fraction, "val": val_fraction}
    wanted = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    splits = [value or "train" for value in manifest.frame["split"]]
    if not wanted:
        return manifest.with_splits(splits)
    deal = deal_groups if (manifest.frame["group"] != "").any() else deal_classes
    dealt, notices = deal(manifest, splits, wanted, config)
    return manifest.with_splits(dealt).with_notices(notices)


def _check(manifest: Manifest, config: DataConfig) -> None:
    if len(manifest.classes) < 2:
        hints = {
            "folder": " Expected one sub-folder a class: is data.root a level too deep?",
            "csv": " Expected labels of several classes: is data.label_column the right one?",
        }
        raise UserError(
            f"the data have one class only ({manifest.classes[0]!r}); a classifier needs at least two."
            + hints.get(config.source, " Give data of several classes.")
        )
    if config.val_fraction + config.test_fraction >= 1:
        raise UserError(
            f"data.val_fraction {config.val_fraction} and data.test_fraction {config.test_fraction} leave "
            "nothing to train on; their sum must be below 1."
        )
    here = manifest.frame["split"].isin(["train", ""])
    untrained = sorted(set(range(len(manifest.classes))) - set(manifest.labels[here].tolist()))
    if untrained and config.fold is None:
        raise UserError(
            f"the given split leaves the class {manifest.classes[untrained[0]]!r} ({len(untrained)} in all) without "
            "training images. Mend the split, or leave the class out (data.classes)."
        )
