"""Whether the outputs of frozen stages are kept, and of how many variations of each training image."""

from dataclasses import dataclass
from typing import Literal

import torch

from imgcls.data.cache import size_text
from imgcls.errors import UserError
from imgcls.models.family import StagedModel

EPOCHS_PER_VIEW, FEWEST_VIEWS, MOST_VIEWS = 10, 2, 10
"""auto: so many epochs share a view where images are varied; so many views there are at least and at most. At most half
as many as epochs, though, or little would be saved."""
MOST_PER_PIXEL = 4
"""auto: bytes kept for each byte of an image's pixels, at most. Beyond, reading costs about what computing does: what
the first stages of a convolutional network give is larger than the image."""


@dataclass(frozen=True)
class Situation:
    """What the choice depends on.

    Attributes:
        model: with its first stages frozen.
        epochs: epochs of the training, or before the first thaw.
        varied: whether an epoch may show an image in another way than the one before.
        mixes: whether images of a batch are mixed with each other.
        output_bytes: what the frozen stages give of an image.
        image_bytes: the pixels of an image at the network's size.
        num_train, num_val: images.
        budget: bytes that may be kept.
    """

    model: StagedModel
    epochs: int
    varied: bool
    mixes: bool
    output_bytes: int
    image_bytes: int
    num_train: int
    num_val: int
    budget: int

    def num_bytes(self, num_views: int) -> int:
        """What that many views take, with the validation images."""
        return (num_views * self.num_train + self.num_val) * self.output_bytes

    @property
    def most_views(self) -> int:
        """Views that fit into the budget."""
        return max(0, (self.budget - self.num_bytes(0)) // (self.num_train * self.output_bytes))


@dataclass(frozen=True)
class Choice:
    """How many views are kept, 0 for none, and a line for the user where that needs an explanation."""

    num_views: int
    note: str = ""


def choose_views(asked: int | Literal["auto", "off"], situation: Situation) -> Choice:
    """The choice for `train.cache_features`.

    Raises:
        UserError: a number of views that cannot be kept.
    """
    if asked == "off":
        return Choice(0)
    return _automatic(situation) if asked == "auto" else _as_asked(asked, situation)


def _automatic(at: Situation) -> Choice:
    if at.model.freeze_depth == 0 or at.mixes or at.epochs < 2 or (at.varied and not at.model.only_head_trained):
        return Choice(0)
    last = at.model.stage_names[at.model.freeze_depth - 1]
    again = "so the frozen stages are computed in every epoch"
    if at.output_bytes > MOST_PER_PIXEL * at.image_bytes:
        each = f"{size_text(at.output_bytes)} an image, more than {MOST_PER_PIXEL} times its pixels"
        return Choice(0, f"what {last} gives takes {each}, {again}; a number of train.cache_features keeps it")
    views = min(max(at.epochs // EPOCHS_PER_VIEW, FEWEST_VIEWS), MOST_VIEWS, at.epochs // 2) if at.varied else 1
    if at.most_views == 0:
        return Choice(0, f"what {last} gives takes {size_text(at.num_bytes(1))}, more than data.store_budget, {again}")
    return Choice(min(views, at.most_views))


def _as_asked(asked: int, at: Situation) -> Choice:
    found = f"train.cache_features is {asked}"
    if at.model.freeze_depth == 0:
        raise UserError(
            f"{found}, but no stage is frozen. Set model.freeze_depth to the stages whose outputs are to be kept, or "
            "train.cache_features to auto."
        )
    if at.mixes:
        raise UserError(
            f"{found}, but mixup and cutmix mix the images of each batch before the frozen stages see them, so there "
            "is nothing to keep. Set augment.mixup and augment.cutmix to 0, or train.cache_features to off."
        )
    views = min(asked, at.epochs) if at.varied else 1
    if views > at.most_views:
        most = f"lower train.cache_features to {at.most_views} or less" if at.most_views else "set it to off"
        raise UserError(
            f"{found}: {views} view{'s' * (views > 1)} of {at.num_train:,} images, and {at.num_val:,} of validation, "
            f"take {size_text(at.num_bytes(views))} at {size_text(at.output_bytes)} an image; expected at most "
            f"{size_text(at.budget)}, which is data.store_budget. Raise that, or {most}."
        )
    return Choice(views)


def output_bytes(model: StagedModel, precision: str, *, channels: int, image_size: int) -> int:
    """Bytes of what the frozen stages of a model on the CPU give of one image, in a precision of `Plan`."""
    # Either half precision gives as many bytes.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "fp32"):
        outputs = model.frozen_outputs(torch.zeros(1, channels, image_size, image_size))
    return outputs.numel() * outputs.element_size()
