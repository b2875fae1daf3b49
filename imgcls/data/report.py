"""What a check of a data set found: the kinds of findings, and the report that they are in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imgcls.data.duplicates import NearPairs
from imgcls.data.facts import Fact
from imgcls.tables import Manifest

Depth = Literal["quick", "full"]
Severity = Literal["error", "warning", "note"]

MUCH_SMALLER = 4
"""How often an image's shorter side may fit into the median one before it is called small."""
LONG = 5
"""Aspect ratio above which an image is called elongated."""
FEW_IMAGES = 10
"""Training images below which a class is called small."""
IMBALANCED = 10.0
"""Images of the largest class over those of the smallest from which classes are called imbalanced."""
KINDS: dict[str, tuple[Severity, str, str]] = {
    "unreadable": ("error", "images that cannot be decoded", "Mend or remove them, or set data.on_bad_image to skip."),
    "cut_off": (
        "warning", "files that lack their format's end", "They were probably cut off in copying: compare them with "
        "the originals; a full check decodes them to see.",
    ),
    "contradictory": (
        "warning", "contents (the same bytes) under several labels", "At most one of the labels is right: remove the "
        "others.",
    ),
    "leakage": (
        "warning", "contents (the same bytes) in several splits", "What is measured on such images is not how the "
        "model does on new ones: remove them from one side.",
    ),
    "near_contradictory": (
        "warning", "pairs that look alike under different labels", "Look at the figure of the pairs; mend the labels "
        "of those that are the same picture.",
    ),
    "near_leakage": (
        "warning", "pairs that look alike in different splits", "Look at the figure of the pairs; remove those that "
        "are the same picture from one side, or give such images a common group.",
    ),
    "few_images": (
        "warning", f"classes with fewer than {FEW_IMAGES} training images", "What is measured for them will vary "
        "much: add images or merge classes.",
    ),
    "imbalance": (
        "warning", f"classes {IMBALANCED:.0f} times smaller than the largest", "The network may neglect them: see "
        "data.balance, and read the f1 rather than the accuracy.",
    ),
    "blank": ("warning", "images of one colour", "They show nothing to learn: remove them, or see what made them."),
    "duplicates": (
        "note", "copies of an image, byte for byte", "Splits that are dealt here keep copies on one side; "
        "they count several times in training.",
    ),
    "near_duplicates": (
        "note", "pairs that look alike", "Copies that were resized, cropped or compressed anew, or shots of one "
        "scene. Give those a common group (data.group_column) to keep them on one side of the split.",
    ),
    "wrong_ending": (
        "note", "files of another format than their ending says", "They are read as what they are; other tools may "
        "go by the ending.",
    ),
    "animated": ("note", "files with several pictures (animations, pages)", "Only the first one is used."),
    "cmyk": ("note", "images in CMYK", "They are converted to RGB without their colour profile."),
    "palette": ("note", "images with a palette", "They are read as the colours of the palette."),
    "wide": ("note", "images of 16 bits a channel or more", "They are scaled to 8 bits."),
    "alpha": ("note", "images with transparency", "They are laid over white."),
    "rotated": ("note", "images that EXIF says to turn", "They are turned before they are used."),
    "elongated": (
        "note", f"images with one side over {LONG} times the other", "Cropped or squeezed to a square, little of them "
        "is left.",
    ),
    "small": (
        "note", f"images over {MUCH_SMALLER} times smaller than the median", "Enlarged beside the others they are "
        "blurred: thumbnails by mistake?",
    ),
}  # fmt: skip
"""kind -> its severity, what there is (before a count), what it means and what to do. Reports are in this order."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: its name, stable, for programs.
        severity: error (training stops at it), warning (results may mislead) or note (good to know).
        title: what there is, to be read before the count.
        advice: what it means and what to do.
        count: how often.
        items: all that it is about: ids of images (with the reason of those that cannot be decoded, `a = b` of equal
            bytes, `a ~ b` of a pair that looks alike), or classes.
    """

    kind: str
    severity: Severity
    title: str
    advice: str
    count: int
    items: tuple[str, ...]

    def line(self, most: int = 3) -> str:
        """The finding in one line, with the first few examples."""
        examples = ", ".join(self.items[:most]) + (", …" if len(self.items) > most else "")
        return f"{self.severity}: {self.title}: {self.count:,} ({examples})"


