"""Files of predictions, written row by row and put into their place when they are complete."""

import csv
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import UserError
from imgcls.evaluation.submission import Sample

Probabilities = npt.NDArray[np.float32]
CSV, PARQUET = frozenset({".csv"}), frozenset({".parquet", ".pq"})
ROW_GROUP = 4096
"""Rows of a Parquet file that are in memory at a time, at most."""
MOST_VALUES = 2**22
"""Values of such rows, which are fewer where there are many columns."""
PROBABILITY = "prob_"
"""Before a class in the name of the column with its probability; no other column begins so."""


class Rows(Protocol):
    """A file that predictions are written to, one image after the other."""

    def write(self, name: str, probs: Probabilities) -> None:
        """The prediction of an image: its id, and (C,) probabilities."""

    def finish(self) -> None:
        """Write what is left."""

    def close(self) -> None:
        """Let go of the file; it is whole only after `finish`."""


class Output:
    """A file of predictions and the list of the images that cannot be read; neither appears before `commit`.

    Args:
        path: the file, ending in .csv or .parquet.
        classes: the C classes.
        top_k: classes named for an image, 1 to C.
        probabilities: write a column for each class as well.
        sample: the sample of a submission, whose form the file gets; predictions come in the order of its ids then.
        columns: the class of each of the sample's columns after the first; None where its only one is for the label.

    Attributes:
        num_unreadable: images that cannot be read, so far.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        *,
        top_k: int,
        probabilities: bool = False,
        sample: Sample | None = None,
        columns: Sequence[int] | None = None,
    ) -> None:
        self.path = path
        self.num_unreadable = 0
        self._classes, self._top_k, self._probabilities = tuple(classes), top_k, probabilities
        self._sample, self._columns = sample, columns
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._list_part = self.unreadable.with_name(f".{self.unreadable.name}.{os.getpid()}.part")
        self._rows: Rows | None = None
        self._list: _Text | None = None

    @property
    def unreadable(self) -> Path:
        """The list of images that cannot be read: id and reason."""
        return self.path.with_name(f"{self.path.name}.unreadable.csv")

    def __enter__(self) -> "Output":
        """Open it.

        Raises:
            UserError: it cannot be written there.
        """
        try:
            if self.path.exists() and not self.path.is_file():
                raise UserError(f"the output {self.path} is there and is no file; expected a file to make or replace.")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = self._open()
        except (OSError, ValueError) as error:  # ValueError: a NUL in its name
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"the output {str(self.path)!r} cannot be written: {why}. Give another file (--output), or mend the "
                "rights of its folder."
            ) from error
        return self

    def _open(self) -> Rows:
        if self._sample is not None:
            return _Submission(self._part, self._sample, self._columns, self._classes)
        if self.path.suffix.casefold() in PARQUET:
            return _Parquet(self._part, self._classes, self._top_k, self._probabilities)
        return _Csv(self._part, self._classes, self._top_k, self._probabilities)

    def write(self, name: str, probs: Probabilities) -> None:
        """The prediction of an image: its id, and (C,) probabilities."""
        assert self._rows is not None
        self._rows.write(name, probs)

    def refuse(self, name: str, reason: str) -> None:
        """An image that cannot be read."""
        if self._list is None:
            self._list = _Text(self._list_part, ("id", "reason"))
        self._list.row((name, reason))
        self.num_unreadable += 1

    def commit(self, *, only_unreadable: bool = False) -> None:
        """Put the files into their places; the list of an earlier time goes where there is none now."""
        assert self._rows is not None
        if not only_unreadable:
            self._rows.finish()
            self._rows.close()
            self._part.replace(self.path)
        if self._list is not None:
            self._list.close()
            self._list_part.replace(self.unreadable)
        else:
            self.unreadable.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was not committed."""
        for part in (self._rows, self._list):
            with suppress(OSError):  # a full disk, into which Parquet would write its end
                if part is not None:
                    part.close()
        for path in (self._part, self._list_part):
            path.unlink(missing_ok=True)


