"""From images as a request brings them to a row each: label, probability, the top k, or why there are none."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imgcls.data.decode import DecodeError, Pixels


class Model(Protocol):
    """What answers need of a model: a classifier has it, and an ensemble of them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns of its probabilities."""

    @property
    def top_k(self) -> int:
        """Classes it names for an image."""

    def try_probabilities(
        self, images: Sequence[bytes | Pixels], *, batch_size: int = 64
    ) -> tuple[npt.NDArray[np.float32], list[DecodeError | None]]:
        """(N, C) probabilities, and for each image why its row has none, or None."""


@dataclass
class Labels:
    """A table with a row an image; in the order of its columns.

    Attributes:
        label: the likeliest class; None where there is an error.
        probability: its probability, 0..1; None where there is an error.
        top_labels: the model's top k classes by falling probability; empty where there is an error.
        top_probabilities: their probabilities; empty where there is an error.
        error: why the image has no label; None where it has one.
    """

    label: list[str | None] = field(default_factory=list)
    probability: list[float | None] = field(default_factory=list)
    top_labels: list[list[str]] = field(default_factory=list)
    top_probabilities: list[list[float]] = field(default_factory=list)
    error: list[str | None] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as plain values; JSON has them with null for None, and never NaN."""
        return [dict(zip(vars(self), values, strict=True)) for values in zip(*vars(self).values(), strict=True)]


def label_images(model: Model, cells: Sequence[Any], *, batch_size: int = 64) -> Labels:
    """Label images as they come; whatever one of them is, the others get their rows.

    Args:
        model: the classifier.
        cells: each encoded bytes (JPEG, PNG, …), their base64 text, or (H, W), (H, W, 1) or (H, W, 3) pixels from 0
            to 255, as an array or as nested lists.
        batch_size: images that the network computes at once.
    """
    errors: dict[int, str] = {}
    images: dict[int, bytes | Pixels] = {}
    for row, cell in enumerate(cells):
        try:
            images[row] = image_of(cell)
        except DecodeError as error:
            errors[row] = str(error)
    probs = np.full((len(cells), len(model.classes)), np.nan, np.float32)
    if images:
        rows = list(images)
        probs[rows], found = model.try_probabilities(list(images.values()), batch_size=batch_size)
        errors |= {row: str(error) for row, error in zip(rows, found, strict=True) if error is not None}
    return _labels(model, probs, errors)


def _labels(model: Model, probs: npt.NDArray[np.float32], errors: dict[int, str]) -> Labels:
    """The table of (N, C) probabilities and the errors by row."""
    table = Labels()
    tops = np.argsort(-probs, axis=1, kind="stable")[:, : model.top_k]
    for row, top in enumerate(tops):
        values = [float(value) for value in probs[row, top]]
        error = errors.get(row)
        if error is None and not np.isfinite(probs[row]).all():
            error = "the network's output for it is not a finite number; the model may be damaged"
        table.error.append(error)
        table.label.append(None if error else model.classes[top[0]])
        table.probability.append(None if error else values[0])
        table.top_labels.append([] if error else [model.classes[k] for k in top])
        table.top_probabilities.append([] if error else values)
    return table


def image_of(cell: Any) -> bytes | Pixels:
    """A cell of a table as encoded bytes or as (H, W), (H, W, 1) or (H, W, 3) uint8 pixels.

    Raises:
        DecodeError: it is neither, nor base64 text.
    """
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, str):
        try:  # `base64` wraps its lines, as MLflow's own JSON does
            return base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DecodeError(f"an image given as text must be base64, but: {error}") from error
    try:
        pixels = np.asarray(cell)
    except ValueError as error:
        raise DecodeError(f"an image's rows of pixels must be of one length, but: {error}") from error
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)) or pixels.size == 0:
        raise DecodeError(
            "an image must be base64 text of a JPEG, PNG, … or pixels of the shape (H, W), (H, W, 1) or (H, W, 3), "
            f"found {f'the shape {pixels.shape}' if pixels.ndim else type(cell).__name__}"
        )
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.integer) or pixels.min() < 0 or pixels.max() > 255:
            raise DecodeError(f"an image's pixels must be integers from 0 to 255, found {pixels.dtype} values")
        pixels = pixels.astype(np.uint8)
    return pixels
