"""What is wrong with a data set, found before a run is made."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgcls.data.decode import Pixels, decode, shrink, to_channels
from imgcls.data.duplicates import NearPairs, Print, fingerprint, groups, near_pairs
from imgcls.data.facts import Fact, fact_of, facts_of
from imgcls.data.images import Progress, map_bounded, name_of, read_encoded
from imgcls.data.report import (
    FEW_IMAGES,
    IMBALANCED,
    KINDS,
    LONG,
    MUCH_SMALLER,
    Channels,
    Depth,
    Finding,
    Report,
    finding_of,
    training_counts,
)
from imgcls.errors import UserError
from imgcls.tables import SPLITS, Manifest, Skipped

SHORT_SIDE = 64
"""Pixels to which the full check shrinks an image before it measures its channels and compares it with others."""
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "PNG": (".png",),
    "WEBP": (".webp",), "BMP": (".bmp", ".dib"), "DIB": (".bmp", ".dib"), "TIFF": (".tif", ".tiff"), "GIF": (".gif",),
}  # fmt: skip
"""The endings that fit a format; of formats that are not here, any does."""


def check(manifest: Manifest, *, depth: Depth = "quick", channels: int = 3, progress: Progress | None = None) -> Report:
    """Look for what makes training fail or mislead.

    Args:
        manifest: the images, split where they can be: copies are only dealt to one side, but look-alikes are not.
        depth: quick reads every file's header and hashes its bytes; full decodes every image besides, which finds
            damaged ones, measures the channels, and compares all pictures with each other.
        channels: 1 or 3: those that are measured.
        progress: told how many images are done.
    """
    facts = _facts(manifest, progress if depth == "quick" else None)
    unreadable = {row: fact.problem for row, fact in enumerate(facts) if fact.problem}
    near, measured, blank = None, None, list[int]()
    if depth == "full":
        looks = _look_at_all(manifest, channels, progress)
        unreadable = {row: facts[row].problem or look for row, look in enumerate(looks) if isinstance(look, str)}
        seen = {row: look for row, look in enumerate(looks) if not isinstance(look, str)}
        blank = [row for row, look in seen.items() if look.print.is_blank]
        measured = _channels(list(seen.values()))
        near = _near(manifest, {row: look.print for row, look in seen.items()})
    contents = [str(value) for value in manifest.frame["content"]]
    readable = [row for row in range(len(manifest)) if row not in unreadable]
    copies = [[readable[k] for k in same] for same in groups([contents[row] for row in readable])]
    class_counts = _class_counts(manifest)
    found = {**_oddities(manifest, facts, unreadable), "blank": blank}
    findings = [finding_of(kind, [manifest.ids[row] for row in rows]) for kind, rows in found.items()]
    findings.append(
        finding_of("unreadable", [f"{manifest.ids[row]}: {why}" for row, why in sorted(unreadable.items())])
    )
    findings += _about_copies(manifest, copies)
    findings += _about_classes(manifest.classes, class_counts)
    if near is not None:
        findings += _about_pairs(manifest, near, copies)
    order = list(KINDS)
    kept = sorted((finding for finding in findings if finding.count), key=lambda finding: order.index(finding.kind))
    return Report(manifest, depth, facts, tuple(kept), class_counts, unreadable, copies, near, measured)


def _facts(manifest: Manifest, progress: Progress | None) -> list[Fact]:
    """The facts of each image; of a source that holds pixels, their size alone."""
    if manifest.images is not None:
        shape = manifest.images.shape
        fact = Fact(
            num_bytes=int(np.prod(shape[1:])), width=shape[2], height=shape[1], mode="RGB" if shape[3:] else "L"
        )
        return [fact._replace(content=str(content)) for content in manifest.frame["content"]]
    if manifest.encoded is None:
        return facts_of([str(path) for path in manifest.frame["path"]], progress)
    facts: list[Fact] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fact in map_bounded(pool, lambda row: fact_of(read_encoded(manifest, row)), len(manifest)):
            facts.append(fact)
            if progress is not None:
                progress(len(facts), len(manifest))
    return facts


def _class_counts(manifest: Manifest) -> dict[str, npt.NDArray[np.int64]]:
    splits, labels, size = manifest.frame["split"].to_numpy(), manifest.labels, len(manifest.classes)
    counted = {
        split: np.bincount(labels[(labels >= 0) & (splits == split)], minlength=size).astype(np.int64)
        for split in (*SPLITS, "")
        if (splits == split).any()
    }
    return counted or {"": np.zeros(size, np.int64)}


def _oddities(manifest: Manifest, facts: Sequence[Fact], unreadable: Mapping[int, str]) -> dict[str, list[int]]:
    """kind -> rows, of what a single image's header tells."""
    endings = [Path(str(path)).suffix.casefold() for path in manifest.frame["path"]]
    fine = [row for row in range(len(facts)) if row not in unreadable]
    shorter = {row: min(facts[row].width, facts[row].height) for row in fine}
    limit = float(np.median(list(shorter.values()))) / MUCH_SMALLER if fine else 0.0
    tests: dict[str, Callable[[Fact], bool]] = {
        "cut_off": lambda fact: not fact.ends,
        "animated": lambda fact: fact.frames > 1,
        "cmyk": lambda fact: fact.mode == "CMYK",
        "palette": lambda fact: fact.mode in ("P", "PA"),
        "wide": lambda fact: fact.bits > 8,
        "alpha": lambda fact: fact.transparent,
        "rotated": lambda fact: fact.orientation != 1,
        "elongated": lambda fact: max(fact.width, fact.height) > LONG * min(fact.width, fact.height),
    }
    found = {kind: [row for row in fine if test(facts[row])] for kind, test in tests.items()}
    found["wrong_ending"] = [
        row
        for row in fine
        if endings[row] and facts[row].format in ENDINGS and endings[row] not in ENDINGS[facts[row].format]
    ]
    found["small"] = [row for row in fine if shorter[row] < limit]
    return found


