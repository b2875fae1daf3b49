"""What an evaluation is asked: the options of `evaluate`, and which of them go together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.inference.views import COMBINES, KINDS, Combine, Kind
from imgcls.jobs.evaluation_data import PARTS, Part

Weighing = Literal["equal", "fit", "greedy"]
WEIGHINGS: tuple[Weighing, ...] = get_args(Weighing)


@dataclass(frozen=True)
class Question:
    """What is to be evaluated, and how.

    Attributes:
        models: run ids, runs:/…, models:/… or folders; several are put together.
        split: the images; None: those for the test, or all of data without splits.
        tta: views of each image.
        tta_views: which views.
        combine: how the views, and several models, are put together.
        weights: of several models: equal, or fitted on the validation images (to the least log loss, or by greedy
            selection after Caruana et al. 2004).
        explain: draw where the model looked in so many of its surest mistakes, 0 to 32.
        output: a folder that gets copies of all that is logged.
    """

    models: tuple[str, ...]
    split: Part | None = None
    tta: int = 1
    tta_views: Kind = "crops"
    combine: Combine = "mean"
    weights: Weighing = "equal"
    explain: int = 0
    output: Path | None = None


def check_question(question: Question) -> None:
    """Refuse options that are unknown, or that say nothing, or nothing together.

    Raises:
        UserError: which, and what to do.
    """
    for option, value, known in (
        ("split", question.split, (None, *PARTS)),
        ("tta_views", question.tta_views, KINDS),
        ("combine", question.combine, COMBINES),
        ("weights", question.weights, WEIGHINGS),
    ):
        if value not in known:
            expected = ", ".join(name for name in known if name is not None)
            raise UserError(f"found {value!r} for {option}; expected one of {expected}.")
    if not question.models:
        raise UserError("found no model; expected --model with a run id, models:/<name>@<alias> or a folder.")
    if not 0 <= question.explain <= plots.MOST_HEAT_MAPS:
        raise UserError(f"found {question.explain} mistakes to explain; expected 0 to {plots.MOST_HEAT_MAPS}.")
    is_one = len(question.models) == 1
    if question.tta == 1 and question.tta_views != "crops":
        raise UserError(
            f"--tta-views {question.tta_views} says which views of an image are looked at, but there is one. Give "
            "--tta 2 or more, or leave it out."
        )
    if question.tta == 1 and is_one and question.combine != "mean":
        raise UserError(
            f"--combine {question.combine} says how views and models are put together, but there is one view and one "
            "model. Give --tta 2 or more, or several models, or leave it out."
        )
    if question.weights == "equal":
        return
    if is_one or question.combine == "vote":
        why = "there is one model" if is_one else "votes count the same"
        raise UserError(f"--weights is {question.weights}, but {why}. Leave it out.")
    if question.split in ("val", "all"):
        raise UserError(
            f"--weights {question.weights} fits them on the validation images, which --split {question.split} would "
            "report as if they were new to the weights. Take --split test, or --weights equal."
        )
