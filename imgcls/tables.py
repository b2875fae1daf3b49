"""The three values that flow between stages: Manifest (images), History (epochs), Predictions (outputs)."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, float]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MANIFEST_COLUMNS = ("id", "path", "row", "label", "split", "group", "content")


@dataclass(frozen=True)
class Skipped:
    """What was passed over, and why.

    Attributes:
        path: a file, or what else was left out.
        reason: why.
        num_files: how many images or other files it stands for; 0 where it is none, such as a row of a table.
    """

    path: str
    reason: str
    num_files: int = 1


@dataclass(frozen=True)
class Encoded:
    """Encoded image files, one after the other.

    Attributes:
        data: their bytes, (B,) uint8; may be memory-mapped.
        ends: (N + 1,) int64: file k is data[ends[k]:ends[k + 1]].
    """

    data: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.ends[row] : self.ends[row + 1]].tobytes()


@dataclass(frozen=True)
class Manifest:
    """The images of a data set, one row each.

    Attributes:
        frame: columns `id` (stable, unique), `path` (absolute, or "" where `row` counts), `row` (index into
            `images` or `encoded`, or -1), `label` (index into `classes`, -1 unknown), `split` (train, val, test or ""),
            `group` (images of one group belong on one side of a split; "" none), `content` (a hash of the
            image's bytes).
        classes: class names; their order is the order of every probability vector.
        digest: 32 hex digits; equal for equal image bytes and labels, wherever the files lie.
        images: (N, H, W) or (N, H, W, 3) uint8 where the source holds the pixels itself, else None.
        encoded: encoded image files where the source holds them itself, else None.
        skipped: the files that were passed over.
        notices: sentences for the user about how the images were read or split.
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    digest: str
    images: npt.NDArray[np.uint8] | None = None
    encoded: Encoded | None = None
    skipped: tuple[Skipped, ...] = ()
    notices: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *,
        classes: Sequence[str],
        images: npt.NDArray[np.uint8] | None = None,
        encoded: Encoded | None = None,
        skipped: Sequence[Skipped] = (),
        notices: Sequence[str] = (),
    ) -> "Manifest":
        """A manifest of the rows; the columns a row leaves out get their empty value."""
        empty = {"id": "", "path": "", "row": -1, "label": -1, "split": "", "group": "", "content": ""}
        frame = pd.DataFrame([{**empty, **row} for row in rows], columns=list(MANIFEST_COLUMNS))
        assert frame["id"].is_unique, "a source gave the same id twice"
        digest = _digest(frame, classes)
        return cls(frame, tuple(classes), digest, images, encoded, tuple(skipped), tuple(notices))

    def __len__(self) -> int:
        return len(self.frame)

    def with_splits(self, splits: Sequence[str]) -> "Manifest":
        """The same images with these splits, one per row."""
        return replace(self, frame=self.frame.assign(split=list(splits)))

    def with_classes(self, labels: Sequence[int], classes: Sequence[str]) -> "Manifest":
        """The same images with these labels, one per row, into these classes; the digest is theirs."""
        frame = self.frame.assign(label=list(labels))
        return replace(self, frame=frame, classes=tuple(classes), digest=_digest(frame, classes))

    def with_notices(self, notices: Sequence[str]) -> "Manifest":
        """This manifest with more to tell the user."""
        return replace(self, notices=(*self.notices, *notices))

    def without(self, rows: Sequence[int], *, skipped: Sequence[Skipped]) -> "Manifest":
        """This manifest less some rows, with what is to be said of them; the digest is that of the rest."""
        frame = self.frame.drop(index=list(rows)).reset_index(drop=True)
        return replace(self, frame=frame, digest=_digest(frame, self.classes), skipped=(*self.skipped, *skipped))

    def part(self, split: str) -> "Manifest":
        """The rows of one split, in this manifest's order. The digest stays that of the whole data set."""
        return replace(self, frame=self.frame[self.frame["split"] == split].reset_index(drop=True))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) labels."""
        return self.frame["label"].to_numpy(dtype=np.int64)

    @property
    def ids(self) -> list[str]:
        """The N ids."""
        return [str(value) for value in self.frame["id"]]

    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {split: int((self.frame["split"] == split).sum()) for split in SPLITS}


def split_digest(manifest: Manifest, split: Split) -> str:
    """A hash of (content, class name) pairs of one split's images alone: 32 hex digits.

    Wherever they lie, whatever they are called, and whatever images the other splits have.
    """
    part = manifest.part(split)
    return _hash(_pairs(part.frame, part.classes))


def _digest(frame: pd.DataFrame, classes: Sequence[str]) -> str:
    """A hash of (content, class name) pairs and the classes, independent of paths and of their order."""
    return _hash([*classes, "", *_pairs(frame, classes)])


def _pairs(frame: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    names = ["" if label < 0 else classes[label] for label in frame["label"]]
    return sorted(f"{content}\t{name}" for content, name in zip(frame["content"], names, strict=True))


def _hash(lines: Sequence[str]) -> str:
    text = "\n".join(lines)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class History:
    """What a training logged, one row an epoch.

    A row has `epoch` (from 1), `train/loss`, `train/acc`, `val/loss`, `val/acc`, `val/f1` (macro), `lr` (at
    the end of the epoch), `seconds`, `images_per_s` (training images over training seconds) and, of a network with
    stages, `model/freeze_depth` (those frozen in the epoch) and, where gradients are clipped, `train/grad_norm` (mean
    L2 norm before that). Where MixUp or CutMix mixes the training images, `train/loss` is the loss against their shares
    of two labels, and `train/acc` counts the label with the larger share; figures of validation are those of whole
    images and, where weights are averaged, of the average. A training without validation images has no `val/...`.
    """

    rows: list[Row] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)

    def to_json(self) -> str:
        """The rows as JSON, one line a row."""
        return "[\n" + ",\n".join(json.dumps(row) for row in self.rows) + "\n]\n"

    @classmethod
    def from_json(cls, text: str) -> "History":
        """The inverse of `to_json`."""
        return cls(json.loads(text))


@dataclass(frozen=True)
class Predictions:
    """A model's probabilities for images.

    Attributes:
        ids: N image ids.
        probs: (N, C) float32; each row sums to 1.
        labels: (N,) int64 true labels, -1 where unknown.
        classes: the C class names.
        split: the split the images come from, or "".
        manifest_digest: the digest of the data set the images come from.
    """

    ids: list[str]
    probs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    split: str = ""
    manifest_digest: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.ids), len(self.classes))
        if self.probs.shape != shape or self.labels.shape != shape[:1]:
            raise ValueError(
                f"predictions do not fit together: {shape[0]} ids and {shape[1]} classes, but probs "
                f"{self.probs.shape} and labels {self.labels.shape}"
            )

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(N,) the most probable class of each image."""
        best: npt.NDArray[np.int64] = np.argmax(self.probs, axis=1).astype(np.int64)
        return best

    def to_parquet(self, path: Path) -> None:
        """Write one row an image: id, label, label_name, predicted, predicted_name, confidence, probs (list)."""
        predicted = self.predicted
        flat = pa.array(np.ascontiguousarray(self.probs).reshape(-1), pa.float32())
        table = pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "label": pa.array(self.labels, pa.int64()),
                "label_name": pa.array([self.classes[k] if k >= 0 else None for k in self.labels], pa.string()),
                "predicted": pa.array(predicted, pa.int64()),
                "predicted_name": pa.array([self.classes[k] for k in predicted], pa.string()),
                "confidence": pa.array(self.probs.max(axis=1), pa.float32()),
                "probs": pa.FixedSizeListArray.from_arrays(flat, len(self.classes)),
            }
        )
        about = {"classes": self.classes, "split": self.split, "manifest_digest": self.manifest_digest}
        table = table.replace_schema_metadata({b"imgcls": json.dumps(about).encode()})
        pq.write_table(table, path)

    @classmethod
    def from_parquet(cls, path: Path) -> "Predictions":
        """The inverse of `to_parquet`.

        Raises:
            ValueError: the file was not written by `to_parquet`.
        """
        table = pq.read_table(path)
        about = (table.schema.metadata or {}).get(b"imgcls")
        if about is None:
            raise ValueError(f"{path} holds no imgcls predictions: its Parquet metadata has no key 'imgcls'")
        meta = json.loads(about)
        classes = tuple(meta["classes"])
        flat = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return cls(
            ids=table["id"].to_pylist(),
            probs=flat.astype(np.float32).reshape(-1, len(classes)),
            labels=table["label"].to_numpy().astype(np.int64),
            classes=classes,
            split=meta["split"],
            manifest_digest=meta["manifest_digest"],
        )
