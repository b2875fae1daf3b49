"""The verb `evaluate`: a model, or several put together, held against labelled images, in a run of its own."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pandas as pd

from imgcls.data.decode import Pixels, decode, shrink, to_channels
from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.evaluation.confidence import mistakes
from imgcls.evaluation.ensemble import average, fit_weights, greedy, vote
from imgcls.inference.ensemble import Ensemble, members_of
from imgcls.inference.views import Combine, Views
from imgcls.jobs.console import Console
from imgcls.jobs.evaluate_log import Evaluation, describe, evaluate_predictions, log_evaluation
from imgcls.jobs.evaluate_question import Question, check_question
from imgcls.jobs.evaluation_data import (
    Subject,
    find_subject,
    num_of,
    predict_images,
    read_image,
    trained_on,
)
from imgcls.jobs.open_model import Opened, open_model, open_views
from imgcls.jobs.record import before_run, common_tags, log_data, report_end, within_run
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.test_reading import count_read
from imgcls.jobs.train_log import log_split
from imgcls.recipe import Recipe, Resolved
from imgcls.tables import Manifest, Predictions
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.store import first_line
from imgcls.training.plan import PlanConfig, resolve_device

SHOWS = "the figures, tables and plots"
MOST_PRINTED = ("acc", "balanced_acc", "f1", "auc", "ap", "mcc", "loss", "brier", "ece")
GALLERY_SIDE = 256


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation gives.

    Attributes:
        run_id: the MLflow run.
        experiment_id: its experiment.
        tracking_uri: the store it is in.
        predictions: of each image.
        evaluation: the figures and their 95 % intervals.
        weights: of each model, where there are several.
        reads: how often the test set has been read, this time included; None where no test image was.
        unsent: a folder with what the tracking server could not take, or None where all is complete.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str
    predictions: Predictions
    evaluation: Evaluation
    weights: tuple[float, ...]
    reads: int | None
    unsent: Path | None


def evaluate(
    model: str | Sequence[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    quiet: bool = False,
    **options: Any,
) -> EvaluateResult:
    """Hold a model against labelled images, and log figures with intervals, tables and plots.

    Args:
        model: a run id, runs:/<id>, models:/<name>@<alias>, models:/<name>/<version> or a folder; several are put
            together to an ensemble, which is logged as the run's model.
        overrides: dotted field names to values: of `data` and `evaluate`, such as data.root, train.device, and
            train.output_dir, where the run's work folder is made.
        texts: the same with values as typed on a command line, read as YAML.
        quiet: print nothing.
        options: those of `Question`: split, tta, tta_views, combine, weights, explain, output.

    Raises:
        UserError: there is no such model, or the images or their classes do not fit it.
        KeyboardInterrupt: Ctrl-C; the run is KILLED.
    """
    names = (model,) if isinstance(model, str) else tuple(model)
    try:
        with Signals() as signals:
            return run_evaluate(
                Question(names, **options), Console(quiet=quiet), signals, texts=texts, overrides=overrides
            )
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


@dataclass(frozen=True)
class _Task:
    question: Question
    models: list[Opened]
    views: list[Views]
    subject: Subject
    device: str
    top_k: int
    trained: set[str]
    seen: int

    @property
    def families(self) -> list[str]:
        return [member.config.family for opened in self.models for member in members_of(opened.model)]

    @property
    def name(self) -> str:
        unique = list(dict.fromkeys(self.families))
        return unique[0] if len(self.families) == 1 else f"{len(self.families)} models ({', '.join(unique[:3])})"


def run_evaluate(
    question: Question,
    console: Console,
    signals: Signals,
    *,
    texts: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> EvaluateResult:
    """`evaluate` with its surroundings given."""
    with before_run(console):
        task = _prepare(question, console, texts, overrides)
        signals.hold()
        run = _start(task)
    with within_run(run, console, signals, shows=SHOWS):
        reads, predictions, weights = _predict(run, task, console)
        evaluation = evaluate_predictions(predictions, top_k=task.top_k)
        if len(task.models) > 1 and task.subject.is_own:
            _log_ensemble(run, task, weights)
        elif len(task.models) > 1:
            console.say("note: the ensemble is logged as a model only when evaluated on the data that it was made from")
        _log(run, task, predictions, evaluation, weights, console)
        run.describe("\n".join([f"{', '.join(question.models)} on", "```", _headline(evaluation, predictions), "```"]))
        if question.output is not None:
            _copy(run, question.output, console)
    report_end(run, console, _headline(evaluation, predictions), shows=SHOWS)
    return EvaluateResult(
        run.run_id, run.experiment_id, run.store.uri, predictions, evaluation, weights, reads, run.unsent
    )


def _prepare(
    question: Question,
    console: Console,
    texts: Mapping[str, str] | None,
    overrides: Mapping[str, Any] | None,
) -> _Task:
    check_question(question)
    models = [open_model(source, console) for source in question.models]
    members = tuple(member for opened in models for member in members_of(opened.model))
    Ensemble(members, (1.0,) * len(members))  # raises where classes differ
    _check_nested(models, question.combine)
    views = open_views(question.tta, question.tta_views, question.combine, models)
    subject = find_subject(models, console, texts=texts, overrides=overrides, part=question.split)
    if not (subject.manifest.labels >= 0).any():
        raise UserError(
            f"none of the {len(subject.manifest):,} images in {subject.recipe.data.origin} has a label, so there is "
            "nothing to hold the model against. Use imgcls predict for them."
        )
    trained = trained_on(models)
    if question.weights != "equal":
        _check_validation(trained, subject)
    seen = num_of(trained, subject.manifest)
    if seen and subject.part != "train":
        share = seen / len(subject.manifest)
        console.say(
            f"note: {seen:,} of the {len(subject.manifest):,} images ({share:.0%}) were trained on, by their bytes; "
            "the figures are too good for what they say of new images"
        )
    recipe = subject.recipe
    device = resolve_device(recipe.train.device, PlanConfig())  # its training may have had another machine
    if question.output is not None:
        _make(question.output)
    top_k = min(recipe.evaluate.top_k, len(models[0].model.classes))
    return _Task(question, models, views, subject, device, top_k, trained, seen)


def _check_nested(models: Sequence[Opened], how: Combine) -> None:
    """Ensembles among several models become one with their members, which a vote cannot be made of."""
    for opened in models if len(models) > 1 else ():
        if isinstance(opened.model, Ensemble) and "vote" in (how, opened.model.combine):
            raise UserError(
                f"the model {opened.address} is an ensemble itself, and a vote does not give the same with its members "
                "as with their own result. Give its members one by one (--model for each), or models that are none."
            )


def _make(folder: Path) -> None:
    """Make the folder of the copies, so that it is not found at the end that nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"--output {str(folder)!r} cannot be written: {why}. Give another folder, or mend its rights."
        ) from error


