"""`python -m imgcls.jobs.rank FOLDER`: one of the processes that `jobs.launch` starts. Errors are left there."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from imgcls.jobs.console import Console
from imgcls.jobs.launch import Handover, Task, end_with_launcher
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.train import run_training
from imgcls.tracking.run import TrackedRun

APART = ("module", "classifier")
"""What of a result is handed over as a classifier's files."""


def main(folder: Path) -> NoReturn:
    """Train as the task in the folder says, as one of several processes."""
    between, rank = Handover(folder), int(os.environ["RANK"])
    code = 1
    try:
        with Signals(ends_process=True, quiet=True) as signals:
            (folder / f"here-{os.getpid()}").touch()
            task: Task = between.take("task")
            end_with_launcher(task.launcher)
            if task.mlflow_run_id is not None:  # only now, for it is the launcher that watches `mlflow run`
                os.environ["MLFLOW_RUN_ID"] = task.mlflow_run_id

            def on_run(run: TrackedRun) -> None:
                between.give("run", (run.run_id, run.folder))

            console = Console(quiet=task.quiet or rank > 0)
            result = run_training(task.resolved, console, signals, resumption=task.resumption, on_run=on_run)
            result.classifier.save(folder / "classifier")
            between.give("result", {name: value for name, value in vars(result).items() if name not in APART})
            code = 0
    except Stopped as stopped:
        code = 128 + stopped.signum
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        between.tell_failure(rank, error)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    # What torch does at the end of a process may wait for processes that are gone.
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
