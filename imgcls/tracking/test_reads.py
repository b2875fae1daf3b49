"""How often a test set has been read: what was chosen after seeing its figure has seen a little of it itself.

Every run that reads a test set carries its digest (see `tables.split_digest`) as a tag, which is set before the read:
one that is broken off half-way has read it, too.
"""

from contextlib import suppress
from typing import Any

from imgcls.tracking.run import TrackedRun

TAG = "imgcls.test_digest"
_PAGE = 1000


def register_read(run: TrackedRun, digest: str) -> int | None:
    """Record that the run is about to read the test set; how often it has been read, this time included.

    Counted are the runs with its tag in all experiments of the store, deleted ones too, for what they told is known. A
    run counts once, however often it reads. None where the store does not answer; the read is recorded then as soon as
    it does.

    Args:
        run: the run.
        digest: what tells the test set from others.
    """
    run.set_tags({TAG: digest})
    with suppress(Exception):  # whatever the store raises: the figures are worth more than the number of their reads
        return len({*_readers(run.store.client, digest), run.run_id})
    return None


def in_words(reads: int | None) -> str:
    """What a user is told of the number."""
    if reads is None:
        return "how often this test set has been read could not be counted: the tracking store does not answer"
    if reads == 1:
        return "this test set was read for the first time"
    before = "once" if reads == 2 else "twice" if reads == 3 else f"{reads - 1} times"
    return (
        f"this test set has been read {before} before; its figure is a little optimistic for what was chosen after "
        "seeing it"
    )


def _readers(client: Any, digest: str) -> set[str]:
    """The ids of the runs that have read it."""
    from mlflow.entities import ViewType

    experiments, token = list[str](), None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, max_results=_PAGE, page_token=token)
        experiments += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            break
    found: set[str] = set()
    for begin in range(0, len(experiments), 100):  # a database has a limit to what one query may list
        while True:
            runs = client.search_runs(
                experiments[begin : begin + 100],
                filter_string=f"tags.`{TAG}` = '{digest}'",
                run_view_type=ViewType.ALL,
                max_results=_PAGE,
                page_token=token,
            )
            found |= {run.info.run_id for run in runs}
            token = runs.token
            if not token:
                break
    return found
