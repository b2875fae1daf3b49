"""Several classifiers put together to one that is saved, served and predicted with like each of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.augment import Preprocessing
from imgcls.data.decode import DecodeError, Pixels
from imgcls.errors import UserError
from imgcls.evaluation.ensemble import combine
from imgcls.inference.classifier import SPEC, Classifier, of_images
from imgcls.inference.views import COMBINES, Combine

ENSEMBLE = "ensemble.json"
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ensemble:
    """Classifiers of the same classes, whose probabilities are put together.

    Attributes:
        members: the classifiers, one or more, of the same classes in the same order.
        weights: one a member, 0 or more, of any sum above 0.
        combine: `mean`, weighted, or the class that most of them name (`vote`), of which each counts the same.

    Raises:
        UserError: the classifiers have other classes than each other, or the weights do not fit them or a vote.
    """

    members: tuple[Classifier, ...]
    weights: tuple[float, ...]
    combine: Combine = "mean"

    def __post_init__(self) -> None:
        assert self.members
        first = self.members[0]
        for number, member in enumerate(self.members[1:], 2):
            if member.classes != first.classes:
                more = sorted(set(member.classes) ^ set(first.classes))
                what = f"other classes ({', '.join(more[:3])}{', …' * (len(more) > 3)})" if more else "another order"
                raise UserError(
                    f"model {number} has {what} than the first. Models are put together only when trained on the same "
                    "classes in the same order."
                )
        combine([np.ones((1, 1), np.float32)] * len(self.members), self.weights, how=self.combine)  # may refuse weights

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.members[0].classes

    @property
    def top_k(self) -> int:
        """Classes it names for an image."""
        return self.members[0].top_k

    def save(self, folder: Path) -> None:
        """Write `ensemble.json`, and each member into a folder of its own; none holds code."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"member-{number:02d}" for number in range(1, len(self.members) + 1)]
        for name, member in zip(names, self.members, strict=True):
            member.save(folder / name)
        spec = {"members": names, "weights": self.weights, "combine": self.combine}
        (folder / ENSEMBLE).write_text(json.dumps(spec, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Ensemble":
        """The inverse of `save`.

        Raises:
            UserError: the folder does not hold a saved ensemble.
        """
        try:
            spec: dict[str, Any] = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
            names, weights = [str(name) for name in spec["members"]], tuple(float(w) for w in spec["weights"])
            inside = all(Path(name).name == name for name in names)
            if not names or len(names) != len(weights) or spec["combine"] not in COMBINES or not inside:
                raise ValueError("its members, weights or way of combining are not as they must be")
            how: Combine = spec["combine"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} holds no saved ensemble ({ENSEMBLE}): {type(error).__name__}: {error}"
            ) from error
        return cls(tuple(Classifier.load(folder / name) for name in names), weights, how)

    def combined(self, probs: Sequence[Probabilities]) -> Probabilities:
        """(N, C) of (N, C) of each member."""
        return combine(probs, self.weights, how=self.combine).astype(np.float32)

    def probabilities(self, images: Sequence[bytes | Pixels], *, batch_size: int = 64) -> Probabilities:
        """(N, C) probabilities of N images, each encoded bytes or (H, W[, 3]) uint8 pixels.

        Raises:
            DecodeError: bytes that are not a readable image.
        """
        return self.combined(self._of_each(images, batch_size, past_errors=False)[0])

    def try_probabilities(
        self, images: Sequence[bytes | Pixels], *, batch_size: int = 64
    ) -> tuple[Probabilities, list[DecodeError | None]]:
        """As `probabilities`, but an image that cannot be read spoils its own row only.

        Returns:
            (N, C) probabilities, NaN in the rows that have none, and for each image why it has none, or None.
        """
        each, errors = self._of_each(images, batch_size, past_errors=True)
        good = [row for row, error in enumerate(errors) if error is None]
        probs = np.full((len(images), len(self.classes)), np.nan, np.float32)
        if good:
            probs[good] = self.combined([values[good] for values in each])
        return probs, errors

    def _of_each(
        self, images: Sequence[bytes | Pixels], batch_size: int, *, past_errors: bool
    ) -> tuple[list[Probabilities], list[DecodeError | None]]:
        """As `of_images`, of members whose preprocessing may differ."""
        alike: dict[Preprocessing, list[int]] = {}
        for number, member in enumerate(self.members):
            alike.setdefault(member.preprocessing, []).append(number)
        each: dict[int, Probabilities] = {}
        errors: list[DecodeError | None] = [None] * len(images)
        for numbers in alike.values():
            some = [self.members[number] for number in numbers]
            probs, found = of_images(some, images, batch_size=batch_size, past_errors=past_errors)
            each |= dict(zip(numbers, probs, strict=True))
            errors = [before or new for before, new in zip(errors, found, strict=True)]
        return [each[number] for number in range(len(self.members))], errors


Model = Classifier | Ensemble
"""What predicts: both have `classes`, `top_k`, `save` and `probabilities`."""


def members_of(model: Model) -> tuple[Classifier, ...]:
    """The classifiers in it."""
    return model.members if isinstance(model, Ensemble) else (model,)


def families_of(folder: Path) -> list[str]:
    """The model families of what is saved in a folder, without its weights being read."""
    if not (folder / ENSEMBLE).exists():
        return [json.loads((folder / SPEC).read_text(encoding="utf-8"))["model"]["family"]]
    names = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))["members"]
    return [family for name in names for family in families_of(folder / name)]


def load_model(folder: Path) -> Model:
    """What `Classifier.save` or `Ensemble.save` wrote, on the CPU and in evaluation mode.

    Raises:
        UserError: the folder holds neither.
    """
    return Ensemble.load(folder) if (folder / ENSEMBLE).exists() else Classifier.load(folder)
