"""What a training writes into its run: what is known before it, its figures, and what the best weights give."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd

from imgcls.data.loading import Batches
from imgcls.evaluation import plots
from imgcls.evaluation.metrics import confusion_matrix, per_class_table, summary
from imgcls.inference.classifier import Classifier
from imgcls.inference.predict import predict
from imgcls.jobs import data_preview
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.jobs.reading import SPLIT_TABLE
from imgcls.jobs.record import log_data
from imgcls.jobs.surroundings import environment
from imgcls.tables import History, Manifest, Predictions, Row
from imgcls.tracking.run import TrackedRun
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.keeper import BEST, LAST, REWIND, best_row


def describe(
    run: TrackedRun, prepared: Prepared, *, whole: bool = True, repeat: str = "imgcls train recipe.yaml"
) -> None:
    """Log what is known before the first epoch.

    Args:
        run: where.
        prepared: of what.
        whole: also what is the same for all trainings on the same data.
        repeat: the command that does the same again.
    """
    recipe, manifest = prepared.recipe, prepared.manifest
    log_recipe(run, prepared, repeat=repeat)
    log_split(run, manifest)
    if recipe.data.balance != "none":
        counts = np.bincount(manifest.part("train").labels, minlength=len(manifest.classes))
        weights = {"class": manifest.classes, "train_images": counts, "weight": prepared.class_weights}
        run.log_text(pd.DataFrame(weights).to_csv(index=False), "tables/class_weights.csv")
    if whole:
        describe_data(run, prepared)
    _describe_model(run, prepared)


def log_split(run: TrackedRun, manifest: Manifest) -> None:
    """Log which images the data set has, with the names of their classes ("" without one), and how they are split.

    `data.split_from` reads it, and whoever asks what a model was trained on.
    """
    columns = ["id", "label", "split", "group", "content"]
    names = ["" if k < 0 else manifest.classes[k] for k in manifest.labels]
    table = manifest.frame[columns].assign(label=names)
    run.log_text(table.to_csv(index=False), SPLIT_TABLE)


def describe_data(run: TrackedRun, prepared: Prepared) -> None:
    """Log what was left out of the data, what its check found, and a figure of its variations."""
    manifest = prepared.manifest
    if manifest.skipped:
        lines = [json.dumps({"path": item.path, "reason": item.reason}) for item in manifest.skipped]
        run.log_text("\n".join(lines) + "\n", "tables/skipped.jsonl")
    data_preview.draw(prepared.recipe, manifest, run.file("plots/augmentation.png"))
    run.log_file("plots/augmentation.png")
    if manifest.notices:
        run.log_text("\n".join(manifest.notices) + "\n", "tables/notices.txt")
    if prepared.report is not None:
        run.log_text(json.dumps(prepared.report.to_dict(), ensure_ascii=False), "tables/data_check.json")


def _describe_model(run: TrackedRun, prepared: Prepared) -> None:
    """Log the network, its weights, and the execution plan's measurements."""
    if prepared.weights is not None:
        table = pd.DataFrame([asdict(row) for row in prepared.weights.rows])
        table["shape"] = ["x".join(str(side) for side in row.shape) for row in prepared.weights.rows]
        run.log_text(table.to_csv(index=False), "tables/weights.csv")
    if len(prepared.measured):
        run.log_text(prepared.measured.to_csv(index=False), "tables/plan.csv")
    table = prepared.architecture
    run.log_text(table.to_csv(index=False), "tables/model.csv")
    run.log_metrics(
        {
            "model/parameters": int(table["parameters"].sum()),
            "model/trainable_parameters": int(table["trainable"].sum()),
            "model/macs": int(table["macs"].sum()),
        }
    )


NOT_TRAINED = ("search.", "promote.")
"""Fields that no training reads; they stand in its recipe.yaml, and are no params of it."""


def log_recipe(run: TrackedRun, prepared: Prepared, *, repeat: str) -> None:
    """Log the recipe, the environment and what data there are; `repeat` is the command that does the same again."""
    recipe = prepared.recipe
    run.log_params({name: value for name, value in recipe.flat().items() if not name.startswith(NOT_TRAINED)})
    head = f"# The resolved recipe of the MLflow run {run.run_id}.\n# Repeat it with: {repeat}\n"
    run.log_text(head + recipe.to_yaml(), "recipe.yaml")
    run.log_text(environment(), "environment.txt")
    log_data(run, recipe.data, prepared.manifest, context="training")


