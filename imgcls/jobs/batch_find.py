"""The verb `batch-find`: how fast batches of each size train and how many images fit, as one MLflow run."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.measuring import start_measuring
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.record import before_run, log_data, report_end, within_run
from imgcls.jobs.signals import Signals
from imgcls.recipe import Resolved
from imgcls.tracking.run import TrackedRun
from imgcls.training.batch_find import Found, Tried, measurer, memory_free, search

SHOWS = "the table"
MIB = 2**20


@dataclass(frozen=True)
class BatchFindResult:
    """What a search gives.

    Attributes:
        found: the sizes that were tried, and what follows.
        run_id: the MLflow run.
        unsent: the folder with what the tracking server could not take, or None.
    """

    found: Found
    run_id: str
    unsent: Path | None


def run_batch_find(
    resolved: Resolved, console: Console, signals: Signals, *, most: int, seconds: float, refine: bool
) -> BatchFindResult:
    """Find the largest and the fastest batch of a recipe.

    Args:
        resolved: the recipe.
        console: where it is told.
        signals: how the job is asked to end.
        most: the largest size to try; more than there are training images is not tried.
        seconds: no larger size is begun that would end later than this.
        refine: look between powers of two as well.

    Raises:
        UserError: the recipe cannot be trained, or the store takes no run.
    """
    with before_run(console):
        prepared = prepare(resolved, console)
        most = min(most, prepared.train.num_images)
        if most < 2:
            raise UserError(f"there are too few training images ({most}); expected two or more.")
        signals.hold()
        recipe = prepared.recipe
        run = start_measuring("batch_find", prepared, console)
    with within_run(run, console, signals, shows=SHOWS):
        run.log_params(recipe.flat())
        log_data(run, recipe.data, prepared.manifest, context="batch_find")
        found = _search(run, prepared, console, signals, most=most, seconds=seconds, refine=refine)
        _record(run, found)
    console.say(_ended(found))
    report_end(run, console, in_words(found, recipe.train.batch_size), shows=SHOWS)
    return BatchFindResult(found, run.run_id, run.unsent)


def _search(
    run: TrackedRun,
    prepared: Prepared,
    console: Console,
    signals: Signals,
    *,
    most: int,
    seconds: float,
    refine: bool,
) -> Found:
    recipe, device = prepared.recipe, prepared.plan.device
    console.say("batch size   images/s   memory")

    def on_tried(tried: Tried) -> None:
        console.say(_line(tried))
        if tried.images_per_s is not None and tried.memory is not None:
            figures = {"batch_find/images_per_s": tried.images_per_s, "batch_find/memory_mib": tried.memory / MIB}
            run.log_metrics(figures, step=tried.batch_size)

    with signals.deferred(), prepared.plan.threaded():
        found = search(
            measurer(
                prepared.model,
                next(iter(prepared.train.epoch(1))),
                config=recipe.train,
                optim=recipe.optim,
                preprocessing=prepared.preprocessing,
                plan=prepared.plan,
            ),
            memory_free=memory_free(device),
            most=most,
            seconds=seconds,
            refine=refine,
            predicts=device == "cpu",
            stop=signals.stop,
            on_tried=on_tried,
        )
    signals.raise_if_requested()
    return found


def _line(tried: Tried) -> str:
    if tried.images_per_s is None or tried.memory is None:
        return f"{tried.batch_size:>10,}   out of memory"
    return f"{tried.batch_size:>10,} {tried.images_per_s:>10,.0f}   {tried.memory / MIB:,.0f} MiB"


def _record(run: TrackedRun, found: Found) -> None:
    table = pd.DataFrame([asdict(tried) for tried in found.tried])
    run.log_text(table.to_csv(index=False), "tables/batch_find.csv")
    figures = {"batch_find/largest": found.largest, "batch_find/fastest": found.fastest}
    run.log_metrics({name: value for name, value in figures.items() if value is not None})


def _ended(found: Found) -> str:
    return f"ended: {found.ended}; {found.memory_free / MIB:,.0f} MiB may be taken"


def in_words(found: Found, batch_size: int) -> str:
    """What to do with what was found; `batch_size` is the recipe's."""
    if found.largest is None or found.fastest is None:
        return (
            f"no suggestion: not even {found.tried[0].batch_size} images fit. Lower augment.image_size, or take a "
            "smaller network."
        )
    text = f"suggestion: --train.batch_size {found.fastest} (the fastest); memory holds {found.largest:,}"
    if found.fastest == batch_size:
        return text
    return (
        f"{text}. Another batch size wants another rate: optim.lr in proportion (arXiv:1706.02677), or as imgcls "
        "lr-find has it"
    )
