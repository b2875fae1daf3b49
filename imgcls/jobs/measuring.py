"""The run of a job that measures a training without doing it: `lr-find`, `batch-find`, `profile`."""

from pathlib import Path

from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.jobs.record import run_name, training_tags
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
    name = run_name(recipe, prefix=verb.replace("_", "-") + "-")
    return tracking.start(Path(recipe.train.output_dir), name=name, tags=training_tags(verb, prepared))