def _copy(run: TrackedRun, folder: Path, console: Console) -> None:
    """Copies of all that was logged; the run has it whether they can be made or not."""
    try:
        shutil.copytree(run.folder / "artifacts", folder, dirs_exist_ok=True)
    except OSError as error:
        console.say(f"note: not all copies could be made in {folder}: {first_line(error)}; the run has it all")
    else:
        console.say(f"copies are in {folder}")


def _check_validation(trained: set[str], subject: Subject) -> None:
    """Whether weights can be fitted on validation images that no model was trained on."""
    if not subject.is_own or not subject.whole.counts()["val"]:
        raise UserError(
            "weights are fitted on the validation images of the data that the models were made from, and there "
            "are none. Take --weights equal, or evaluate without another data.root."
        )
    if seen := num_of(trained, subject.of("val")):
        raise UserError(
            f"weights cannot be fitted: {seen:,} of the validation images were trained on by one of the models, which "
            "would be preferred for it. Give models with one split (data.split_from), or take --weights equal."
        )


def _start(task: _Task) -> TrackedRun:
    recipe, manifest = task.subject.recipe, task.subject.whole
    first = task.models[0]
    tags = common_tags("evaluate", Resolved(recipe, "evaluate"), manifest)
    tags |= {
        "imgcls.family": ", ".join(dict.fromkeys(task.families)),
        "imgcls.model": ", ".join(opened.address for opened in task.models),
    }
    if first.run_id is not None:
        tags["imgcls.model_run"] = ", ".join(opened.run_id or "" for opened in task.models)
    name = f"evaluate-{task.name}-{Path(recipe.data.origin).name}-{task.subject.split}"
    return tracking.start(Path(recipe.train.output_dir), name=name, tags=tags)


