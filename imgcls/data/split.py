"""Which image goes to training, validation and test: a function of image contents and a seed only."""

import hashlib

from imgcls.data.source import DataConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest


def split(manifest: Manifest, config: DataConfig) -> Manifest:
    """The manifest with every image in `train`, `val` or `test`.

    Splits that the source gives stay. Where validation is missing it is taken from train, class by class;
    where the source gives no split at all, so is test. In each class, images are ordered by a hash of seed
    and content, so neither file names nor their order matter, and files with equal bytes stay together, also
    where they stand in different classes.

    Where images have groups, whole groups are dealt instead, so that none is on two sides; the classes' shares are then
    only about those asked for. Groups that share equal bytes count as one.

    Raises:
        UserError: fewer than two classes, fractions that leave nothing to train on, a class with fewer different
            images than there are splits to fill, or groups that are too few or leave a class without training images.
    """
    _check(manifest, config)
    given = manifest.counts()
    test_fraction = config.test_fraction if not any(given.values()) else 0.0
    val_fraction = config.val_fraction if not given["val"] else 0.0
    fractions = {"test": test_fraction, "val": val_fraction}
    wanted = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    splits = [value or "train" for value in manifest.frame["split"]]
    contents = [str(value) for value in manifest.frame["content"]]
    if (manifest.frame["group"] != "").any() and wanted:
        return manifest.with_splits(_split_groups(manifest, splits, wanted, config.split_seed))
    # Bytes that stand in several classes are dealt with the first of them, so that no copy is on another side.
    owner: dict[str, int] = {}
    members: dict[int, dict[str, list[int]]] = {label: {} for label in range(len(manifest.classes))}
    for row, label in sorted(enumerate(manifest.labels), key=lambda pair: int(pair[1])):
        if splits[row] == "train":
            first = owner.setdefault(contents[row], int(label))
            members[first].setdefault(contents[row], []).append(row)
    for label, by_content in members.items():
        if len(by_content) < 1 + len(wanted):
            name, have = manifest.classes[label], len(by_content)
            raise UserError(
                f"the class {name!r} has {have} different image{'s' * (have != 1)} of its own, but the splits "
                f"{', '.join(['train', *wanted])} need at least {1 + len(wanted)}. Add images, remove the "
                "class, or set data.test_fraction to 0."
            )
        _deal(by_content, wanted, splits, config.split_seed)
    return manifest.with_splits(splits)


def _check(manifest: Manifest, config: DataConfig) -> None:
    if len(manifest.classes) < 2:
        raise UserError(
            f"the data have one class only ({manifest.classes[0]!r}); a classifier needs at least two. "
            "Expected labels of several classes; of a folder, one sub-folder a class: is data.root a level too deep?"
        )
    if config.val_fraction + config.test_fraction >= 1:
        raise UserError(
            f"data.val_fraction {config.val_fraction} and data.test_fraction {config.test_fraction} leave "
            "nothing to train on; their sum must be below 1."
        )


def _deal(by_content: dict[str, list[int]], wanted: dict[str, float], splits: list[str], seed: int) -> None:
    """Move images of one class out of train: for each split its share, at least one, leaving one to train."""
    order = sorted(by_content, key=lambda content: hashlib.blake2b(f"{seed}/{content}".encode()).digest())
    free = len(order)
    for done, (name, fraction) in enumerate(wanted.items()):
        still_needed = 1 + len(wanted) - done - 1
        take = min(max(1, round(fraction * len(by_content))), free - still_needed)
        for content in order[free - take : free]:
            for row in by_content[content]:
                splits[row] = name
        free -= take


def _split_groups(manifest: Manifest, splits: list[str], wanted: dict[str, float], seed: int) -> list[str]:
    """Deal whole groups from train, ordered by their contents: for each split those that bring it near its share."""
    units = _units(manifest, splits)
    if len(units) < 1 + len(wanted):
        raise UserError(
            f"the images are of {len(units)} groups, but the splits {', '.join(['train', *wanted])} need at least "
            f"{1 + len(wanted)}. Split by hand (a split column), or leave the groups out."
        )
    contents = [str(value) for value in manifest.frame["content"]]
    dealt, total = list(splits), sum(len(unit) for unit in units)

    def order(unit: list[int]) -> bytes:
        return hashlib.blake2b("/".join([str(seed), *sorted(contents[row] for row in unit)]).encode()).digest()

    left = sorted(units, key=order)
    for name, fraction in wanted.items():
        goal, have = fraction * total, 0
        for unit in list(left):
            if have == 0 or have + len(unit) / 2 <= goal:
                left.remove(unit)
                have += len(unit)
                for row in unit:
                    dealt[row] = name
    train = {int(label) for label, split in zip(manifest.labels, dealt, strict=True) if split == "train"}
    missing = [name for label, name in enumerate(manifest.classes) if label not in train]
    if missing:
        raise UserError(
            f"splitting by group leaves the class {missing[0]!r} ({len(missing)} in all) without training images: its "
            "groups are too few. Try another data.split_seed, smaller fractions, or a split of your own."
        )
    return dealt


def _units(manifest: Manifest, splits: list[str]) -> list[list[int]]:
    """The training rows in sets that must stay together: of one group, or of equal bytes, or both in a chain."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    keys = []
    for row, (group, content) in enumerate(zip(manifest.frame["group"], manifest.frame["content"], strict=True)):
        if splits[row] == "train":
            bytes_key = f"content/{content}"
            parent[root(bytes_key)] = root(f"group/{group}" if group else bytes_key)
            keys.append((row, bytes_key))
    units: dict[str, list[int]] = {}
    for row, key in keys:
        units.setdefault(root(key), []).append(row)
    return list(units.values())
