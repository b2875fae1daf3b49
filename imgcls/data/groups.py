"""Dealing whole groups: images that belong together, and equal bytes, are never on two sides."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from imgcls.data.deal import order_key
from imgcls.data.names import some
from imgcls.data.source import DataConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest


def units(manifest: Manifest, rows: Iterable[int], seed: int) -> list[list[int]]:
    """The rows in sets that must stay together (of one group, or of equal bytes, or both in a chain), by content."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]  # keeps chains short
            key = parent[key]
        return key

    groups, contents = manifest.frame["group"].tolist(), manifest.frame["content"].tolist()
    chosen = list(rows)
    for row in chosen:
        if groups[row]:
            parent[root(f"content/{contents[row]}")] = root(f"group/{groups[row]}")
    found: dict[str, list[int]] = {}
    for row in chosen:
        found.setdefault(root(f"content/{contents[row]}"), []).append(row)
    return sorted(found.values(), key=lambda unit: order_key(seed, (contents[row] for row in unit)))


def classes_of(manifest: Manifest, sets: Iterable[Sequence[int]]) -> list[Counter[int]]:
    """For each set of rows, how many images of which label it holds."""
    labels = manifest.labels.tolist()
    return [Counter(labels[row] for row in rows) for rows in sets]


def deal_groups(
    manifest: Manifest, splits: Sequence[str], wanted: Mapping[str, float], config: DataConfig
) -> tuple[list[str], list[str]]:
    """(a split for every row, notices): in the order of their contents, groups that bring each split near its share.

    Where data.tiny_classes is train, a group that is the last with training images of a class is not taken; where it is
    error, a class left without training images is one.

    Raises:
        UserError: groups that are too few, or that leave a class without training images.
    """
    whole = units(manifest, [row for row, name in enumerate(splits) if name == "train"], config.split_seed)
    _refuse_few(len(whole), 1 + len(wanted), f"the splits {', '.join(['train', *wanted])} need")
    held = classes_of(manifest, whole)
    left = Counter(label for labels in held for label in labels)
    dealt, total, taken = list(splits), sum(map(len, whole)), [False] * len(whole)
    for name, fraction in wanted.items():
        goal, have = fraction * total, 0
        for k, unit in enumerate(whole):
            if taken[k] or (have and have + len(unit) / 2 > goal):
                continue
            if config.tiny_classes == "train" and any(left[label] == 1 for label in held[k]):
                continue
            taken[k], have = True, have + len(unit)
            left.subtract(held[k].keys())
            for row in unit:
                dealt[row] = name
        if not have:
            raise UserError(
                f"no group can go to {name}: each is the last with images of some class, and data.tiny_classes is "
                "train. Leave the classes with few groups out (data.classes), or split by hand (data.split_from)."
            )
    refuse_untrained(manifest, dealt)
    return dealt, absent(manifest, dealt, wanted)


def _refuse_few(have: int, needed: int, aim: str) -> None:
    if have < needed:
        raise UserError(
            f"the images are of {have} group{'s' * (have != 1)}, but {aim} at least {needed}. Split by hand (a split "
            "column, data.split_from), or leave the groups out."
        )


def refuse_untrained(manifest: Manifest, splits: Sequence[str]) -> None:
    """An error where whole groups leave a class without training images.

    Raises:
        UserError: such a class.
    """
    missing = _without(manifest, splits, "train")
    if missing:
        raise UserError(
            f"splitting by group leaves the class {missing[0]!r} ({len(missing)} in all) without training images: its "
            "groups are too few. Try another data.split_seed, smaller fractions, a split of your own, or set "
            "data.tiny_classes to train, which keeps the last group of a class there."
        )


def absent(manifest: Manifest, splits: Sequence[str], names: Iterable[str]) -> list[str]:
    """What is to be said of classes that have no images in one of these splits."""
    notices = []
    for name in names:
        missing = _without(manifest, splits, name)
        if missing:
            notices.append(
                f"the split {name} has no images of {len(missing):,} of {len(manifest.classes):,} classes "
                f"({some(missing)}): whole groups are dealt"
            )
    return notices


def _without(manifest: Manifest, splits: Sequence[str], name: str) -> list[str]:
    there = {label for label, split in zip(manifest.labels.tolist(), splits, strict=True) if split == name}
    return [other for label, other in enumerate(manifest.classes) if label not in there]


def fold_groups(manifest: Manifest, rows: Sequence[int], count: int, config: DataConfig) -> dict[int, int]:
    """Row -> its fold, 0 … count - 1, or -1 for what stays in train: whole groups, large first, into balanced folds.

    A group goes to the fold where the squares of the classes' shares grow least: scikit-learn's StratifiedGroupKFold,
    but in an order of contents. A class that all but one fold lack cannot be trained with that fold held out: an error,
    or, where data.tiny_classes is train, its first group stays in train in every fold.

    Raises:
        UserError: fewer groups than folds, or a class in one fold only.
    """
    whole = units(manifest, rows, config.split_seed)
    held = classes_of(manifest, whole)
    kept: set[int] = set()
    while True:
        free = [k for k in range(len(whole)) if k not in kept]
        _refuse_few(len(free), count, f"the {count} folds of data.fold{' and what stays in train' * bool(kept)} need")
        folds = _balanced(free, whole, held, count)
        places: dict[int, set[int]] = {}
        for k, labels in enumerate(held):
            for label in labels:
                places.setdefault(label, set()).add(folds.get(k, -1))
        alone = sorted(label for label, found in places.items() if len(found) == 1 and -1 not in found)
        if not alone:
            return {row: folds.get(k, -1) for k, unit in enumerate(whole) for row in unit}
        if config.tiny_classes == "error":
            raise UserError(
                f"the groups of the class {manifest.classes[alone[0]]!r} ({len(alone)} such classes) are all in one "
                f"of the {count} folds of data.fold, which leaves it without training images there. Leave it out "
                "(data.classes), or set data.tiny_classes to train, which keeps a group of it in train in every fold."
            )
        kept |= {next(k for k in free if label in held[k]) for label in alone}


def _balanced(
    free: Sequence[int], whole: Sequence[Sequence[int]], held: Sequence[Counter[int]], count: int
) -> dict[int, int]:
    """The fold of every free unit. Whole numbers only, so that a close call is the same on any machine."""
    totals = Counter[int]()
    for k in free:
        totals.update(held[k])
    weights = {label: 10**24 // total**2 for label, total in totals.items()}
    have: list[Counter[int]] = [Counter() for _ in range(count)]
    sizes, folds = [0] * count, {}
    # By size in powers of two, and in one such by content: so the seed counts also where all groups differ in size.
    for k in sorted(free, key=lambda k: -len(whole[k]).bit_length()):
        costs = [sum(weights[label] * num * fold[label] for label, num in held[k].items()) for fold in have]
        best = min(range(count), key=lambda fold: (costs[fold], sizes[fold], fold))
        have[best].update(held[k])
        sizes[best] += len(whole[k])
        folds[k] = best
    return folds
