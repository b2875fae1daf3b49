"""Which stages are frozen, and when they thaw: the fields of a recipe against the stages of a network."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from imgcls.errors import UserError
from imgcls.plugins import nearest

ALL = "all"
Depth = Annotated[int, Field(ge=0)] | str
"""Stages frozen, counted from the input; `all` before the head; or the name of the last stage that is frozen."""


def resolve_depth(depth: int | str, stage_names: Sequence[str], *, field: str) -> int:
    """The number of stages that a depth freezes.

    Args:
        depth: a number, `all`, or the name of the last stage that is frozen.
        stage_names: the network's stages from input to head.
        field: the recipe's field, for the error.

    Raises:
        UserError: the network has no such stage, or none would be left to train.
    """
    stages = list(stage_names[:-1])
    if depth == ALL:
        return len(stages)
    if isinstance(depth, int) and 0 <= depth <= len(stages):
        return depth
    if isinstance(depth, str) and depth in stages:
        return stages.index(depth) + 1
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(stages, 1))
    guess = nearest(depth, [*stages, ALL]) if isinstance(depth, str) else None
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise UserError(
        f"{field}: found {depth!r}; expected 0, which trains all, or how many of these stages to freeze, or the name "
        f"of the last of them: {listed} (or all). The {stage_names[-1]}, which comes last, is always trained.{hint}"
    )


def thaw_schedule(
    unfreeze: Mapping[int, int | str], stage_names: Sequence[str], freeze_depth: int | str
) -> dict[int, int]:
    """epoch -> stages frozen from its start on, in the order of the epochs.

    Args:
        unfreeze: the recipe's `train.unfreeze`.
        stage_names: the network's stages from input to head.
        freeze_depth: the recipe's `model.freeze_depth`, or stages frozen before all that.

    Raises:
        UserError: a depth that the network does not have, or one that is not below the depth before it.
    """
    before = resolve_depth(freeze_depth, stage_names, field="model.freeze_depth")
    whence = f"model.freeze_depth is {freeze_depth}"
    schedule = {}
    for epoch in sorted(unfreeze):
        depth = resolve_depth(unfreeze[epoch], stage_names, field=f"train.unfreeze, epoch {epoch}")
        if depth >= before:
            raise UserError(
                f"train.unfreeze, epoch {epoch}: found {unfreeze[epoch]!r}, which freezes {depth} of the stages "
                f"{', '.join(stage_names[:-1])}; expected fewer than {before}, for {whence} and training only thaws. "
                f"Lower it, leave epoch {epoch} out, or raise model.freeze_depth."
            )
        schedule[epoch] = before = depth
        whence = f"{before} are frozen from epoch {epoch} on"
    return schedule


def in_words(stage_names: Sequence[str], depth: int) -> str:
    """The frozen stages, such as `stem to layer3`."""
    frozen = stage_names[:depth]
    return "none" if not frozen else frozen[0] if len(frozen) == 1 else f"{frozen[0]} to {frozen[-1]}"
