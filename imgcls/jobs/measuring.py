"""The run of a job that measures a training without doing it: `lr-find`, `batch-find`, `profile`."""

import secrets
from pathlib import Path

from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.jobs.record import common_tags
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun


def start_measuring(verb: str, prepared: Prepared, console: Console) -> TrackedRun:
    """A new run of such a job, named after the verb, the network and the data.

    Raises:
        UserError: the store takes no run.
    """
    recipe = prepared.recipe
    if recipe.train.processes not in (1, "auto"):
        console.say(
            f"note: train.processes is {recipe.train.processes}, but this measures one process with whole batches"
        )
    about = f"{recipe.model.family}-{Path(recipe.data.origin).name}"
    name = f"{verb.replace('_', '-')}-{about}-{secrets.token_hex(2)}"
    tags = {"imgcls.family": recipe.model.family, "imgcls.plan": str(prepared.plan)}
    tags |= common_tags(verb, prepared.resolved, prepared.manifest)
    return tracking.start(Path(recipe.train.output_dir), name=name, tags=tags)
