"""What the gates of a promotion decide from: predictions of both models, latency, size, packages; and its report."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np
import pandas as pd

from imgcls.data.decode import Pixels
from imgcls.errors import UserError
from imgcls.evaluation.compare import class_changes, why_not_paired
from imgcls.evaluation.gates import PromoteConfig, Verdict, verdict
from imgcls.evaluation.markdown import aligned, markdown, value_text
from imgcls.evaluation.scores import scores
from imgcls.inference.ensemble import Model, members_of
from imgcls.jobs.console import Console
from imgcls.jobs.evaluation_data import predict_images, read_image, seen_by, with_classes_of
from imgcls.jobs.installable import Installable, check_installable
from imgcls.jobs.open_model import Opened
from imgcls.tables import Manifest, Predictions
from imgcls.tracking.model_files import model_bytes, model_requirements
from imgcls.tracking.read import read_predictions, read_run
from imgcls.tracking.registry import Version
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.store import Store

NUM_TIMED, MOST_SECONDS = 30, 3.0
"""Images whose latency is measured, and the seconds that this may take."""
MOST_CLASSES = 20
"""Classes in the report's table; the rest is in the artifact."""
FIGURES = ("acc", "balanced_acc", "f1", "auc", "ece")
CANDIDATE, CHAMPION = "candidate", "champion"


@dataclass(frozen=True)
class Evidence:
    """What was found.

    Attributes:
        candidate: its predictions for the test images.
        champion: the champion's; None where there is none or it cannot be compared.
        rows: a row a model for the report: what, run, version, images' figures.
        model_mb: megabytes (10^6 bytes) of the candidate's files.
        latency_ms: milliseconds that it needs for one image: decoding, preprocessing and the network.
        device: where that was measured.
        installable: whether its packages can be had.
        incomparable: why the champion that there is cannot be compared; "" where it can or there is none.
        same_data: whether both were made from the same data set; None: not known.
        seen: test images that the champion was trained on.
        notes: what a reader has to know.
    """

    candidate: Predictions
    champion: Predictions | None
    rows: pd.DataFrame
    model_mb: float
    latency_ms: float
    device: str
    installable: Installable
    incomparable: str
    same_data: bool | None
    seen: int
    notes: tuple[str, ...] = field(default=())

    @property
    def figures_text(self) -> str:
        """The accuracies, for the history."""
        own = f"acc {self.rows['acc'].iloc[0]:.4f}"
        return own if self.champion is None else f"{own}, the champion's {self.rows['acc'].iloc[1]:.4f}"


def gather(
    store: Store,
    run: TrackedRun,
    candidate: Opened,
    rival: Opened | None,
    champion: Version | None,
    manifest: Manifest,
    console: Console,
    *,
    device: str,
    incomparable: str,
    same_data: bool | None,
    seen: int,
) -> Evidence:
    """Predict the test images with both models, and measure the candidate.

    Args:
        store: where both are.
        run: the promotion's own; both predictions are logged to it.
        candidate: the model that is to be promoted.
        rival: the champion's; None where there is none or it cannot be compared.
        champion: its version.
        manifest: the test images, with labels into the candidate's classes.
        console: shows progress.
        device: where to compute.
        incomparable: why there is no rival though there is a champion.
        same_data: whether both were made from the same data set.
        seen: test images that the rival was trained on.

    Raises:
        UserError: images cannot be read, or the store fails.
    """
    notes = list[str]()
    own = _predicted(store, candidate, manifest, console, device, notes, CANDIDATE)
    _log_predictions(run, own, CANDIDATE)
    other = None
    if rival is not None:
        other = _predicted(store, rival, with_classes_of(manifest, rival), console, device, notes, CHAMPION)
        _log_predictions(run, other, CHAMPION)
    if leaked := seen_by([candidate], manifest):
        notes.append(
            f"the candidate was trained on copies of {leaked:,} of the {len(manifest):,} test images: its figures are "
            "too good (imgcls data check finds copies)"
        )
    if seen:
        notes.append(
            f"the champion was trained on {seen:,} of the {len(manifest):,} test images, which favours it: a candidate "
            "that passes passes all the same, and one that is refused for its accuracy may be better on new images"
        )
    assert candidate.model_id is not None
    packages = check_installable(model_requirements(store, candidate.model_id))
    notes.append(packages.how)
    rows = [_row(CANDIDATE, str(candidate.run_id), "", own)]
    if champion is not None and other is not None:
        rows.append(_row(CHAMPION, champion.run_id, champion.version, other))
    return Evidence(
        candidate=own,
        champion=other,
        rows=pd.DataFrame(rows),
        model_mb=model_bytes(store, candidate.model_id) / 1e6,
        latency_ms=latency(candidate.model, _images(manifest), device=device),
        device=device,
        installable=packages,
        incomparable=incomparable,
        same_data=same_data,
        seen=seen,
        notes=tuple(notes),
    )


def _row(what: str, run_id: str, version: str, predictions: Predictions) -> dict[str, object]:
    found = scores(predictions)  # which images of one class alone do not have all of
    return {"model": what, "version": version, "run": run_id, **{name: found.get(name, np.nan) for name in FIGURES}}