def _predict(run: TrackedRun, task: _Task, console: Console) -> tuple[int | None, Predictions, tuple[float, ...]]:
    """How often the test set has been read, what the models say together, and the weight of each."""
    subject, question = task.subject, task.question
    manifest = subject.manifest
    log_data(run, subject.recipe.data, manifest, context="evaluation")
    run.link_models([opened.model_id for opened in task.models if opened.model_id])
    each_val = []
    if question.weights != "equal":
        each_val = [_of(opened, subject.of("val"), task, k, "val", console) for k, opened in enumerate(task.models)]
    reads = None
    if subject.split == "test":
        reads = count_read(run, manifest.with_splits(["test"] * len(manifest)), console)
    elif subject.part == "all" and manifest.counts()["test"]:  # the test images among its own
        reads = count_read(run, manifest, console)
    each = [_of(opened, manifest, task, k, subject.split, console) for k, opened in enumerate(task.models)]
    if len(each) == 1:
        return reads, each[0], (1.0,)
    if question.combine == "vote":
        return reads, vote(each), (1.0,) * len(each)
    if question.weights == "equal":
        found = np.full(len(each), 1 / len(each))
    else:
        found = fit_weights(each_val) if question.weights == "fit" else greedy(each_val)
    weights = tuple(float(weight) for weight in found)
    named = ", ".join(f"{opened.address} {weight:.3f}" for opened, weight in zip(task.models, weights, strict=True))
    console.say(f"weights ({question.weights}): {named}")
    return reads, average(each, weights), weights


def _of(opened: Opened, manifest: Manifest, task: _Task, number: int, split: str, console: Console) -> Predictions:
    return predict_images(opened, manifest, console, split=split, views=task.views[number], device=task.device)


def _log_ensemble(run: TrackedRun, task: _Task, weights: tuple[float, ...]) -> None:
    """The models as one, with what its own evaluations and promotion ask of the run that made it."""
    members, shares = list[Any](), list[float]()
    for opened, weight in zip(task.models, weights, strict=True):
        inner = opened.model.weights if isinstance(opened.model, Ensemble) else (1.0,)
        for member, share in zip(members_of(opened.model), inner, strict=True):
            if weight * share > 0:
                members.append(member)
                shares.append(weight * share / sum(inner))
    ensemble = Ensemble(tuple(members), tuple(shares), task.question.combine)
    ensemble.save(run.folder / "classifier")
    run.log_text(_recipe_text(run, task.subject.recipe), "recipe.yaml")
    whole = task.subject.whole
    pairs = zip(whole.frame["content"], whole.frame["split"], strict=True)
    log_split(run, whole.with_splits(["train" if content in task.trained else split for content, split in pairs]))
    run.log_model("classifier", top_k=ensemble.top_k)


def _recipe_text(run: TrackedRun, recipe: Recipe) -> str:
    return f"# The data and settings of the ensemble of the MLflow run {run.run_id}.\n{recipe.to_yaml()}"


