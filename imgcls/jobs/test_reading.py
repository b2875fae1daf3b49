"""Reading a test set within a run: counted before it is read, and logged with how far the figures may be off."""

from dataclasses import dataclass

from imgcls.evaluation.reading import read_out
from imgcls.inference.predict import predict
from imgcls.jobs import train_log
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.tables import Manifest, Predictions, split_digest
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.test_reads import in_words, register_read


@dataclass(frozen=True)
class Reading:
    """What a model gives of the test set.

    Attributes:
        predictions: of every test image.
        figures: see `evaluation.reading.read_out`.
    """

    predictions: Predictions
    figures: dict[str, float]


def count_read(run: TrackedRun, manifest: Manifest, console: Console) -> int | None:
    """Count a read of the manifest's test split, which the run is about to do, and say how often there was one.

    The number is that of the metric test/reads; None where the store does not answer.
    """
    reads = register_read(run, split_digest(manifest, "test"))
    if reads is not None:
        run.log_metrics({"test/reads": reads})
    console.say(in_words(reads))
    return reads


def read_test(run: TrackedRun, prepared: Prepared) -> Reading:
    """Predict the test images, once, and log what comes of it. `count_read` comes before.

    The network is on the CPU before and after.
    """
    assert prepared.test is not None
    predictions = predict(
        prepared.model.to(prepared.plan.device),
        prepared.test,
        prepared.manifest.part("test"),
        preprocessing=prepared.preprocessing,
        device=prepared.plan.device,
        split="test",
    )
    prepared.model.to("cpu")
    figures = read_out(predictions, top_k=prepared.recipe.evaluate.top_k)
    run.log_metrics({f"test/{name}": value for name, value in figures.items()})
    title = f"Test: {figures['acc']:.1%} of {len(predictions.ids):,} images right"
    train_log.log_predictions(run, predictions, title=title)
    return Reading(predictions, figures)