def _about_copies(manifest: Manifest, copies: Sequence[Sequence[int]]) -> list[Finding]:
    ids, sides = manifest.ids, _sides(manifest)
    names = [manifest.classes[label] if label >= 0 else "" for label in manifest.labels]
    of_class = [[f"{ids[row]} ({names[row]})" for row in same] for same in copies if len({names[k] for k in same}) > 1]
    of_split = [[f"{ids[row]} ({sides[row]})" for row in same] for same in copies if len({sides[k] for k in same}) > 1]
    return [
        finding_of("contradictory", [" = ".join(same) for same in of_class]),
        finding_of("leakage", [" = ".join(same) for same in of_split]),
        finding_of("duplicates", [f"{ids[row]} = {ids[same[0]]}" for same in copies for row in same[1:]]),
    ]


def _sides(manifest: Manifest) -> list[str]:
    """The split of each row; what has none goes to training, or to splits that keep copies together."""
    return [str(split) or "train" for split in manifest.frame["split"]]


def _about_classes(classes: Sequence[str], class_counts: Mapping[str, npt.NDArray[np.int64]]) -> list[Finding]:
    counts = training_counts(class_counts)
    order = [int(label) for label in np.argsort(counts, kind="stable")]
    few = [classes[label] for label in order if counts[label] < FEW_IMAGES]
    tiny = [classes[label] for label in order if counts.max() >= IMBALANCED * counts[label]]
    return [finding_of("few_images", few), finding_of("imbalance", tiny)]


def _near(manifest: Manifest, prints: Mapping[int, Print]) -> NearPairs:
    """Pairs among the first images of every content."""
    contents = [str(value) for value in manifest.frame["content"]]
    first: dict[str, int] = {}
    for row in prints:
        first.setdefault(contents[row], row)
    rows = np.array(list(first.values()), np.int64)
    found = near_pairs([prints[row] for row in first.values()])
    return NearPairs(found.count, rows[found.rows], found.distances, found.correlations)


