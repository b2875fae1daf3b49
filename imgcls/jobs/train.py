"""The verb `train`: from a recipe to a complete MLflow run with a model in it."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imgcls.data.balance import LOSS_BALANCES
from imgcls.evaluation import plots
from imgcls.evaluation.metrics import confusion_matrix, per_class_table, summary
from imgcls.inference.classifier import Classifier
from imgcls.inference.predict import predict
from imgcls.jobs import data_preview
from imgcls.jobs.console import Console
from imgcls.jobs.features import open_features
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.record import before_run, common_tags, log_data, report_end, within_run
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.surroundings import environment
from imgcls.models.family import StagedModel, num_parameters
from imgcls.models.freezing import in_words
from imgcls.recipe import Recipe, Resolved, resolve
from imgcls.tables import History, Predictions, Row
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import BEST, LAST, best_row, fit
from imgcls.training.mixing import build_mixing

SHOWS = "curves, tables and the model"


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Attributes:
        run_id: the MLflow run.
        experiment_id: its experiment.
        tracking_uri: the store it is in.
        history: one row an epoch.
        predictions: of the best epoch's weights on the validation split.
        module: the network with the best epoch's weights, on the CPU, in evaluation mode.
        classifier: the network with its preprocessing and class names.
        recipe: the resolved recipe.
        unsent: the folder with what the tracking server could not take, or None where the run is complete.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str
    history: History
    predictions: Predictions
    module: StagedModel
    classifier: Classifier
    recipe: Recipe
    unsent: Path | None


def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a classifier as one MLflow run.

    Args:
        recipe: a recipe file, a built-in recipe's name, or sections as a mapping; None is `folder` where
            `data.root`, `data.table` or `data.parquet` is overridden and `digits` elsewhere.
        overrides: dotted field names to values, such as {"optim.lr": 0.01}.
        texts: the same with values as typed on a command line, read as YAML.
        quiet: print nothing.

    Raises:
        UserError: the recipe, the data, the device, the output folder or the tracking store is not as it must be; no
            run is made then. Or the training diverged; the run is FAILED then.
        KeyboardInterrupt: Ctrl-C; the run is KILLED, with its last checkpoint. (The command line gets `Stopped`.)
    """
    try:
        with Signals() as signals:
            return run_training(resolve(recipe, overrides, texts=texts), Console(quiet=quiet), signals)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


def run_training(resolved: Resolved, console: Console, signals: Signals) -> TrainResult:
    """`train` with its surroundings given."""
    with before_run(console):
        prepared = prepare(resolved, console)
        signals.hold()
        run = tracking.start(Path(prepared.recipe.train.output_dir), name=_run_name(prepared), tags=_tags(prepared))
    with (
        within_run(run, console, signals, shows=SHOWS, rescue=lambda: _log_checkpoints(run)),
        tracking.system_metrics(run),
    ):
        _describe(run, prepared)
        history = _train(run, prepared, console, signals)
        predictions, classifier = _conclude(run, prepared, history, console)
    result = TrainResult(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        tracking_uri=run.store.uri,
        history=history,
        predictions=predictions,
        module=classifier.module,
        classifier=classifier,
        recipe=prepared.recipe,
        unsent=run.unsent,
    )
    best = best_row(history, prepared.recipe.train.monitor)
    report_end(
        run,
        console,
        f"best epoch {best['epoch']:.0f}: val acc {best['val/acc']:.4f}, f1 {best['val/f1']:.4f}",
        shows=SHOWS,
    )
    return result


def _describe(run: TrackedRun, prepared: Prepared) -> None:
    """Log what is known before the first epoch."""
    recipe, manifest = prepared.recipe, prepared.manifest
    run.log_params(recipe.flat())
    run.log_text(
        f"# The resolved recipe of the MLflow run {run.run_id}.\n# Repeat it with: imgcls train recipe.yaml\n"
        + recipe.to_yaml(),
        "recipe.yaml",
    )
    run.log_text(environment(), "environment.txt")
    log_data(run, recipe.data, manifest, context="training")
    columns = ["id", "label", "split", "group", "content"]
    table = manifest.frame[columns].assign(label=[manifest.classes[k] for k in manifest.labels])
    run.log_text(table.to_csv(index=False), "tables/split.csv")
    if recipe.data.balance != "none":
        counts = np.bincount(manifest.part("train").labels, minlength=len(manifest.classes))
        weights = {"class": manifest.classes, "train_images": counts, "weight": prepared.class_weights}
        run.log_text(pd.DataFrame(weights).to_csv(index=False), "tables/class_weights.csv")
    if manifest.skipped:
        lines = [json.dumps({"path": item.path, "reason": item.reason}) for item in manifest.skipped]
        run.log_text("\n".join(lines) + "\n", "tables/skipped.jsonl")
    data_preview.draw(recipe, manifest, run.file("plots/augmentation.png"))
    run.log_file("plots/augmentation.png")
    if manifest.notices:
        run.log_text("\n".join(manifest.notices) + "\n", "tables/notices.txt")
    if prepared.weights is not None:
        table = pd.DataFrame([asdict(row) for row in prepared.weights.rows])
        table["shape"] = ["x".join(str(side) for side in row.shape) for row in prepared.weights.rows]
        run.log_text(table.to_csv(index=False), "tables/weights.csv")
    if prepared.report is not None:
        run.log_text(json.dumps(prepared.report.to_dict(), ensure_ascii=False), "tables/data_check.json")
    table = prepared.architecture
    run.log_text(table.to_csv(index=False), "tables/model.csv")
    run.log_metrics(
        {
            "model/parameters": int(table["parameters"].sum()),
            "model/trainable_parameters": int(table["trainable"].sum()),
            "model/macs": int(table["macs"].sum()),
        }
    )


