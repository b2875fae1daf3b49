"""The contract of a data source: a config class and a function from it to a Manifest."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from imgcls.data.balance import Balance
from imgcls.data.classes import CLASSES_SCHEMA, Classes, read_classes, select_classes
from imgcls.data.names import absolute
from imgcls.plugins import Registry
from imgcls.sections import Section
from imgcls.tables import Manifest

_RUN_ID = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


def parse_fold(text: str) -> tuple[int, int]:
    """(i, k) of "i of k" or "i/k".

    Raises:
        ValueError: it is neither, k is below 2, or i is not one of 1 to k.
    """
    found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:of|/)\s*([0-9]{1,6})\s*", text)
    if found is None:
        raise ValueError("expected a fold as i of k or i/k, such as 2 of 5")
    number, count = int(found[1]), int(found[2])
    if count < 2:
        raise ValueError(f"expected at least two folds, found {count}")
    if not 1 <= number <= count:
        raise ValueError(f"expected a fold from 1 to {count}, found {number}")
    return number, count


class DataConfig(Section):
    """The fields that every data source has."""

    source: str = "digits"
    """Where the images come from: the name of a data source."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of each class's images held out for validation, where the source has no validation split."""
    test_fraction: float = Field(0.15, ge=0, lt=1)
    """Share of each class's images held out for the final test, where the source has no split at all."""
    split_seed: int = Field(0, ge=0)
    """Seed of the split. The same images and seed give the same split on any machine."""
    fold: str | None = None
    """k-fold cross-validation: "2 of 5" (or 2/5) validates on the second of five folds and trains on the others. The
    test split is that of no folds; the rest, a validation split of the source included, is dealt into the folds, class
    by class, and val_fraction does not count. The folds of one split_seed have every such image in val exactly once."""
    split_from: str | None = Field(None, min_length=1)
    """Take the split of a table, such as another run's tables/split.csv, instead of the source's own and of the
    fractions: a CSV or Parquet file with the columns split, content and/or id, and perhaps label; or the id of an
    MLflow run, also as runs:/<id>. Every image must be in it, by content or else by id. Where it gives no val, that is
    taken from its train by val_fraction. A relative path is taken from the current directory."""
    tiny_classes: Literal["error", "train"] = "error"
    """A class with fewer different images than splits (or folds) to fill: error; or train, where its images go to train
    first, then val, then test, one each. With folds, one image stays in train, more are in val in one fold each. With
    groups, train keeps the last group of a class."""
    classes: Annotated[Classes | None, WithJsonSchema(CLASSES_SCHEMA)] = None
    """Only some classes: [cat, dog] leaves all others out; {pet: [cat, dog], other: fish} renames and merges, and
    leaves out what it does not name. Their order does not count: kept classes stay in the source's order, renamed ones
    are sorted (as text, integers by value). null: all."""
    channels: Literal[1, 3] = 3
    """Channels that the network sees: 1 grey, 3 colour. Images are converted."""
    balance: Balance = "none"
    """What makes up for classes of different sizes: none; oversample (training images are drawn so that every class is
    drawn equally often); class_weights (the loss counts a class inversely to its size); effective_number (less so for
    small classes: Cui et al. 2019, arXiv:1901.05555). Validation is never balanced."""
    balance_beta: Annotated[float, Field(ge=0, lt=1)] | None = None
    """effective_number only: beta, 0.999 where null; 0 weighs all classes alike, towards 1 inversely to their size."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be read: error stops before there is a run; skip leaves it out, counts it and lists it in
    the run's tables/skipped.jsonl."""
    check: Literal["off", "quick", "full"] = "quick"
    """What every training looks for first and tells: quick reads the images' headers (damaged files, copies, leakage
    between splits, imbalance); full decodes and compares all images besides; off looks for nothing."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where training and validation images lie and are varied. cuda: all of them in the memory of the GPU that trains,
    which is for small images of one size and no other variation than crops of padded images and flips."""
    num_workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that augment batches; 0 does it in the training process. auto: beside a GPU one less than there are
    cores, 8 at most; on a CPU none up to 15 cores, then one for every 8, 4 at most."""
    prefetch: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    """Batches that each of these processes makes ahead. auto: 2, or 1 where shared memory is short."""
    store_budget: float = Field(20.0, ge=0)
    """GiB of decoded images kept on disk, in all: those used least recently make room, and 2 GiB of the disk stay free.
    What does not fit is decoded anew in every epoch, as all is with 0. `imgcls data cache` lists what is kept."""

    @property
    def origin(self) -> str:
        """What the images come from, as a user would call it: a folder, a file, the name of a data set."""
        return self.source

    @field_validator("classes", mode="before")
    @classmethod
    def _read_classes(cls, classes: object) -> Classes | None:
        return read_classes(classes)

    @field_validator("fold")
    @classmethod
    def _canonical_fold(cls, fold: str | None) -> str | None:
        return None if fold is None else "{} of {}".format(*parse_fold(fold))

    @field_validator("split_from")
    @classmethod
    def _run_or_file(cls, split_from: str | None) -> str | None:
        if split_from is None:
            return None
        run = _RUN_ID.fullmatch(split_from)
        if run is None and split_from.startswith("runs:/"):
            raise ValueError("expected runs:/ and a run id of 32 hexadecimal digits")
        return absolute(split_from) if run is None else run[1]

    @property
    def split_run(self) -> str | None:
        """The MLflow run whose split is to be taken; None where data.split_from is a file or nothing."""
        return self.split_from if self.split_from and _RUN_ID.fullmatch(self.split_from) else None

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.fold is not None and self.split_from is not None:
            raise ValueError(
                f"fold is {self.fold!r} and split_from is {self.split_from!r}, but each gives a split. Set data.fold "
                "or data.split_from to null"
            )
        return self

    @model_validator(mode="after")
    def _beta_has_a_use(self) -> Self:
        if self.balance_beta is not None and self.balance != "effective_number":
            raise ValueError(
                f"balance_beta is {self.balance_beta:g} with balance {self.balance!r}; only effective_number uses it. "
                "Set data.balance_beta to null or data.balance to effective_number"
            )
        return self


class ScanProgress(Protocol):
    """Told how far a source is with what takes long, such as unpacking an archive."""

    def __call__(self, what: str, done: int, total: int, *, unit: str = "images") -> None: ...


def silent(what: str, done: int, total: int, *, unit: str = "images") -> None:
    """A progress that nobody looks at."""


@dataclass(frozen=True)
class Source:
    """A data source.

    Attributes:
        config: the class of the recipe's `data` section for this source.
        scan: reads what there is, without decoding pixels. Raises UserError for what a user can mend.
    """

    config: type[DataConfig]
    scan: Callable[[Any, ScanProgress], Manifest]


SOURCES: Registry[Source] = Registry("data source")


def scan(config: DataConfig, *, progress: ScanProgress = silent) -> Manifest:
    """The manifest of the configured source, rows sorted by id, with the classes that `data.classes` asks for.

    Raises:
        UserError: what a user can mend in the data, or a class in `data.classes` that the data do not have.
    """
    return select_classes(SOURCES.get(config.source).scan(config, progress), config.classes)
