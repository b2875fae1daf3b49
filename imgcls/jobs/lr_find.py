"""The verb `lr-find`: a learning-rate range test of a recipe as one MLflow run, with a figure and a suggestion."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from imgcls.data.balance import LOSS_BALANCES
from imgcls.evaluation import plots
from imgcls.jobs.console import Console
from imgcls.jobs.measuring import start_measuring
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.record import before_run, log_data, report_end, within_run
from imgcls.jobs.signals import Signals
from imgcls.recipe import Resolved
from imgcls.tracking.run import TrackedRun
from imgcls.training.lr_find import HIGHEST, LOWEST, STEPS, RangeTest, Suggestion, check_range, range_test, suggest
from imgcls.training.mixing import build_mixing

SHOWS = "the figure and the table"


@dataclass(frozen=True)
class LrFindResult:
    """What a range test gives.

    Attributes:
        test: the loss at each rate.
        suggestion: the rates read from it.
        run_id: the MLflow run.
        unsent: the folder with what the tracking server could not take, or None.
    """

    test: RangeTest
    suggestion: Suggestion
    run_id: str
    unsent: Path | None


def run_lr_find(
    resolved: Resolved,
    console: Console,
    signals: Signals,
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    num_steps: int = STEPS,
) -> LrFindResult:
    """Test the learning rates of a recipe.

    Args:
        resolved: the recipe.
        console: where it is told.
        signals: how the job is asked to end.
        lowest: the first rate.
        highest: the last rate.
        num_steps: steps from one to the other.

    Raises:
        UserError: the recipe cannot be trained, the rates or steps make no test, or the store takes no run.
    """
    with before_run(console):
        check_range(lowest, highest, num_steps)
        prepared = prepare(resolved, console)
        signals.hold()
        recipe = prepared.recipe
        run = start_measuring("lr_find", prepared, console)
    with within_run(run, console, signals, shows=SHOWS):
        about = {"lr_find.lowest": lowest, "lr_find.highest": highest, "lr_find.steps": num_steps}
        run.log_params({**recipe.flat(), **about})
        log_data(run, recipe.data, prepared.manifest, context="lr_find")
        test = _test(prepared, console, signals, lowest=lowest, highest=highest, num_steps=num_steps)
        suggestion = suggest(test)
        _record(run, prepared, test, suggestion)
    end = "the loss diverged" if test.diverged else "the highest rate was reached"
    console.say(
        f"{len(test.lrs)} steps, {test.passes:.1f} passes over the training images; {end} at {test.lrs[-1]:.1e}"
    )
    report_end(run, console, in_words(suggestion), shows=SHOWS)
    return LrFindResult(test, suggestion, run.run_id, run.unsent)


def _test(
    prepared: Prepared, console: Console, signals: Signals, *, lowest: float, highest: float, num_steps: int
) -> RangeTest:
    recipe = prepared.recipe
    with signals.deferred(), prepared.plan.threaded():
        test = range_test(
            prepared.model,
            prepared.train,
            config=recipe.train,
            optim=recipe.optim,
            preprocessing=prepared.preprocessing,
            plan=prepared.plan,
            class_weights=prepared.class_weights if recipe.data.balance in LOSS_BALANCES else None,
            mixing=build_mixing(recipe.augment, num_classes=len(prepared.manifest.classes)),
            lowest=lowest,
            highest=highest,
            num_steps=num_steps,
            stop=signals.stop,
            on_step=lambda step, _lr, _loss: console.count("testing rates", step + 1, num_steps, unit="steps"),
        )
    console.clear()
    signals.raise_if_requested()
    return test


def _record(run: TrackedRun, prepared: Prepared, test: RangeTest, suggestion: Suggestion) -> None:
    """Log each step, the figure and the suggestion."""
    table = pd.DataFrame({"step": np.arange(len(test.lrs)), "lr": test.lrs, "loss": test.losses})
    table["smoothed_loss"] = test.smoothed
    for step, (lr, loss, smoothed) in enumerate(zip(test.lrs, test.losses, test.smoothed, strict=True)):
        run.log_metrics({"lr": lr, "train/loss": loss, "lr_find/smoothed_loss": smoothed}, step=step)
    run.log_text(table.to_csv(index=False), "tables/lr_find.csv")
    if suggestion.lr is not None and suggestion.tenth is not None:
        run.log_metrics({"lr_find/suggestion": suggestion.lr, "lr_find/minimum_tenth": suggestion.tenth})
    recipe = prepared.recipe
    title = f"{recipe.model.family} on {Path(recipe.data.origin).name}: {recipe.optim.optimizer}, batches of "
    figure = plots.range_test(
        test.lrs,
        test.losses,
        test.smoothed,
        lr=suggestion.lr,
        tenth=suggestion.tenth,
        title=f"{title}{recipe.train.batch_size}",
    )
    plots.save(figure, run.file("plots/lr_find.png"))
    run.log_file("plots/lr_find.png")


def in_words(suggestion: Suggestion) -> str:
    """What to do with the suggestion."""
    if suggestion.lr is None:
        return f"no suggestion: {suggestion.reason}"
    return (
        f"suggestion: --optim.lr {suggestion.lr:.2g} (the steepest descent; a tenth of the rate with the lowest loss "
        f"is {suggestion.tenth:.2g})"
    )
