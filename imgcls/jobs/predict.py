"""The verb `predict`: a model's labels and probabilities for images without labels, as a table or a submission."""

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imgcls
from imgcls.data.names import absolute
from imgcls.errors import UserError
from imgcls.evaluation.submission import Sample, columns_of, read_sample, rows_of
from imgcls.inference.ensemble import members_of
from imgcls.inference.stream import Seen, stream
from imgcls.inference.views import COMBINES, KINDS, Combine, Kind, Views
from imgcls.jobs.console import Console
from imgcls.jobs.open_model import Opened, open_model, open_views
from imgcls.jobs.predict_inputs import Inputs, TableOptions, find_inputs
from imgcls.jobs.predict_output import CSV, PARQUET, Output
from imgcls.jobs.record import before_run, report_end, within_run
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.surroundings import git_commit
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.training.plan import Device, PlanConfig, resolve_device

SHOWS = "the predictions"
MOST_LOGGED_BYTES = 50 * 10**6
"""A larger output is not copied to the run, which then only says where it was written."""
OUTPUT, SUBMISSION = Path("predictions.csv"), Path("submission.csv")
NAMED = 3
"""Images that an error names."""


@dataclass(frozen=True)
class PredictResult:
    """What a prediction gives.

    Attributes:
        output: the file with the predictions.
        num_images: images in it.
        num_unreadable: images that could not be read, and are not in it.
        unreadable: the list of those; None where there are none.
        images_per_s: images a second, from the first one's reading to the last one's writing.
        run_id: the MLflow run; None without one.
        unsent: a folder with what the tracking server could not take, or None where all is complete.
    """

    output: Path
    num_images: int
    num_unreadable: int
    unreadable: Path | None
    images_per_s: float
    run_id: str | None
    unsent: Path | None

    @property
    def is_complete(self) -> bool:
        """Whether every image was read and the tracking server took everything."""
        return not self.num_unreadable and self.unsent is None


def predict(inputs: Sequence[str | Path] | str | Path, *, quiet: bool = False, **options: Any) -> PredictResult:
    """Label images with a trained model, and write what it says of them to a file.

    Args:
        inputs: a folder, an archive of one, a CSV or Parquet table of paths, or image files.
        quiet: print nothing.
        **options: those of `run_predict`, of which `model` must be given.

    Raises:
        UserError: as `run_predict`. Nothing is written then, but perhaps the list of images that cannot be read.
        KeyboardInterrupt: Ctrl-C; the run is KILLED, and nothing is written unless it was complete already.
    """
    words = [str(inputs)] if isinstance(inputs, str | Path) else [str(word) for word in inputs]
    try:
        with Signals() as signals:
            return run_predict(words, Console(quiet=quiet), signals, **options)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


@dataclass(frozen=True)
class _Task:
    """What is to be done.

    Attributes:
        opened: the model.
        views: what it looks at of each image.
        device: where it is computed.
        inputs: the images.
        order: rows of the inputs, in the order in which they are predicted.
        output: where to.
        sample: the submission's sample, if one is to be written.
        params: what the run says of it.
    """

    opened: Opened
    views: Views
    device: str
    inputs: Inputs
    order: Sequence[int]
    output: Output
    sample: Sample | None
    params: dict[str, Any]