def _about_pairs(manifest: Manifest, near: NearPairs, copies: Sequence[Sequence[int]]) -> list[Finding]:
    """Findings on pairs; a pair stands for all copies of its two images. Counts beyond the listed are in `near`."""
    same = {rows[0]: rows for rows in copies}
    labels, sides, ids = manifest.labels, _sides(manifest), manifest.ids
    pairs = [tuple(same.get(row, [row]) for row in pair) for pair in near.rows.tolist()]
    names = [f"{ids[a[0]]} ~ {ids[b[0]]}" for a, b in pairs]
    crossing = {
        "near_contradictory": [len({int(labels[row]) for row in (*a, *b)}) > 1 for a, b in pairs],
        "near_leakage": [len({sides[row] for row in (*a, *b)}) > 1 for a, b in pairs],
    }
    found = [
        finding_of(kind, [name for name, yes in zip(names, crosses, strict=True) if yes])
        for kind, crosses in crossing.items()
    ]
    if near.count > len(pairs):
        only = f" Counted among the first {len(pairs):,} of {near.count:,} pairs."
        found = [replace(finding, advice=finding.advice + only) for finding in found]
    return [*found, finding_of("near_duplicates", names, near.count)]


@dataclass(frozen=True)
class _Look:
    """An image, decoded: its print, and the mean of each channel and of its square, 0 to 1."""

    print: Print
    mean: npt.NDArray[np.float64]
    mean_square: npt.NDArray[np.float64]


def _look_at_all(manifest: Manifest, channels: int, progress: Progress | None) -> list[_Look | str]:
    """Every image's look, or the reason why it has none."""

    def look(row: int) -> _Look | str:
        try:
            pixels = pixels_of(manifest, row, channels=channels, short_side=SHORT_SIDE)
        except UserError as error:
            return str(error)
        scaled = pixels.astype(np.float64) / 255
        return _Look(fingerprint(pixels), scaled.mean((0, 1)), (scaled * scaled).mean((0, 1)))

    looks: list[_Look | str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in map_bounded(pool, look, len(manifest)):
            looks.append(found)
            if progress is not None:
                progress(len(looks), len(manifest))
    return looks


def pixels_of(manifest: Manifest, row: int, *, channels: int, short_side: int) -> Pixels:
    """One image, (H, W, channels), shrunk to a shorter side, wherever its manifest has it.

    Raises:
        UserError: it cannot be read; the message is the reason alone where it cannot be decoded.
    """
    if manifest.images is not None:
        index = int(manifest.frame["row"].to_numpy()[row])
        return shrink(to_channels(manifest.images[index], channels), short_side)
    return decode(read_encoded(manifest, row), channels=channels, short_side=short_side)


def _channels(looks: Sequence[_Look]) -> Channels | None:
    if not looks:
        return None
    mean = np.mean([look.mean for look in looks], axis=0)
    square = np.mean([look.mean_square for look in looks], axis=0)
    return Channels(mean, np.sqrt(np.maximum(0, square - mean * mean)))


def drop_unreadable(manifest: Manifest, *, progress: Progress | None = None) -> Manifest:
    """The manifest without the images that cannot be decoded; they are among its `skipped`, with reasons.

    Args:
        manifest: the images.
        progress: told how many images are done.

    Raises:
        UserError: a class is left without images.
    """
    if manifest.images is not None:
        return manifest
    bad = {
        row: Skipped(
            manifest.ids[row], f"cannot read the image {name_of(manifest, row)}: {reason}. Mend or remove the file."
        )
        for row, reason in _undecodable(manifest, progress).items()
    }
    if not bad:
        return manifest
    kept = manifest.without(list(bad), skipped=list(bad.values()))
    empty = sorted(set(range(len(manifest.classes))) - set(kept.labels.tolist()))
    if empty:
        raise UserError(
            f"every image of the class {manifest.classes[empty[0]]!r} is unreadable ({len(empty)} such classes), "
            f"the first because: {next(iter(bad.values())).reason} Mend the images or remove the class."
        )
    return kept


def _undecodable(manifest: Manifest, progress: Progress | None) -> dict[int, str]:
    """row -> why it cannot be decoded."""

    def reason(row: int) -> str:
        try:
            pixels_of(manifest, row, channels=3, short_side=32)
        except UserError as error:
            return str(error)
        return ""

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, why in enumerate(map_bounded(pool, reason, len(manifest))):
            if why:
                bad[row] = why
            if progress is not None:
                progress(row + 1, len(manifest))
    return bad
