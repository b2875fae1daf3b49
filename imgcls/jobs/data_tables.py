"""A check's report as a person reads it: the text on the terminal, and tables for a spreadsheet."""

import textwrap
from collections import Counter

import numpy as np
import numpy.typing as npt
import pandas as pd

from imgcls.data.report import Finding, Report, training_counts

MARGIN = 11
"""Columns of the words on the left."""
MOST_EXAMPLES = 3
MODES = {"1": "black and white", "L": "grey", "I;16": "16-bit grey", "P": "with a palette"}
"""What Pillow's less telling modes are called; RGB, CMYK and the like speak for themselves."""


def as_text(report: Report, name: str, *, width: int = 100) -> str:
    """The report for a terminal.

    Args:
        report: what was found.
        name: what the data set is called.
        width: columns of the terminal.
    """
    depth = "every image decoded" if report.depth == "full" else "headers only; --full decodes and compares all images"
    facts = [("images", _files(report)), ("classes", _classes(report)), ("splits", _splits(report))]
    facts += [("sizes", _sizes(report)), ("channels", _channels(report))]
    lines = [f"{name}: a {report.depth} check ({depth})", ""]
    lines += [line for word, text in facts if text for line in _entry(word, text, width)]
    lines.append("")
    for finding in report.findings:
        lines += _found(finding, width)
    counts = Counter(finding.severity for finding in report.findings)
    words = [f"{counts[word]} {word}{'s' * (counts[word] != 1)}" for word in ("error", "warning", "note")]
    lines.append(", ".join(words) if report.findings else "nothing found")
    return "\n".join(lines)


def _entry(word: str, text: str, width: int) -> list[str]:
    body = textwrap.wrap(text, max(30, width - MARGIN), break_on_hyphens=False)
    return [f"{word if k == 0 else '':<{MARGIN}}{line}" for k, line in enumerate(body)]


def _found(finding: Finding, width: int) -> list[str]:
    """A finding: severity, count and kind; what to do; a few of those concerned, one a line."""
    room = max(30, width - MARGIN)
    shown = [f"  {_one_line(item, room - 2)}" for item in finding.items[:MOST_EXAMPLES]]
    more = finding.count - len(shown)
    if more:
        shown.append(f"  … and {more:,} more")
    text = f"{finding.title}: {finding.count:,}. {finding.advice}"
    return [*_entry(finding.severity, text, width), *(f"{'':<{MARGIN}}{line}" for line in shown), ""]


def _one_line(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2 - 1]}…{line[-(most - most // 2) :]}"


def _files(report: Report) -> str:
    text = f"{len(report.facts):,}, {_bytes(sum(fact.num_bytes for fact in report.facts))}"
    formats = Counter(fact.format for fact in report.facts if fact.format)
    if not formats:
        return text
    modes = Counter(MODES.get(fact.mode, fact.mode) for fact in report.facts if fact.mode)
    kinds = (", ".join(f"{count:,} {kind}" for kind, count in counts.most_common()) for counts in (formats, modes))
    return "{}: {} ({})".format(text, *kinds)


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _classes(report: Report) -> str:
    counts, names = training_counts(report.class_counts), report.manifest.classes
    least, most = int(counts.min()), int(counts.max())
    if least == most:
        return f"{len(names):,}, each of {most:,} images{_in_training(report)}"
    smallest, largest = names[int(counts.argmin())], names[int(counts.argmax())]
    return (
        f"{len(names):,}, of {least:,} ({smallest}) to {most:,} ({largest}) images{_in_training(report)}, "
        f"median {np.median(counts):,g}; largest : smallest {report.imbalance:,.1f}"
    )


def _in_training(report: Report) -> str:
    return " in training" if set(report.class_counts) - {"", "train"} else ""


def _splits(report: Report) -> str:
    given = {split: int(counts.sum()) for split, counts in report.class_counts.items()}
    if set(given) == {""}:
        return "none given; a training deals them"
    return ", ".join(f"{split or 'not in any'} {count:,}" for split, count in given.items())


def _sizes(report: Report) -> str:
    sizes = report.sizes[(report.sizes > 0).all(axis=1)]
    if not len(sizes):
        return ""
    if (sizes == sizes[0]).all():
        return f"all {sizes[0, 0]:,} x {sizes[0, 1]:,} px"
    return (
        f"width {_spread(sizes[:, 0])}, height {_spread(sizes[:, 1])}, shorter side {_spread(sizes.min(axis=1))} px "
        "(smallest, median, largest)"
    )


def _spread(values: npt.NDArray[np.int64]) -> str:
    return f"{values.min():,} … {np.median(values):,g} … {values.max():,}"


def _channels(report: Report) -> str:
    if report.channels is None:
        return ""
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in vars(report.channels).values())
    return f"mean {mean}, standard deviation {std} (of 0 to 1)"


def images_table(report: Report) -> pd.DataFrame:
    """One row an image: its facts, its label and its split."""
    frame, names = report.manifest.frame, report.manifest.classes
    table = pd.DataFrame(report.facts)
    table.insert(0, "id", frame["id"])
    table.insert(1, "class", [names[k] if k >= 0 else "" for k in report.manifest.labels])
    table.insert(2, "split", frame["split"])
    return table.assign(problem=[report.unreadable.get(row, "") for row in range(len(table))])


def classes_table(report: Report) -> pd.DataFrame:
    """One row a class: its images in each split."""
    counts = {split or "undealt": values for split, values in report.class_counts.items()}
    return pd.DataFrame({"class": report.manifest.classes, **counts})


def findings_table(report: Report) -> pd.DataFrame:
    """One row a finding."""
    columns = ["severity", "kind", "count", "title", "advice"]
    return pd.DataFrame([vars(finding) for finding in report.findings], columns=columns)


def copies_table(report: Report) -> pd.DataFrame:
    """One row an image that has copies; equal numbers are equal bytes."""
    rows = [(number, row) for number, same in enumerate(report.copies, 1) for row in same]
    about = images_table(report).loc[[row for _, row in rows], ["id", "class", "split", "content"]]
    about.insert(0, "number", [number for number, _ in rows])
    return about


def near_table(report: Report) -> pd.DataFrame:
    """One row a pair that looks alike; none in a quick check."""
    columns = ["id_a", "id_b", "class_a", "class_b", "split_a", "split_b", "distance", "correlation"]
    if report.near is None:
        return pd.DataFrame(columns=columns)
    about = images_table(report)[["id", "class", "split"]]
    a, b = (about.iloc[report.near.rows[:, side]].reset_index(drop=True) for side in (0, 1))
    both = pd.concat([a.add_suffix("_a"), b.add_suffix("_b")], axis=1)
    return both.assign(distance=report.near.distances, correlation=report.near.correlations)[columns]
