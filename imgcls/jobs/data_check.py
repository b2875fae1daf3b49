"""The verb `data check`: what is wrong with a data set, on the terminal, as JSON and as one MLflow run."""

import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imgcls.data.check import check, pixels_of
from imgcls.data.decode import Pixels
from imgcls.data.report import Report, training_counts
from imgcls.data.source import DataConfig, scan
from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.evaluation.plots import data as figures
from imgcls.jobs import data_tables
from imgcls.jobs.console import Console
from imgcls.jobs.reading import split_data
from imgcls.jobs.record import before_run, common_tags, log_data, report_end, within_run
from imgcls.jobs.signals import Signals
from imgcls.recipe import Recipe, Resolved
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun

SAMPLES = 6
"""Images of each class in the sample grid."""
MOST_SHOWN = 24
"""Pairs in a figure."""
FIGURE_SIDE = 160
"""Pixels of the shorter side of images in figures."""
SHOWS = "tables and figures"


@dataclass(frozen=True)
class CheckResult:
    """What a check gives.

    Attributes:
        report: what was found.
        run_id: the MLflow run; None where none was asked for.
        refuses: a training on these data would stop at unreadable images.
        unsent: the folder with what the tracking server could not take, or None.
    """

    report: Report
    run_id: str | None
    refuses: bool
    unsent: Path | None


def run_check(
    resolved: Resolved,
    console: Console,
    signals: Signals,
    *,
    full: bool = False,
    json_to: str | None = None,
    tracked: bool = True,
) -> CheckResult:
    """Check the data of a recipe.

    Args:
        resolved: the recipe.
        console: where the report is told.
        signals: how the job is asked to end.
        full: decode and compare all images, also where the recipe's `data.check` is not full.
        json_to: a file for the report as JSON; "-" is the standard output.
        tracked: make an MLflow run of it.

    Raises:
        UserError: the data cannot be found or read at all, or the JSON, the output folder or the store not be written.
    """
    recipe = resolved.recipe
    with before_run(console):
        report = _report(recipe, console, full=full)
        refuses = bool(report.unreadable) and recipe.data.on_bad_image == "error"
        console.say(data_tables.as_text(report, recipe.data.origin, width=shutil.get_terminal_size((100, 24)).columns))
        if json_to is not None:
            _write_json(report, json_to)
        if not tracked:
            return CheckResult(report, None, refuses, None)
        signals.hold()
        name = f"check-{Path(recipe.data.origin).name}-{secrets.token_hex(2)}"
        run = tracking.start(Path(recipe.train.output_dir), name=name, tags=_tags(resolved, report))
    with within_run(run, console, signals, shows=SHOWS):
        _describe(run, report, recipe.data)
        _draw(run, report, recipe.data)
    report_end(run, console, "", shows=SHOWS)
    return CheckResult(report, run.run_id, refuses, run.unsent)


def _report(recipe: Recipe, console: Console, *, full: bool) -> Report:
    manifest = scan(recipe.data, progress=console.count)
    try:
        manifest = split_data(manifest, recipe.data)
    except UserError as error:  # there is all the more to tell
        manifest = manifest.with_notices(f"a training would not start: {error}")
    for notice in manifest.notices:
        console.say(f"note: {notice}")
    return check(
        manifest,
        depth="full" if full or recipe.data.check == "full" else "quick",
        channels=recipe.data.channels,
        progress=console.counter("checking images"),
    )


def _write_json(report: Report, to: str) -> None:
    text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n"
    if to == "-":
        sys.stdout.write(text)
        return
    try:
        Path(to).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--json {to} cannot be written: {error.strerror}. Expected a file to make, or - for the standard output."
        ) from error


def _tags(resolved: Resolved, report: Report) -> dict[str, str]:
    return {"imgcls.check": report.depth, **common_tags("data_check", resolved, report.manifest)}


def _describe(run: TrackedRun, report: Report, config: DataConfig) -> None:
    run.log_params({f"data.{name}": value for name, value in config.model_dump(mode="json").items()})
    log_data(run, config, report.manifest, context="check")
    run.log_metrics(_metrics(report))
    run.log_text(json.dumps(report.to_dict(), ensure_ascii=False), "report.json")
    tables = {
        "findings": data_tables.findings_table(report),
        "classes": data_tables.classes_table(report),
        "images": data_tables.images_table(report),
        "duplicates": data_tables.copies_table(report),
    }
    if report.near is not None:
        tables["near_duplicates"] = data_tables.near_table(report)
    for name, table in tables.items():
        run.log_text(table.to_csv(index=False), f"tables/{name}.csv")
    if report.manifest.skipped:
        lines = [json.dumps({"path": item.path, "reason": item.reason}) for item in report.manifest.skipped]
        run.log_text("\n".join(lines) + "\n", "tables/skipped.jsonl")