class _Text:
    """A CSV file."""

    def __init__(self, path: Path, header: Iterable[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(header)

    def row(self, cells: Iterable[str]) -> None:
        self._writer.writerow(cells)

    def close(self) -> None:
        self._file.close()


def _texts(probs: Probabilities) -> list[str]:
    """Each as the shortest text that gives the same float32."""
    texts: list[str] = probs.astype(str).tolist()
    return texts


def top(probs: Probabilities, k: int) -> npt.NDArray[np.int64]:
    """(k,) the most probable classes, the first of equal ones first."""
    best: npt.NDArray[np.int64] = np.argsort(-probs, kind="stable")[:k]
    return best


class _Csv:
    """id, label, probability, label_2, probability_2, …, and a column for each class where it is asked for."""

    def __init__(self, path: Path, classes: Sequence[str], top_k: int, probabilities: bool) -> None:
        self._classes, self._top_k, self._all = classes, top_k, probabilities
        more = [name for k in range(2, top_k + 1) for name in (f"label_{k}", f"probability_{k}")]
        each = [PROBABILITY + name for name in classes] if probabilities else []
        self._text = _Text(path, ("id", "label", "probability", *more, *each))

    def write(self, name: str, probs: Probabilities) -> None:
        best = top(probs, self._top_k)
        named = [cell for k, text in zip(best, _texts(probs[best]), strict=True) for cell in (self._classes[k], text)]
        self._text.row((name, *named, *(_texts(probs) if self._all else ())))

    def finish(self) -> None:
        """All is written already."""

    def close(self) -> None:
        self._text.close()


class _Submission:
    """The columns, the order and the ids of a sample."""

    def __init__(self, path: Path, sample: Sample, columns: Sequence[int] | None, classes: Sequence[str]) -> None:
        self._ids, self._columns, self._classes = iter(sample.ids), columns, classes
        self._text = _Text(path, sample.header)

    def write(self, name: str, probs: Probabilities) -> None:  # noqa: ARG002  (the sample may spell it otherwise)
        cells = [self._classes[int(probs.argmax())]] if self._columns is None else _texts(probs[list(self._columns)])
        self._text.row((next(self._ids), *cells))

    def finish(self) -> None:
        assert next(self._ids, None) is None, "an id of the sample has no prediction"

    def close(self) -> None:
        self._text.close()


class _Parquet:
    """id, label, probability, and the lists top_labels and top_probabilities, as a served model names them."""

    def __init__(self, path: Path, classes: Sequence[str], top_k: int, probabilities: bool) -> None:
        self._classes, self._top_k, self._all = classes, top_k, probabilities
        fields = [("id", pa.string()), ("label", pa.string()), ("probability", pa.float32())]
        fields += [("top_labels", pa.list_(pa.string())), ("top_probabilities", pa.list_(pa.float32()))]
        fields += [(PROBABILITY + name, pa.float32()) for name in classes] if probabilities else []
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._ids: list[str] = []
        self._best: list[npt.NDArray[np.int64]] = []
        self._probs: list[Probabilities] = []
        self._most = max(1, min(ROW_GROUP, MOST_VALUES // (len(classes) if probabilities else top_k)))

    def write(self, name: str, probs: Probabilities) -> None:
        best = top(probs, self._top_k)
        self._ids.append(name)
        self._best.append(best)
        self._probs.append(probs if self._all else probs[best])
        if len(self._ids) >= self._most:
            self._flush()

    def _flush(self) -> None:
        if not self._ids:
            return
        best, probs = np.stack(self._best), np.stack(self._probs)
        tops = np.take_along_axis(probs, best, axis=1) if self._all else probs
        labels = [[self._classes[k] for k in row] for row in best]
        columns = [self._ids, [row[0] for row in labels], np.ascontiguousarray(tops[:, 0]), labels, list(tops)]
        columns += list(np.ascontiguousarray(probs.T)) if self._all else []
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._ids, self._best, self._probs = [], [], []

    def finish(self) -> None:
        self._flush()

    def close(self) -> None:
        self._writer.close()
