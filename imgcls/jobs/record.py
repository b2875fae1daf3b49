"""What every verb that makes a run writes and says in the same way."""

import secrets
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imgcls
from imgcls.data.source import DataConfig
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.surroundings import git_commit
from imgcls.recipe import Recipe, Resolved
from imgcls.tables import Manifest
from imgcls.tracking.run import Status, TrackedRun, fail_attached_run


def common_tags(verb: str, resolved: Resolved, manifest: Manifest) -> dict[str, str]:
    """The tags that every run has: its verb, and what it was about."""
    tags = {
        "imgcls.verb": verb,
        "imgcls.version": imgcls.__version__,
        "imgcls.recipe": resolved.name,
        "imgcls.data_digest": manifest.digest,
    }
    commit = git_commit()
    return tags if commit is None else {**tags, "imgcls.git_commit": commit}


def training_tags(verb: str, prepared: Prepared) -> dict[str, str]:
    """`common_tags` and those of a network and how it is computed."""
    about = {"imgcls.family": prepared.recipe.model.family, "imgcls.plan": str(prepared.plan)}
    if prepared.weights is not None:
        about["imgcls.weights"] = prepared.weights.name
    return {**about, **common_tags(verb, prepared.resolved, prepared.manifest)}


def run_name(recipe: Recipe, *, prefix: str = "") -> str:
    """Family and data, and letters that tell runs of both apart; MLflow's own names say nothing."""
    return f"{prefix}{recipe.model.family}-{Path(recipe.data.origin).name}-{secrets.token_hex(2)}"


def log_data(run: TrackedRun, config: DataConfig, manifest: Manifest, *, context: str) -> None:
    """Record the data set as what the run read."""
    profile = {"num_images": len(manifest), "num_classes": len(manifest.classes), **manifest.counts()}
    source = config.origin
    run.log_dataset(name=Path(source).name, digest=manifest.digest, source=source, profile=profile, context=context)


@contextmanager
def before_run(console: Console) -> Iterator[None]:
    """A context for what a job does before it has a run, where an error ends the run that `mlflow run` made for it."""
    try:
        yield
    except Exception as error:
        console.clear()
        fail_attached_run(reason_of(error))
        raise
    except Stopped:
        console.clear()
        raise


@contextmanager
def within_run(
    run: TrackedRun,
    console: Console,
    signals: Signals,
    *,
    shows: str,
    child: bool = False,
    rescue: Callable[[], None] = lambda: None,
    can_resume: Callable[[], bool] = lambda: False,
    ends_as: Callable[[], tuple[Status, str | None]] = lambda: ("FINISHED", None),
) -> Iterator[None]:
    """A context for what a job does in its run, which is made while `signals.hold()` is in force; it ends the run.

    At the context's end the run is FINISHED. A stop leaves it KILLED and an error FAILED, which is told; both go on.

    Args:
        run: the run.
        console: where to tell it.
        signals: how the job is asked to end.
        shows: what there is to see of the run.
        child: the job goes on after the run, within another that tells its end: a signal that comes while the run is
            being closed ends the job right after that.
        rescue: called before a broken run is ended, to log what there is of it.
        can_resume: whether a stopped run can be gone on with, asked before it is ended.
        ends_as: the status and the reason at the context's end, where that is not a plain success.
    """
    run.shield = signals.shielded
    close = signals.hold if child else signals.finishing
    try:
        signals.release()
        yield
        close()
        run.finish(*ends_as())
    except Stopped as stopped:
        close()
        console.clear()
        rescue()
        resumable = can_resume()
        run.finish("KILLED", str(stopped))
        if child:
            report_unsent(run, console)
        else:
            report_end(run, console, f"{stopped}; the run is KILLED", shows=shows, resumable=resumable)
        raise
    except Exception as error:
        close()
        console.clear()
        rescue()
        run.finish("FAILED", reason_of(error))
        if child:
            report_unsent(run, console)
        else:
            report_end(run, console, "the run is FAILED", shows=shows)
        raise
    if child:
        report_unsent(run, console)
        signals.release()


def reason_of(error: Exception) -> str:
    """What a run's tag says of the end."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def report_end(run: TrackedRun, console: Console, headline: str, *, shows: str, resumable: bool = False) -> None:
    """Say how the job ended, where its run is, and what waits to be sent.

    Args:
        run: the run, finished.
        console: where to say it.
        headline: how it ended.
        shows: what there is to see of the run.
        resumable: whether it can be gone on with.
    """
    console.say(headline)
    console.say(f"run {run.where}")
    if run.unsent is None and resumable:
        console.say(f"next: imgcls train --resume {run.run_id}    (goes on where it stopped)")
    elif run.unsent is None:
        console.say(f"next: imgcls ui    ({shows} of this run, beside other runs)")
    else:
        report_unsent(run, console)


def report_unsent(run: TrackedRun, console: Console) -> None:
    """Say where what could not be sent of a finished run waits, if anything."""
    if run.unsent is not None and not run.lost:
        console.say(
            f"{run.num_unsent} writes could not be sent to {run.store.uri}; they wait in {run.folder}. When the server "
            f"answers again: imgcls upload {shlex.quote(str(run.folder))}"
        )