def metrics(row: Row) -> dict[str, float]:
    """A history row under the names of the MLflow metrics."""
    renamed = {"seconds": "speed/epoch_s", "images_per_s": "speed/images_per_s"}
    return {renamed.get(name, name): value for name, value in row.items() if name != "epoch"}


def conclude(run: TrackedRun, prepared: Prepared, history: History, console: Console) -> tuple[Predictions, Classifier]:
    """Log what follows from the best weights: predictions, tables, figures, checkpoints, the model."""
    predictions = log_best(run, prepared, history)
    log_checkpoints(run)
    return predictions, log_classifier(run, prepared, console)


def log_best(
    run: TrackedRun, prepared: Prepared, history: History, *, val: Batches | None = None, draws: bool = True
) -> Predictions:
    """Put the best weights into the model, and log what it says of the validation images, with tables and figures.

    Args:
        run: where.
        prepared: of what.
        history: the training's rows.
        val: what frozen stages gave of the validation images, where that is to be looked at in place of them.
        draws: draw the confusion matrix, too.
    """
    recipe, manifest = prepared.recipe, prepared.manifest
    val = val or prepared.whole_val
    assert val is not None
    load_best(run, prepared)
    predictions = predict(
        prepared.model,
        val,
        manifest.part("val"),
        preprocessing=prepared.preprocessing,
        device=prepared.plan.device,
        split="val",
    )
    figures = summary(predictions, top_k=recipe.evaluate.top_k)
    run.log_metrics({f"best/val_{name}": value for name, value in figures.items() if name.startswith("top")})
    best = int(best_row(history, recipe.train.monitor)["epoch"])
    title = f"Validation, epoch {best}: {figures['acc']:.1%} of {len(predictions.ids):,} images right"
    log_predictions(run, predictions, title=title if draws else None)
    log_history(run, history, best_epoch=best)
    return predictions


def load_best(run: TrackedRun, prepared: Prepared) -> None:
    """Give the network the weights of the best epoch."""
    prepared.model.load_state_dict(Checkpoint.load(run.file(f"checkpoints/{BEST}")).model)


def log_history(run: TrackedRun, history: History, *, best_epoch: int) -> None:
    """Log the rows and the curves."""
    run.log_text(history.to_json(), "history.json")
    plots.save(plots.curves(history, best_epoch=best_epoch), run.file("plots/curves.png"))
    run.log_file("plots/curves.png")


def log_predictions(run: TrackedRun, predictions: Predictions, *, title: str | None) -> None:
    """Log the predictions of a split, with a table of its classes and the confusion matrix under the title, if any."""
    split, classes = predictions.split, predictions.classes
    predictions.to_parquet(run.file(f"predictions/{split}.parquet"))
    run.log_file(f"predictions/{split}.parquet")
    run.log_text(per_class_table(predictions).to_csv(index=False), f"tables/per_class_{split}.csv")
    if title is None:
        return
    counts = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    plots.save(plots.confusion(counts, classes, title=title), run.file(f"plots/confusion_{split}.png"))
    run.log_file(f"plots/confusion_{split}.png")


def log_classifier(run: TrackedRun, prepared: Prepared, console: Console) -> Classifier:
    """Log the network, which comes to the CPU, as the run's model."""
    recipe, classes = prepared.recipe, prepared.manifest.classes
    top_k = min(recipe.evaluate.top_k, len(classes))
    classifier = Classifier(prepared.model.to("cpu").eval(), recipe.model, prepared.preprocessing, classes, top_k)
    classifier.save(run.folder / "classifier")
    console.say("logging the model …")
    run.log_model("classifier", top_k=classifier.top_k)
    return classifier


def log_checkpoints(run: TrackedRun) -> None:
    """Send all checkpoints, the newest last."""
    folder = run.file(f"checkpoints/{LAST}").parent
    names = [BEST, *sorted(path.name for path in folder.glob("epoch-*.pt")), REWIND, LAST]
    for name in names:
        if (folder / name).exists():
            run.log_file(f"checkpoints/{name}")
