"""What every verb that makes a run writes and says in the same way."""

import shlex
from pathlib import Path

import imgcls
from imgcls.data.source import DataConfig
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.surroundings import git_commit
from imgcls.recipe import Resolved
from imgcls.tables import Manifest
from imgcls.tracking.run import TrackedRun


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


def log_data(run: TrackedRun, config: DataConfig, manifest: Manifest, *, context: str) -> None:
    """Record the data set as what the run read."""
    profile = {"num_images": len(manifest), "num_classes": len(manifest.classes), **manifest.counts()}
    source = config.origin
    run.log_dataset(name=Path(source).name, digest=manifest.digest, source=source, profile=profile, context=context)


def reason_of(error: Exception) -> str:
    """What a run's tag says of the end."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def report_end(
    run: TrackedRun, console: Console, complete: bool, headline: str, *, shows: str = "curves, tables and the model"
) -> None:
    """Say how the job ended, where its run is, and what waits to be sent.

    Args:
        run: the run, finished.
        console: where to say it.
        complete: all of it is in the store.
        headline: how it ended.
        shows: what there is to see of the run.
    """
    console.say(headline)
    console.say(f"run {run.where}")
    if complete:
        console.say(f"next: imgcls ui    ({shows} of this run, beside other runs)")
    elif not run.lost:
        console.say(
            f"{run.num_unsent} writes could not be sent to {run.store.uri}; they wait in {run.folder}. When the server "
            f"answers again: imgcls upload {shlex.quote(str(run.folder))}"
        )