def _log(
    run: TrackedRun,
    task: _Task,
    predictions: Predictions,
    evaluation: Evaluation,
    weights: tuple[float, ...],
    console: Console,
) -> None:
    question, subject = task.question, task.subject
    about = {
        "model": ", ".join(opened.address for opened in task.models),
        "data": f"{subject.recipe.data.origin} ({subject.part}, {len(subject.manifest):,} images)",
        "views": f"{question.tta} ({question.tta_views}, {question.combine})" if question.tta > 1 else "1",
    }
    run.log_params(
        {
            "evaluate.model": about["model"], "evaluate.split": subject.part,
            "evaluate.data": subject.recipe.data.origin, "evaluate.tta": question.tta,
            "evaluate.tta_views": question.tta_views, "evaluate.combine": question.combine,
            "evaluate.weights": question.weights, "evaluate.top_k": task.top_k,
        }
    )  # fmt: skip
    if len(task.models) > 1:
        table = pd.DataFrame({"model": [opened.address for opened in task.models], "weight": weights})
        run.log_text(table.to_csv(index=False), "tables/members.csv")
        about["weights"] = ", ".join(f"{weight:.3f}" for weight in weights)
    if task.seen:
        about["trained on"] = f"{task.seen:,} of the images"
    own = len(task.models) > 1
    figures = evaluation.metrics(subject.split)
    figures |= {"evaluate/images": len(predictions.ids), "evaluate/trained_on": task.seen}
    data = {"name": Path(subject.recipe.data.origin).name, "digest": subject.manifest.digest}
    model_id = None if own else task.models[0].model_id
    # As a model's own figures only those of what is served, which looks at an image once.
    if question.tta == 1 and (model_id or (own and subject.is_own)):
        run.log_model_metrics(figures, model_id=model_id, dataset=data)
    else:
        run.log_metrics(figures)
    places = {name: row for row, name in enumerate(subject.manifest.ids)}
    log_evaluation(
        run, predictions, evaluation, console, name=task.name, about=about,
        pixels=lambda name: _pixels(subject.manifest, places[name]),
    )  # fmt: skip
    if question.explain:
        _explain(run, task, task.models[int(np.argmax(weights))], predictions, places, console)


def _explain(
    run: TrackedRun, task: _Task, opened: Opened, predictions: Predictions, places: Mapping[str, int], console: Console
) -> None:
    """Log where a model looked in the surest mistakes."""
    from imgcls.jobs.explain import explained_mistakes  # captum takes a second, which few ask for

    manifest, split = task.subject.manifest, task.subject.split
    rows = mistakes(predictions, task.question.explain, by="confidence").to_dict("records")
    items = [(read_image(manifest, places[row["id"]]), row["label"], row["predicted"]) for row in rows]
    try:
        figure = explained_mistakes(opened.model, items, title=f"{task.name}, {split}: what spoke for its mistakes")
    except UserError as error:  # a network without a map; all figures are logged by now
        console.say(f"note: no mistakes are explained: {error}")
        return
    plots.save(figure, run.file(f"plots/explained_mistakes_{split}.png"))
    run.log_file(f"plots/explained_mistakes_{split}.png")


def _pixels(manifest: Manifest, row: int) -> Pixels:
    """An image as a gallery shows it."""
    image = read_image(manifest, row)
    if isinstance(image, bytes):
        return decode(image, channels=3, short_side=GALLERY_SIDE)
    return shrink(to_channels(image, 3), GALLERY_SIDE)


def _headline(evaluation: Evaluation, predictions: Predictions) -> str:
    """The figures that are told, one a line."""
    lines = [f"{predictions.split}: {len(predictions.ids):,} images of {len(predictions.classes):,} classes"]
    printed = [name for name in evaluation.figures if name in MOST_PRINTED or name.startswith("top")]
    for name in printed:
        low, high = evaluation.intervals[name]
        lines.append(f"  {name:<13}{evaluation.figures[name]:>8.4f}  ({low:.4f} to {high:.4f})  {describe(name)}")
    return "\n".join(lines)
