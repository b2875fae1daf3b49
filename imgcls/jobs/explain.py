"""The verb `explain`: heat maps of where a model looked, for single images and for its mistakes."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imgcls
from imgcls.data.decode import DecodeError, Pixels
from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.inference.classifier import Classifier
from imgcls.inference.ensemble import Ensemble, Model
from imgcls.inference.explain import Explanation, explain
from imgcls.jobs.console import Console
from imgcls.jobs.open_model import Opened, open_model
from imgcls.jobs.record import before_run, report_end, within_run
from imgcls.jobs.signals import Signals
from imgcls.jobs.surroundings import git_commit
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun

FIGURE = "plots/explanations.png"
SHOWS = "the heat maps"


@dataclass(frozen=True)
class ExplainResult:
    """What an explanation gives.

    Attributes:
        run_id: the MLflow run.
        explanations: one for each image.
        figure: the file that was written beside the run's; None where none was asked for.
        unsent: a folder with what the tracking server could not take, or None where all is complete.
    """

    run_id: str
    explanations: tuple[Explanation, ...]
    figure: Path | None
    unsent: Path | None


def run_explain(
    images: Sequence[str],
    console: Console,
    signals: Signals,
    *,
    model: str,
    target: str | None = None,
    stage: str | None = None,
    output: Path | None = None,
) -> ExplainResult:
    """Draw where a model looked in single images, in a run of its own.

    Args:
        images: image files, 1 to 32.
        console: where to tell it.
        signals: how it is asked to end.
        model: as for `open_model`. Of an ensemble the member with the most weight is explained.
        target: the class to explain, by its name or its index; None: the predicted one of each image.
        stage: where the map is read; None: the last place before the head that is a map.
        output: a PNG file to be written, too; an error leaves what was there before.

    Raises:
        UserError: there is no such model, image, class or stage, an image cannot be decoded, the network has no map, or
            the output is no PNG file, is one of the images or cannot be written.
    """
    with before_run(console):
        if not 1 <= len(images) <= plots.MOST_HEAT_MAPS:
            raise UserError(f"found {len(images)} images; expected 1 to {plots.MOST_HEAT_MAPS}, each an image file.")
        if output is not None:
            _check_output(output, images)
        files = [_read(name) for name in images]
        opened = open_model(model, console)
        member = main_member(opened.model)
        pixels = [_decoded(name, data, member) for name, data in zip(images, files, strict=True)]
        targets = None if target is None else [target] * len(files)
        found = explain(member, pixels, targets=targets, stage=stage)
        figure = plots.heat_maps(
            [heat_map(one) for one in found],
            title=f"{member.config.family}: where it looked ({found[0].stage})",
        )
        if output is not None:
            _save(figure, output)
            console.say(f"drawn: {output}")
        signals.hold()
        run = _start(opened, member)
    with within_run(run, console, signals, shows=SHOWS):
        run.log_params({"explain.model": opened.address, "explain.target": target, "explain.stage": found[0].stage})
        plots.save(figure, run.file(FIGURE))
        run.log_file(FIGURE)
    for name, one in zip(images, found, strict=True):
        console.say(f"{name}: {one.classes[one.predicted]} ({float(one.probs.max()):.1%}), explained: {one.label}")
    report_end(run, console, f"read at {found[0].stage}", shows=SHOWS)
    return ExplainResult(run.run_id, tuple(found), output, run.unsent)


def _start(opened: Opened, member: Classifier) -> TrackedRun:
    tags = {
        "imgcls.verb": "explain",
        "imgcls.version": imgcls.__version__,
        "imgcls.family": member.config.family,
        "imgcls.model": opened.address,
    }
    commit = git_commit()
    tags |= {} if commit is None else {"imgcls.git_commit": commit}
    return tracking.start(Path("outputs"), name=f"explain-{member.config.family}-{secrets.token_hex(2)}", tags=tags)


def _check_output(output: Path, images: Sequence[str]) -> None:
    if output.suffix.casefold() != ".png":
        raise UserError(f"found the output {output.name!r}; expected a file ending in .png (--output).")
    if any(output.resolve() == Path(name).resolve() for name in images):
        raise UserError(f"the output {output} is one of the images; give another file (--output).")


def _save(figure: plots.Figure, output: Path) -> None:
    """Write the figure; the file appears when it is complete."""
    part = output.with_name(f".{output.stem}.{os.getpid()}.part.png")
    try:
        try:
            plots.save(figure, part)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"the output {output} cannot be written: {error.strerror}. Give another file (--output), or mend the "
            "rights of its folder."
        ) from error


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the image {name}: {error.strerror}. Expected the path of an image file."
        ) from error


def _decoded(name: str, data: bytes, member: Classifier) -> Pixels:
    try:
        return member.preprocessing.pixels(data)
    except DecodeError as error:
        raise UserError(f"cannot read the image {name}: {error}. Give another image, or mend this one.") from error


def main_member(model: Model) -> Classifier:
    """The classifier, or the member of an ensemble that has the most weight."""
    if isinstance(model, Ensemble):
        return model.members[max(range(len(model.members)), key=lambda number: model.weights[number])]
    return model


def heat_map(found: Explanation, *, true: str = "") -> plots.HeatMap:
    """An explanation as a figure takes it; `true` is the image's class, where it is known."""
    return plots.HeatMap(
        found.pixels, found.heat, found.label, found.probability, found.classes[found.predicted],
        float(found.probs.max()), true,
    )  # fmt: skip


def explained_mistakes(
    model: Model, mistakes: Sequence[tuple[bytes | Pixels, str, str]], *, title: str
) -> plots.Figure:
    """Where a model looked in images that it took for another class, and how much spoke for that.

    Args:
        model: a classifier, or an ensemble, of which the member with the most weight is explained.
        mistakes: (image, true class, predicted class).
        title: of the figure.

    Raises:
        UserError: the network has no map.
    """
    member = main_member(model)
    found = explain(member, [image for image, _, _ in mistakes], targets=[name for _, _, name in mistakes])
    maps = [heat_map(one, true=true) for one, (_, true, _) in zip(found, mistakes, strict=True)]
    return plots.heat_maps(maps, title=title)
