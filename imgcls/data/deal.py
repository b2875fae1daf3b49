"""Dealing different images class by class, in the order of a hash of seed and content: names and places never count."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from imgcls.data.names import some
from imgcls.data.source import DataConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest

ByClass = list[tuple[int, list[list[int]]]]
"""(label, its different images: each the rows that hold these bytes)."""


def order_key(seed: int, contents: Iterable[str]) -> bytes:
    """What things made of these contents are ordered by."""
    return hashlib.blake2b("/".join([str(seed), *sorted(contents)]).encode()).digest()


def by_class(manifest: Manifest, rows: Sequence[int], seed: int) -> ByClass:
    """The different images of every class among the rows; classes and images in the order of their contents.

    Bytes that stand in several classes belong to the first of these, so that no copy is dealt to another side.
    """
    contents, labels = manifest.frame["content"].tolist(), manifest.labels.tolist()
    rows_of: list[list[int]] = [[] for _ in manifest.classes]
    for row in rows:
        rows_of[labels[row]].append(row)
    keys = [order_key(seed, {contents[row] for row in of_class}) for of_class in rows_of]
    order = sorted(range(len(keys)), key=lambda label: (keys[label], label))
    owner: dict[str, int] = {}
    members: dict[int, dict[str, list[int]]] = {label: {} for label in order}
    for label in order:
        for row in rows_of[label]:
            content = contents[row]
            members[owner.setdefault(content, label)].setdefault(content, []).append(row)
    return [
        (label, [images[content] for content in sorted(images, key=lambda content: order_key(seed, [content]))])
        for label, images in members.items()
    ]


def deal_classes(
    manifest: Manifest, splits: Sequence[str], wanted: Mapping[str, float], config: DataConfig
) -> tuple[list[str], list[str]]:
    """(a split for every row, notices): of each class, its share of the training images goes to each wanted split.

    Every split gets at least one image of a class. A class with fewer different images than splits is an error, or,
    where data.tiny_classes is train, gives one image each to train, then val, then test, as far as they reach.
    """
    dealt = list(splits)
    tiny: dict[int, int] = {}
    rows = [row for row, name in enumerate(splits) if name == "train"]
    for label, images in by_class(manifest, rows, config.split_seed):
        if len(images) < 1 + len(wanted):
            tiny[label] = len(images)
        for name, image in zip(_shares(len(images), wanted), images, strict=True):
            for row in image:
                dealt[row] = name
    aim = f"the splits {', '.join(['train', *wanted])} need at least {1 + len(wanted)}"
    return dealt, tell_tiny(manifest, tiny, aim, "they go to train first, then val, then test", config)


def _shares(count: int, wanted: Mapping[str, float]) -> list[str]:
    """The split of each of a class's images, in their order; the shares are taken from the end."""
    if count < 1 + len(wanted):
        return ["train", *reversed(list(wanted))][:count]
    names, free = ["train"] * count, count
    for done, (name, fraction) in enumerate(wanted.items()):
        still_needed = len(wanted) - done
        take = min(max(1, round(fraction * count)), free - still_needed)
        names[free - take : free] = [name] * take
        free -= take
    return names


def tell_tiny(manifest: Manifest, tiny: Mapping[int, int], aim: str, rule: str, config: DataConfig) -> list[str]:
    """What is to be said of classes with too few different images.

    Args:
        manifest: the images.
        tiny: label -> number of different images.
        aim: what needs more.
        rule: what happens to the images where data.tiny_classes is train.
        config: the `data` section.

    Raises:
        UserError: data.tiny_classes is error, or a class has no image that is not also in another class.
    """
    if not tiny:
        return []
    none = [label for label, count in sorted(tiny.items()) if count == 0]
    label = none[0] if none else min(tiny)
    name, have = manifest.classes[label], tiny[label]
    if none:
        raise UserError(
            f"the class {name!r} has 0 different images of its own to train on: every one stands, byte for byte, in "
            "another class too, or is in another split. Mend the labels, or leave the class out (data.classes)."
        )
    if config.tiny_classes == "error":
        more = f" ({len(tiny):,} classes have too few)" if len(tiny) > 1 else ""
        raise UserError(
            f"the class {name!r} has {have} different image{'s' * (have != 1)} of its own, but {aim}{more}. Add "
            "images, leave the class out (data.classes), set data.test_fraction to 0, or set data.tiny_classes to "
            f"train: then {rule}."
        )
    shown = some([f"{manifest.classes[label]}: {count}" for label, count in sorted(tiny.items())])
    return [f"tiny classes, {len(tiny):,} in all, have too few different images ({shown}): {aim}; {rule}"]
