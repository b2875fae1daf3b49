"""The verb `models`: which families there are, and what a network of one is made of."""

from collections.abc import Mapping, Sequence

import torch

from imgcls import recipe as recipes
from imgcls.errors import UserError
from imgcls.evaluation.markdown import aligned
from imgcls.models.describe import describe, size_mb
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel, build, num_parameters
from imgcls.models.freezing import in_words
from imgcls.plugins import nearest

NUM_CLASSES, IMAGE_SIZE, CHANNELS = 1000, 224, 3
"""ImageNet's, at which the figures in the papers are."""


def list_families(text: str = "") -> str:
    """A table of the model families with `text` in their name, each with its fields' defaults.

    Raises:
        UserError: there is none.
    """
    names = [name for name in FAMILIES.names() if text.casefold() in name.casefold()]
    if not names:
        guess = nearest(text, FAMILIES.names())
        hint = f" Did you mean {guess!r}?" if guess else " Leave it out to see all."
        raise UserError(f"no model family has {text!r} in its name.{hint}")
    rows = [("family", "parameters", "MB", "weights")]
    for name in names:
        count, weights = _size(name)
        size = ("-", "-") if count is None else (f"{count:,}", f"{4 * count / 1e6:,.1f}")
        rows.append((name, *size, ", ".join(weights) or "-"))
    note = f"With {NUM_CLASSES:,} classes and the fields' defaults. One of them in full: imgcls models describe NAME\n"
    return aligned(rows, left=(0, 3)) + note


def describe_family(
    name: str | None, texts: Mapping[str, str], *, image_size: int, num_classes: int, in_channels: int
) -> str:
    """A table of the stages of a network, and its totals.

    Args:
        name: of the family.
        texts: fields of the recipe's `model` section as they were typed, by dotted name.
        image_size: pixels on each side of the image.
        num_classes: width of the head's output.
        in_channels: 1 or 3.

    Raises:
        UserError: no name, an unknown one, or a field or value that the family does not have.
    """
    if name is None:
        raise UserError(f"which network? Expected one of: {', '.join(FAMILIES.names())}.")
    foreign = [field for field in texts if not field.startswith("model.") or field == "model.family"]
    if foreign:
        raise UserError(f"--{foreign[0]} is no field of a network; expected NAME and fields such as --model.dropout.")
    config = recipes.resolve({"model": {"family": name}}, texts=texts).recipe.model
    model = _built(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    table = describe(model, image_size=image_size, in_channels=in_channels)
    header = ("stage", "output", "parameters", "trained", "MACs", "receptive field")
    rows = [header, *(_cells(row) for row in table.itertuples(index=False))]
    total = table[["parameters", "trainable", "macs"]].sum()
    rows.append(("total", "", *(f"{value:,}" for value in total), ""))
    frozen = in_words(model.stage_names, model.freeze_depth)
    return aligned(rows, left=(0, 1)) + (
        f"{name}, {size_mb(model):,.1f} MB, for {in_channels}x{image_size}x{image_size} and {num_classes:,} classes; "
        f"frozen: {frozen}.\nMACs: multiply-accumulates for one image. Receptive field: pixels, with the gates of "
        "squeeze-and-excitation held constant.\n"
    )


def _built(config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:
    """The network without memory for its weights; with it where a family computes while it builds."""
    try:
        with torch.device("meta"):
            return build(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    except NotImplementedError:  # torch's: there are no numbers in its memory, and regnet's widths are computed
        return build(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def _size(name: str) -> tuple[int | None, list[str]]:
    """The parameters of a family's network, and torchvision's names of its pretrained weights.

    Those of torchvision's networks are counted there: to build all of them takes a minute. Where the name stands for
    many networks, there is no count.
    """
    from torchvision.models import get_model_weights, list_models

    if name in list_models():
        known = list(get_model_weights(name))
        return int(known[0].meta["num_params"]), [weights.name for weights in known]
    if "<" in name:
        return None, []
    config = FAMILIES.get(name).config(family=name)
    return num_parameters(_built(config, num_classes=NUM_CLASSES, in_channels=CHANNELS, image_size=IMAGE_SIZE))[0], []


def _cells(row: Sequence[object]) -> tuple[str, ...]:
    return tuple(f"{value:,}" if isinstance(value, int) else str(value) for value in row)