def _metrics(report: Report) -> dict[str, float]:
    """The report's figures; what was not looked for has none."""
    severities = [finding.severity for finding in report.findings]
    metrics: dict[str, float] = {
        "data/images": len(report.manifest),
        "data/classes": len(report.manifest.classes),
        "data/megabytes": sum(fact.num_bytes for fact in report.facts) / 1e6,
        "data/imbalance": report.imbalance,
        "data/smallest_class": int(training_counts(report.class_counts).min()),
        "data/errors": severities.count("error"),
        "data/warnings": severities.count("warning"),
    }
    kinds = ["unreadable", "duplicates", "contradictory", "leakage"]
    if report.near is not None:
        kinds += ["near_duplicates", "near_contradictory", "near_leakage", "blank"]
    metrics |= {f"data/{kind}": report.count(kind) for kind in kinds}
    if report.channels is not None:
        metrics |= {f"data/mean_{k}": float(value) for k, value in enumerate(report.channels.mean)}
        metrics |= {f"data/std_{k}": float(value) for k, value in enumerate(report.channels.std)}
    return metrics


def _draw(run: TrackedRun, report: Report, config: DataConfig) -> None:
    """Log the figures that there is something to show in."""
    name = Path(config.origin).name
    counts = {split or "images": values for split, values in report.class_counts.items()}
    drawn = {"classes": figures.class_histogram(counts, report.manifest.classes)}
    classes, samples = _samples(report, config.channels)
    title = f"{name}: up to {SAMPLES} images of each class"
    if len(classes) < len(report.manifest.classes):
        title = f"{name}: {len(classes)} of {len(report.manifest.classes):,} classes, from the largest to the smallest"
    drawn["samples"] = figures.sample_grid(samples, classes, title=title)
    sizes = report.sizes[(report.sizes > 0).all(axis=1)]
    if len(sizes):
        drawn["sizes"] = figures.size_scatter(sizes[:, 0], sizes[:, 1], title=name)
    for kind, what, pairs, count in _pairs_to_show(report):
        pixels, captions = _pair_images(report, pairs, config.channels)
        if pixels:
            title = f"{name}: {what}" + (f" ({len(pixels)} of {count:,})" if count > len(pixels) else "")
            drawn[kind] = figures.image_pairs(pixels, captions, title=title)
    for file, figure in drawn.items():
        plots.save(figure, run.file(f"plots/{file}.png"))
        run.log_file(f"plots/{file}.png")


def _samples(report: Report, channels: int) -> tuple[list[str], list[list[Pixels]]]:
    """Class names and a few images of each; of many classes the largest, the smallest and some evenly between."""
    classes, labels = report.manifest.classes, report.manifest.labels
    chosen = list(range(len(classes)))
    if len(chosen) > figures.MOST_SAMPLED_CLASSES:
        order = np.argsort(-training_counts(report.class_counts), kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, figures.MOST_SAMPLED_CLASSES).round().astype(int)].tolist()
    by_label: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        if row not in report.unreadable:
            by_label.setdefault(label, []).append(row)
    samples = []
    for label in chosen:
        rows = by_label.get(label, [])
        spread = sorted({int(k) for k in np.linspace(0, len(rows) - 1, SAMPLES).round()}) if rows else []
        samples.append([pixels for k in spread if (pixels := _pixels(report, rows[k], channels)) is not None])
    return [classes[label] for label in chosen], samples


def _pixels(report: Report, row: int, channels: int) -> Pixels | None:
    """An image for a figure; None where it turns out that it cannot be decoded, which a quick check does not see."""
    try:
        return pixels_of(report.manifest, row, channels=channels, short_side=FIGURE_SIDE)
    except UserError:
        return None


def _pairs_to_show(report: Report) -> Iterator[tuple[str, str, list[tuple[int, int]], int]]:
    """(file, title, pairs of rows, how many there are), those that contradict or leak first."""
    labels, splits = report.manifest.labels, [str(split) or "train" for split in report.manifest.frame["split"]]

    def differing(pair: tuple[int, int]) -> tuple[bool, bool]:
        return labels[pair[0]] == labels[pair[1]], splits[pair[0]] == splits[pair[1]]

    copies = [min(((same[0], row) for row in same[1:]), key=differing) for same in report.copies]
    yield "duplicates", "the same bytes more than once", sorted(copies, key=differing)[:MOST_SHOWN], len(copies)
    if report.near is not None:
        near = [(a, b) for a, b in report.near.rows.tolist()]
        yield "near_duplicates", "pairs that look alike", sorted(near, key=differing)[:MOST_SHOWN], report.near.count


def _pair_images(
    report: Report, pairs: Sequence[tuple[int, int]], channels: int
) -> tuple[list[tuple[Pixels, Pixels]], list[tuple[str, str]]]:
    pixels, captions = [], []
    for a, b in pairs:
        first, second = _pixels(report, a, channels), _pixels(report, b, channels)
        if first is not None and second is not None:
            pixels.append((first, second))
            captions.append((_caption(report, a), _caption(report, b)))
    return pixels, captions


def _caption(report: Report, row: int) -> str:
    about = report.about(row)
    return "\n".join(text for text in (about["class"], about["id"], about["split"]) if text)