def _predicted(
    store: Store, opened: Opened, manifest: Manifest, console: Console, device: str, notes: list[str], what: str
) -> Predictions:
    """What the run that made the model has logged for these very images, or what the model says of them now."""
    stored = _stored(store, opened, manifest)
    if stored is not None:
        notes.append(f"the {what}'s predictions are those that its run {opened.run_id} has logged")
        return stored
    return predict_images(opened, manifest, console, split="test", device=device)


def _stored(store: Store, opened: Opened, manifest: Manifest) -> Predictions | None:
    """Only of a refit: what other runs call predictions of the test images may be of several views."""
    if opened.run_id is None:
        return None
    with suppress(UserError):  # they are computed then
        run = read_run(store, opened.run_id)
        if run.tags.get("imgcls.verb") == "refit":
            found = read_predictions(store, run, "test")
            probs = np.zeros((len(manifest), len(opened.model.classes)), np.float32)
            wanted = Predictions(manifest.ids, probs, manifest.labels, opened.model.classes, "test", manifest.digest)
            if why_not_paired(wanted, found) is None:
                return found
    return None


def _log_predictions(run: TrackedRun, predictions: Predictions, what: str) -> None:
    path = f"predictions/{what}.parquet"
    predictions.to_parquet(run.file(path))
    run.log_file(path)


def _images(manifest: Manifest) -> list[bytes | Pixels]:
    """Images from all over the data set."""
    places = np.unique(np.linspace(0, len(manifest) - 1, min(NUM_TIMED, len(manifest))).astype(int))
    return [read_image(manifest, int(place)) for place in places]


def latency(model: Model, images: Sequence[bytes | Pixels], *, device: str) -> float:
    """Median milliseconds for one image, from encoded bytes or pixels to probabilities, as a server would.

    Args:
        model: moved to the device.
        images: one or more; taken in turn.
        device: where to compute.
    """
    for member in members_of(model):
        member.module.to(device).eval()
    for image in islice(cycle(images), 3):
        model.probabilities([image])
    taken: list[float] = []
    begin = time.perf_counter()
    for image in islice(cycle(images), NUM_TIMED):
        start = time.perf_counter()
        model.probabilities([image])
        taken.append(time.perf_counter() - start)
        if time.perf_counter() - begin > MOST_SECONDS and len(taken) >= 3:
            break
    return float(np.median(taken)) * 1000


def hold(evidence: Evidence, config: PromoteConfig) -> Verdict:
    """What the gates say of it."""
    return verdict(
        evidence.candidate,
        evidence.champion,
        config,
        model_mb=evidence.model_mb,
        latency_ms=evidence.latency_ms,
        same_data=evidence.same_data,
        installable=evidence.installable.can,
        incomparable=evidence.incomparable,
        seen=evidence.seen,
    )


def log_evidence(run: TrackedRun, evidence: Evidence, found: Verdict, *, title: str) -> None:
    """Log the figures, the table of gates, the comparison by class, and the report."""
    figures = {f"gate/{gate.name}": gate.figure for gate in found.gates if gate.figure is not None}
    for row in evidence.rows.to_dict("records"):
        figures |= {f"{row['model']}/{name}": float(row[name]) for name in FIGURES}
    run.log_metrics({name: value for name, value in figures.items() if np.isfinite(value)})
    run.log_text(found.table.to_csv(index=False), "gates.csv")
    changes = None if evidence.champion is None else class_changes(evidence.candidate, evidence.champion)
    if changes is not None:
        run.log_text(changes.to_csv(index=False), "tables/comparison.csv")
    run.log_text(_report(evidence, found, changes, title), "report.md")


def _report(evidence: Evidence, found: Verdict, changes: pd.DataFrame | None, title: str) -> str:
    num = len(evidence.candidate.ids)
    rows = markdown(evidence.rows, formats=dict.fromkeys(FIGURES, ".4f"))
    parts = [found.markdown(title=title), f"## The models on {num:,} test images\n\n{rows}"]
    parts.append(
        "".join(f"- {note}\n" for note in evidence.notes)
        + f"- the latency is the median of single images on this machine ({evidence.device})\n"
    )
    if changes is not None:
        shown = changes[changes["difference"] != 0]
        rest = f"\nThe {MOST_CLASSES} greatest falls of {len(shown)}; all are in tables/comparison.csv.\n"
        parts.append(
            "## Classes whose recall changed\n\n"
            + (markdown(shown[:MOST_CLASSES]) if len(shown) else "None.\n")
            + rest * (len(shown) > MOST_CLASSES)
        )
    return "\n".join(parts)


def tell(evidence: Evidence, found: Verdict, console: Console) -> None:
    """The notes, and a line for each gate."""
    for note in evidence.notes:
        console.say(f"note: {note}")
    rows = [["gate", "figure", "wanted", "passed"]]
    rows += [[gate.name, value_text(gate.figure), gate.wanted, "yes" if gate.passed else "NO"] for gate in found.gates]
    console.say(f"\n{aligned(rows, left=(0, 2, 3))}".rstrip("\n"))