@dataclass(frozen=True)
class Channels:
    """Mean and standard deviation of the pixels, each image counting alike, of shrunk images.

    Attributes:
        mean: (C,) 0 to 1.
        std: (C,) 0 to 1.
    """

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        manifest: what was checked.
        depth: quick (headers) or full (every image decoded).
        facts: of every image, in the manifest's order.
        findings: in the order error, warning, note.
        class_counts: split (train, val, test, "" undealt; only those there are) -> (C,) images.
        unreadable: row -> why it cannot be decoded.
        copies: rows of the images with equal bytes, a list for each such content.
        near: pairs that look alike, of images with different bytes; None in a quick check.
        channels: None in a quick check, or where nothing can be decoded.
    """

    manifest: Manifest
    depth: Depth
    facts: list[Fact]
    findings: tuple[Finding, ...]
    class_counts: dict[str, npt.NDArray[np.int64]]
    unreadable: dict[int, str]
    copies: list[list[int]]
    near: NearPairs | None
    channels: Channels | None

    @property
    def imbalance(self) -> float:
        """Images of the largest class over those of the smallest, in training or before there are splits."""
        counts = training_counts(self.class_counts)
        return float(counts.max() / max(1, counts.min()))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(N, 2) width and height, as they are seen after the EXIF rotation; 0 unknown."""
        turned = [(f.height, f.width) if f.orientation >= 5 else (f.width, f.height) for f in self.facts]
        return np.array(turned, np.int64).reshape(-1, 2)

    def count(self, kind: str) -> int:
        """How often a kind was found."""
        assert kind in KINDS
        return next((finding.count for finding in self.findings if finding.kind == kind), 0)

    def to_dict(self) -> dict[str, Any]:
        """The whole report, JSON-ready: every image that a finding is about, not examples only."""
        manifest, names = self.manifest, self.manifest.classes
        sizes, times = np.unique(self.sizes, axis=0, return_counts=True)
        return {
            "depth": self.depth,
            "images": len(manifest),
            "digest": manifest.digest,
            "bytes": sum(fact.num_bytes for fact in self.facts),
            "findings": [{**vars(finding), "items": list(finding.items)} for finding in self.findings],
            "classes": [
                {"class": name, **{split or "undealt": int(counts[k]) for split, counts in self.class_counts.items()}}
                for k, name in enumerate(names)
            ],
            "imbalance": self.imbalance,
            "sizes": [[int(w), int(h), int(n)] for (w, h), n in zip(sizes, times, strict=True)],
            "channels": None if self.channels is None else {k: v.tolist() for k, v in vars(self.channels).items()},
            "unreadable": [{"id": manifest.ids[row], "reason": why} for row, why in sorted(self.unreadable.items())],
            "duplicates": [[self.about(row) for row in same] for same in self.copies],
            "near_duplicates": None if self.near is None else [
                {"images": [self.about(a), self.about(b)], "distance": int(distance), "correlation": float(alike)}
                for (a, b), distance, alike in zip(
                    self.near.rows.tolist(), self.near.distances, self.near.correlations, strict=True
                )
            ],
            "near_duplicates_in_all": None if self.near is None else self.near.count,
        }  # fmt: skip

    def about(self, row: int) -> dict[str, str]:
        """Its id, class and split."""
        frame, label = self.manifest.frame, int(self.manifest.labels[row])
        name = self.manifest.classes[label] if label >= 0 else ""
        return {"id": str(frame["id"].iat[row]), "class": name, "split": str(frame["split"].iat[row])}


def training_counts(class_counts: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """(C,) images in training, or still undealt, most of which training will get; all, where there are none such."""
    chosen = [counts for split, counts in class_counts.items() if split in ("train", "")] or list(class_counts.values())
    total: npt.NDArray[np.int64] = np.sum(chosen, axis=0, dtype=np.int64)
    return total


def finding_of(kind: str, items: Sequence[str], count: int | None = None) -> Finding:
    """A finding of a kind; its count is that of the items where none is given."""
    severity, title, advice = KINDS[kind]
    return Finding(kind, severity, title, advice, len(items) if count is None else count, tuple(items))
