"""The contract of a data source: a config class and a function from it to a Manifest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from imgcls.data.balance import Balance
from imgcls.plugins import Registry
from imgcls.sections import Section
from imgcls.tables import Manifest


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

    @model_validator(mode="after")
    def _beta_has_a_use(self) -> Self:
        if self.balance_beta is not None and self.balance != "effective_number":
            raise ValueError(
                f"balance_beta is {self.balance_beta:g} with balance {self.balance!r}; only effective_number uses it. "
                "Set data.balance_beta to null or data.balance to effective_number"
            )
        return self


@dataclass(frozen=True)
class Source:
    """A data source.

    Attributes:
        config: the class of the recipe's `data` section for this source.
        scan: reads what there is, without decoding pixels. Raises UserError for what a user can mend.
    """

    config: type[DataConfig]
    scan: Callable[[Any], Manifest]


SOURCES: Registry[Source] = Registry("data source")


def scan(config: DataConfig) -> Manifest:
    """The manifest of the configured source, rows sorted by id."""
    return SOURCES.get(config.source).scan(config)
