"""Which classes there are: `data.classes` keeps some, renames or merges them, and never lets an order count."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imgcls.data.names import some
from imgcls.errors import UserError
from imgcls.plugins import nearest
from imgcls.tables import Manifest, Skipped

Classes = list[str] | dict[str, list[str]]
"""Class names to keep, or new name -> old names."""
CLASSES_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 2},
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": ["string", "integer"]},
                    {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1},
                ]
            },
            "minProperties": 2,
        },
        {"type": "null"},
    ]
}
"""What a recipe file may hold; `read_classes` makes texts of its integers."""


def read_classes(value: object) -> Classes | None:
    """`data.classes` as it was written -> class names as text; YAML takes the names 1 and 2 for integers.

    Raises:
        ValueError: neither names nor new name -> old names, fewer than two classes, or a class named twice.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        merged = {_name(new): _names(old if isinstance(old, list | tuple) else [old]) for new, old in value.items()}
        if len(merged) < len(value):
            raise ValueError("expected every new name once")
        _refuse_few_or_twice(list(merged), [name for names in merged.values() for name in names])
        empty = [new for new, names in merged.items() if not names]
        if empty:
            raise ValueError(f"{empty[0]!r} has no old name; expected at least one for every new name")
        return merged
    if isinstance(value, list | tuple):
        kept = _names(value)
        _refuse_few_or_twice(kept, kept)
        return kept
    raise ValueError("expected a list of class names, or a mapping of new names to an old name or a list of old names")


def _names(values: Sequence[object]) -> list[str]:
    return [_name(value) for value in values]


def _name(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"{value!r} is no class name; expected text: put it in quotes, as it is written in the data")


def _refuse_few_or_twice(left: list[str], named: list[str]) -> None:
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise ValueError(f"the class {twice[0]!r} is named twice; expected every class at most once")
    if len(left) < 2:
        raise ValueError(f"this leaves {len(left)} class{'es' * (len(left) != 1)}; a classifier needs at least two")


def select_classes(manifest: Manifest, classes: Classes | None) -> Manifest:
    """The manifest with the classes asked for, whose digest is that of the result.

    Kept classes stay in the manifest's order. Renamed and merged ones are sorted as text, by value where all are
    integers. The order in which they were asked for never counts. Images of other classes are left out; each such class
    is among the manifest's `skipped`.

    Args:
        manifest: the images as the source gives them.
        classes: names to keep, or new name -> old names; None keeps the manifest as it is.

    Raises:
        UserError: a class that the data do not have.
    """
    if classes is None:
        return manifest
    wanted = classes if isinstance(classes, dict) else {name: [name] for name in classes}
    asked = {old: new for new, names in wanted.items() for old in names}
    _refuse_unknown(list(asked), manifest.classes)
    kept = [name for name in manifest.classes if name in asked]
    names = _sorted(list(wanted)) if isinstance(classes, dict) else kept
    index = {name: k for k, name in enumerate(names)}
    new_labels = np.array([index[asked[name]] if name in asked else -1 for name in manifest.classes] + [-1])
    labels = new_labels[manifest.labels]  # -1, an image without a label, takes the last
    counts = np.bincount(manifest.labels + 1, minlength=len(manifest.classes) + 1)
    skipped = [
        Skipped(f"class {name}", f"{count:,} image{'s' * (count != 1)} left out by data.classes", num_files=count)
        for name, count in zip(("without a name", *manifest.classes), counts.tolist(), strict=True)
        if name not in asked and count
    ]
    return manifest.with_classes(labels.tolist(), names).without(np.flatnonzero(labels < 0).tolist(), skipped=skipped)


def _sorted(names: Sequence[str]) -> list[str]:
    if all(name.removeprefix("-").isascii() and name.removeprefix("-").isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _refuse_unknown(asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in set(known)]
    if unknown:
        guess = nearest(unknown[0], known)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise UserError(
            f"data.classes: the data have no class {unknown[0]!r}"
            f"{f' ({len(unknown)} such names)' * (len(unknown) > 1)}; their {len(known):,} classes are "
            f"{some(known)}.{hint}"
        )