def _train(run: TrackedRun, prepared: Prepared, console: Console, signals: Signals) -> History:
    recipe, epochs = prepared.recipe, prepared.recipe.train.epochs
    checkpoints = run.file(f"checkpoints/{LAST}").parent
    history = History()
    source = open_features(prepared, console)
    if source.about:
        run.set_tags({"imgcls.features": source.about})

    def on_thaw(epoch: int) -> None:
        total, trained = num_parameters(prepared.model)
        run.log_metrics({"model/trainable_parameters": trained}, step=epoch)
        console.say(
            f"epoch {epoch}: now {trained:,} of {total:,} parameters are trained; stages frozen: "
            f"{in_words(prepared.model.stage_names, prepared.model.freeze_depth)}"
            f"{'; from here on all stages are computed in every epoch' if source.about else ''}"
        )

    console.begin_training()
    with signals.deferred():
        for row in fit(
            prepared.model,
            source.train,
            source.val,
            config=recipe.train,
            optim=recipe.optim,
            preprocessing=prepared.preprocessing,
            plan=prepared.plan,
            checkpoints=checkpoints,
            class_weights=prepared.class_weights if recipe.data.balance in LOSS_BALANCES else None,
            mixing=build_mixing(recipe.augment, num_classes=len(prepared.manifest.classes)),
            stop=signals.stop,
            on_step=lambda step: console.step(step, epochs=epochs),
            on_thaw=on_thaw,
        ):
            history.rows.append(row)
            run.log_metrics(_metrics(row), step=int(row["epoch"]))
            console.row(row, epochs=epochs)
    console.clear()
    signals.raise_if_requested()
    best = best_row(history, recipe.train.monitor)
    run.log_metrics(
        {
            "best/epoch": best["epoch"],
            "best/val_acc": best["val/acc"],
            "best/val_f1": best["val/f1"],
            "best/val_loss": best["val/loss"],
        }
    )
    return history


def _metrics(row: Row) -> dict[str, float]:
    """A history row under the names of the MLflow metrics."""
    renamed = {"seconds": "speed/epoch_s", "images_per_s": "speed/images_per_s"}
    return {renamed.get(name, name): value for name, value in row.items() if name != "epoch"}


def _conclude(
    run: TrackedRun, prepared: Prepared, history: History, console: Console
) -> tuple[Predictions, Classifier]:
    """Log what follows from the best weights: predictions, tables, figures, checkpoints, the model."""
    recipe, manifest, model = prepared.recipe, prepared.manifest, prepared.model
    model.load_state_dict(Checkpoint.load(run.file(f"checkpoints/{BEST}")).model)
    predictions = predict(
        model,
        prepared.val,
        manifest.part("val"),
        preprocessing=prepared.preprocessing,
        device=prepared.plan.device,
        split="val",
    )
    predictions.to_parquet(run.file("predictions/val.parquet"))
    run.log_file("predictions/val.parquet")
    figures = summary(predictions, top_k=recipe.evaluate.top_k)
    run.log_metrics({f"best/val_{name}": value for name, value in figures.items() if name.startswith("top")})
    run.log_text(history.to_json(), "history.json")
    run.log_text(per_class_table(predictions).to_csv(index=False), "tables/per_class_val.csv")
    best = best_row(history, recipe.train.monitor)
    plots.save(plots.curves(history, best_epoch=int(best["epoch"])), run.file("plots/curves.png"))
    counts = confusion_matrix(predictions.labels, predictions.predicted, len(manifest.classes))
    title = f"Validation, epoch {best['epoch']:.0f}: {figures['acc']:.1%} of {len(predictions.ids):,} images right"
    plots.save(plots.confusion(counts, manifest.classes, title=title), run.file("plots/confusion_val.png"))
    run.log_file("plots/curves.png")
    run.log_file("plots/confusion_val.png")
    _log_checkpoints(run)
    classifier = Classifier(
        model.to("cpu").eval(),
        recipe.model,
        prepared.preprocessing,
        manifest.classes,
        min(recipe.evaluate.top_k, len(manifest.classes)),
    )
    classifier.save(run.folder / "classifier")
    console.say("logging the model …")
    run.log_model("classifier", top_k=classifier.top_k)
    return predictions, classifier


def _log_checkpoints(run: TrackedRun) -> None:
    for name in (BEST, LAST):
        if run.file(f"checkpoints/{name}").exists():
            run.log_file(f"checkpoints/{name}")


def _run_name(prepared: Prepared) -> str:
    """Family and data, and letters that tell runs of both apart; MLflow's own names say nothing."""
    return f"{prepared.recipe.model.family}-{Path(prepared.recipe.data.origin).name}-{secrets.token_hex(2)}"


def _tags(prepared: Prepared) -> dict[str, str]:
    about = {"imgcls.family": prepared.recipe.model.family, "imgcls.plan": str(prepared.plan)}
    if prepared.weights is not None:
        about["imgcls.weights"] = prepared.weights.name
    return {**about, **common_tags("train", prepared.resolved, prepared.manifest)}