def run_predict(
    inputs: Sequence[str],
    console: Console,
    signals: Signals,
    *,
    model: str,
    output: Path | None = None,
    submission: Path | None = None,
    tta: int = 1,
    tta_views: Kind = "crops",
    combine: Combine = "mean",
    top_k: int | None = None,
    probabilities: bool = False,
    device: Device = "auto",
    batch_size: int = 64,
    table: TableOptions | None = None,
    tracked: bool = True,
) -> PredictResult:
    """`predict` with its surroundings given.

    Args:
        inputs: as `find_inputs` takes them.
        console: where it is told.
        signals: how the job is asked to end.
        model: as `open_model` takes it.
        output: a file ending in .csv or .parquet; None: predictions.csv, or submission.csv.
        submission: a sample submission; the output gets exactly its columns, ids and order.
        tta: views of each image that are put together, 1 or more.
        tta_views: crops, flips, or the random variations of the training (train).
        combine: the mean of the views' probabilities, or the share of the views that name a class (vote).
        top_k: classes named for an image; None: as many as the model names, at most all.
        probabilities: write the probability of every class, too.
        device: where to compute.
        batch_size: images that are computed together, of all views, 1 or more.
        table: how a table of paths is read.
        tracked: make an MLflow run of it.

    Raises:
        UserError: there is no such model or no image, the sample's ids are not those of the images, one of them
            cannot be read, options that do not go together, or the output or the store cannot be written.
    """
    with ExitStack() as stack:
        with before_run(console):
            _check(tta, tta_views, combine, batch_size, submission, top_k, probabilities)
            path = _output_path(output, submission)
            found = find_inputs(inputs, table=table, progress=console.count)
            _tell_skipped(found, console)
            sample = None if submission is None else read_sample(Path(absolute(str(submission))))
            order = range(len(found.ids)) if sample is None else rows_of(sample, found.ids).tolist()
            where = _device(device)
            opened = open_model(model, console)
            views = open_views(tta, tta_views, combine, [opened])[0]
            classes = opened.model.classes
            writer = Output(
                path,
                classes,
                top_k=_top_k(top_k, opened),
                probabilities=probabilities,
                sample=sample,
                columns=None if sample is None else columns_of(sample, classes),
            )
            _keep_inputs(writer, inputs, submission)
            params = {"model": model, "inputs": " ".join(inputs), "tta": tta, "tta_views": tta_views}
            params |= {"combine": combine, "output": str(path), "device": where}
            task = _Task(opened, views, where, found, order, stack.enter_context(writer), sample, params)
            if tracked:
                signals.hold()
                run = _start(task)
        if not tracked:
            with before_run(console):
                result = _predict(task, console, signals, batch_size, None)
            console.say(_headline(result))
            return result
        with within_run(run, console, signals, shows=SHOWS), closing(writer):
            run.log_params({f"predict.{name}": value for name, value in params.items()})
            result = _predict(task, console, signals, batch_size, run)
    report_end(run, console, _headline(result), shows=SHOWS)
    return replace(result, unsent=run.unsent)


# --- before the run


def _check(
    tta: int, kind: str, combine: str, batch_size: int, submission: Path | None, top_k: int | None, each: bool
) -> None:
    """Refuse options that say nothing, or nothing together."""
    if kind not in KINDS or combine not in COMBINES:
        raise UserError(
            f"found --tta-views {kind} and --combine {combine}; expected one of {', '.join(KINDS)}, and one of "
            f"{', '.join(COMBINES)}."
        )
    if tta == 1 and (kind, combine) != ("crops", "mean"):
        raise UserError(
            f"--tta-views {kind} and --combine {combine} say what to do with several views of an image, but there is "
            "one. Give --tta 2 or more, or leave them out."
        )
    if batch_size < 1:
        raise UserError(f"found a batch size of {batch_size}; expected 1 or more.")
    if submission is not None and (top_k is not None or each):
        what = "--probabilities" if each else "--top-k"
        raise UserError(
            f"{what} says what columns are written, but a submission has those of its sample. Leave it out."
        )


def _output_path(output: Path | None, submission: Path | None) -> Path:
    try:
        path = Path(absolute(str(output or (OUTPUT if submission is None else SUBMISSION))))
    except ValueError as error:
        raise UserError(f"found --output {output}: {error}.") from error
    endings = CSV if submission is not None else CSV | PARQUET
    if path.suffix.casefold() not in endings:
        what = "submission" if submission is not None else "output"
        raise UserError(f"found the {what} {path.name!r}; expected a file ending in {' or '.join(sorted(endings))}.")
    return path


def _keep_inputs(output: Output, inputs: Sequence[str], submission: Path | None) -> None:
    """An error where the output, or the list of what cannot be read, would replace or remove what is read."""
    for read in (*inputs, *([] if submission is None else [str(submission)])):
        where = Path(absolute(read)).resolve()
        if where == output.path.resolve():
            raise UserError(f"the output {output.path} is what is read; give another file (--output).")
        if where == output.unreadable.resolve():
            raise UserError(
                f"{output.unreadable} is what is read, but is to list the images that cannot be read, beside the "
                f"output {output.path}; give another file (--output), or rename it."
            )


def _tell_skipped(inputs: Inputs, console: Console) -> None:
    console.say(f"{len(inputs.ids):,} image{'s' * (len(inputs.ids) != 1)} in {inputs.origin}")
    if inputs.skipped:
        first = inputs.skipped[0]
        console.say(f"note: {len(inputs.skipped):,} passed over, the first is {first.path} ({first.reason})")


