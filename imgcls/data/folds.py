"""k-fold cross-validation: fold i of k is validation, the other folds train, and the test split is that of no folds."""

from collections.abc import Sequence

from imgcls.data.deal import by_class, deal_classes, tell_tiny
from imgcls.data.groups import absent, deal_groups, fold_groups, refuse_untrained
from imgcls.data.source import DataConfig, parse_fold
from imgcls.tables import Manifest


def deal_folds(manifest: Manifest, config: DataConfig) -> Manifest:
    """The manifest with fold i of k (`data.fold`) in val, the other folds in train, and test as it is without folds.

    What is not test, an official validation split included, is dealt into k folds, each class evenly, in the order of a
    hash of seed and content. So every such image is in val in exactly one fold; equal bytes and groups stay together.
    Of classes with fewer different images than folds see `data.tiny_classes`.

    Raises:
        UserError: classes with fewer different images than folds, or fewer groups than folds.
    """
    assert config.fold is not None
    number, count = parse_fold(config.fold)
    given = manifest.counts()
    splits = [value or "train" for value in manifest.frame["split"]]
    notices: list[str] = []
    grouped = bool((manifest.frame["group"] != "").any())
    if not any(given.values()) and config.test_fraction > 0:
        if grouped:
            splits, notices = deal_groups(manifest, splits, {"test": config.test_fraction}, config)
        else:
            wanted = {"test": config.test_fraction, "val": config.val_fraction}
            splits, notices = deal_classes(manifest, splits, wanted, config)
    elif given["val"]:
        images = f"{given['val']:,} image{'s' * (given['val'] != 1)}"
        notices = [f"data.fold: the given val split ({images}) is pooled with train and dealt into {count} folds"]
    rows = [row for row, name in enumerate(splits) if name != "test"]
    if grouped:
        folds = fold_groups(manifest, rows, count, config)
    else:
        folds, more = fold_classes(manifest, rows, count, config)
        notices += more
    for row, fold in folds.items():
        splits[row] = "val" if fold == number - 1 else "train"
    if grouped:
        refuse_untrained(manifest, splits)
        notices += absent(manifest, splits, ["val"])
    return manifest.with_splits(splits).with_notices(notices)


def fold_classes(
    manifest: Manifest, rows: Sequence[int], count: int, config: DataConfig
) -> tuple[dict[int, int], list[str]]:
    """(row -> its fold, 0 … count - 1, or -1 for what stays in train; notices): each class dealt evenly.

    Raises:
        UserError: a class with fewer different images than folds, where data.tiny_classes is error.
    """
    folds: dict[int, int] = {}
    tiny: dict[int, int] = {}
    start = 0  # where the last class ended, so that the odd images of many classes do not all go to the first folds
    for label, images in by_class(manifest, rows, config.split_seed):
        if len(images) < count:
            tiny[label] = len(images)
        for position, image in enumerate(images, start):
            folds.update(dict.fromkeys(image, position % count if len(images) > 1 else -1))
        start += len(images)
    aim = f"the {count} folds of data.fold need at least {count}"
    rule = "they are in val in as many folds as they have images, and in train in every fold"
    return folds, tell_tiny(manifest, tiny, aim, rule, config)