def _device(device: Device) -> str:
    try:
        return resolve_device(device, PlanConfig())
    except UserError as error:
        raise UserError(
            str(error).replace("train.device is", "--device is").replace("train.device", "--device")
        ) from error


def _top_k(asked: int | None, opened: Opened) -> int:
    most = len(opened.model.classes)
    if asked is not None and not 1 <= asked <= most:
        raise UserError(f"found --top-k {asked}; expected 1 to {most:,}, the model's number of classes.")
    return min(asked or opened.model.top_k, most)


def _start(task: _Task) -> TrackedRun:
    tags = {"imgcls.verb": "predict", "imgcls.version": imgcls.__version__, "imgcls.model": task.opened.address}
    families = dict.fromkeys(member.config.family for member in members_of(task.opened.model))
    tags["imgcls.family"] = ", ".join(families)
    commit = git_commit()
    name = f"predict-{Path(task.inputs.origin).name}-{secrets.token_hex(2)}"
    # Beside the output, where it is known by now that something can be written.
    folder = task.output.path.parent / "outputs"
    return tracking.start(folder, name=name, tags=tags if commit is None else {**tags, "imgcls.git_commit": commit})


# --- in it


def _predict(task: _Task, console: Console, signals: Signals, batch_size: int, run: TrackedRun | None) -> PredictResult:
    """Write what the model says of each image; the files come first, and what is logged of them after."""
    output, total, unreadable = task.output, len(task.order), list[str]()
    begin = time.monotonic()
    seen = stream(
        task.opened.model, task.inputs.items(task.order), views=task.views, device=task.device, batch_size=batch_size
    )
    with closing(seen):
        for one in _counted(seen, console, total):
            if one.probs is None:
                output.refuse(one.name, one.error)
                unreadable += [one.name] if len(unreadable) < NAMED else []
            elif task.sample is None or not output.num_unreadable:
                output.write(one.name, one.probs)
    speed = total / max(time.monotonic() - begin, 1e-9)
    refused = task.sample is not None and output.num_unreadable > 0
    with signals.shielded():
        output.commit(only_unreadable=refused)
    bad = output.num_unreadable
    if run is not None:
        _log(run, output, total, speed, refused=refused, console=console)
    if refused:
        more = ", …" if bad > NAMED else ""
        raise UserError(
            f"no submission is written: {bad:,} of its {total:,} images cannot be read "
            f"({', '.join(map(repr, unreadable))}{more}). They are listed with the reasons in {output.unreadable}; "
            "mend or replace them and run again."
        )
    return PredictResult(
        output=output.path,
        num_images=total - bad,
        num_unreadable=bad,
        unreadable=output.unreadable if bad else None,
        images_per_s=speed,
        run_id=None if run is None else run.run_id,
        unsent=None,
    )


def _counted(seen: Iterator[Seen], console: Console, total: int) -> Iterator[Seen]:
    for done, one in enumerate(seen, 1):
        yield one
        console.count("predicting", done, total)


def _log(run: TrackedRun, output: Output, total: int, speed: float, *, refused: bool, console: Console) -> None:
    bad = output.num_unreadable
    run.log_metrics({"predict/images": total - bad, "predict/unreadable": bad, "predict/images_per_s": speed})
    files = [] if refused else [(output.path, f"predictions/{output.path.name}")]
    files += [(output.unreadable, "predictions/unreadable.csv")] if bad else []
    for path, artifact in files:
        size = path.stat().st_size
        if size > MOST_LOGGED_BYTES:
            console.say(f"note: {path.name} has {size / 1e6:,.0f} MB and is not copied to the run")
            continue
        try:
            shutil.copyfile(path, run.file(artifact))
        except OSError as error:  # the predictions are there, which is what counts
            console.say(f"note: {path.name} is not copied to the run: {error.strerror}")
            continue
        run.log_file(artifact)


def _headline(result: PredictResult) -> str:
    images = f"{result.num_images:,} image{'s' * (result.num_images != 1)}"
    text = f"{images} predicted, {result.images_per_s:,.1f} a second: {result.output}"
    if result.num_unreadable:
        text += f"\n{result.num_unreadable:,} could not be read, and are listed in {result.unreadable}"
    return text
