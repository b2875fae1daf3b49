"""Figures of a data set: sizes of classes and images, samples, duplicates, and what augmentation makes of images."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from imgcls.evaluation.plots.base import BLUE, GREY, ORANGE, fitting, fonts
from imgcls.evaluation.plots.sheet import LINE, Pixels, Sheet, side_for

Counts = Mapping[str, npt.NDArray[np.int64]]

MOST_BARS = 60
"""Classes up to which a histogram has a bar and a name for every one."""
MOST_UNSORTED = 12
"""Classes up to which the bars keep the order of the classes; of more, a sorted row is easier to read."""
STEEP = 50
"""How many times the smallest class the largest may have before a curve of sizes needs a logarithmic scale."""
NAMED_ENDS = 6
"""Classes named at each end of a curve of sizes."""
MOST_SAMPLED_CLASSES = 60
"""Classes that a grid of samples can show readably."""
MOST_PAIRS = 24
"""Pairs that a figure of duplicates can show readably."""
MOST_POINTS = 2000
"""Different image sizes up to which each is a point; of more, neighbours share a cell."""
RATIOS = ((1, 1), (4, 3), (3, 2), (16, 9), (2, 1))
"""Common aspect ratios, drawn lying and standing."""
_COLOURS = {"train": BLUE, "val": ORANGE, "test": "#8c8c8c"}


def class_histogram(counts: Counts, classes: Sequence[str]) -> Figure:
    """Images of each class, stacked by split.

    Up to 12 classes stand in their order, more from the largest to the smallest; up to 60 have a bar and a name each,
    more make a curve whose ends are named.

    Args:
        counts: split -> (C,) images of each class.
        classes: the C class names.
    """
    totals = np.stack([*counts.values()]).sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    if len(classes) > MOST_BARS:
        return _size_curve(counts, totals, classes, order)
    return _size_bars(counts, totals, classes, np.arange(len(classes)) if len(classes) <= MOST_UNSORTED else order)


def _about_sizes(totals: npt.NDArray[np.int64]) -> str:
    most, least, empty = int(totals.max()), int(totals.min()), int((totals == 0).sum())
    title = f"{totals.sum():,} images of {len(totals):,} classes"
    if most == least:
        return f"{title}, {most:,} of each"
    title += f"\nthe largest class has {most:,}, the smallest {least:,}: "
    if not least:
        return title + f"{empty:,} of the classes without any image"
    return title + f"imbalance {most / least:,.{0 if most >= 10 * least else 1}f} to 1"


def _size_bars(
    counts: Counts, totals: npt.NDArray[np.int64], classes: Sequence[str], order: npt.NDArray[np.int64]
) -> Figure:
    num_classes = len(classes)
    figure = Figure(figsize=(9, 1.6 + max(0.3 if num_classes <= 20 else 0.2, 1 / num_classes) * num_classes))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    places, base = np.arange(num_classes), np.zeros(num_classes, np.int64)
    for split, values in counts.items():
        axes.barh(places, values[order], left=base, height=0.78, color=_COLOURS.get(split), label=split or "images")
        base = base + values[order]
    size = 10 if num_classes <= 20 else 8
    names = [fitting(classes[k], 32) for k in order]
    axes.set_yticks(places, names, fontsize=size, fontfamily=fonts(), parse_math=False)
    axes.set_ylim(num_classes - 0.4, -0.6)
    for place, total in zip(places, totals[order], strict=True):
        axes.annotate(
            f"{total:,}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=size - 1, color=GREY
        )
    axes.set_xlim(0, max(1, totals.max()) * 1.08)
    axes.set_xlabel("images")
    figure.suptitle(_about_sizes(totals))  # over the whole width: long names leave the axes a narrow one
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _tidy(figure, axes, grid="x")
    return figure


def _size_curve(
    counts: Counts, totals: npt.NDArray[np.int64], classes: Sequence[str], order: npt.NDArray[np.int64]
) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    uneven = bool(totals.max() > totals.min())
    axes, *beside = figure.subplots(1, 1 + uneven, width_ratios=(4, 1.15)[: 1 + uneven], squeeze=False)[0]
    places, base = np.arange(1, len(classes) + 1), np.zeros(len(classes), np.int64)
    for split, values in counts.items():
        top = base + values[order]
        axes.fill_between(places, base, top, step="mid", color=_COLOURS.get(split), lw=0, label=split or "images")
        base = top
    median = float(np.median(totals))
    axes.axhline(median, color="black", linestyle=":", lw=1, label=f"median {median:,.0f}")
    steep = totals.max() > STEEP * max(1, totals.min())
    if steep:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0.5 if steep else 0, max(1, totals.max()) * (1.5 if steep else 1.08))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(0.5, len(classes) + 0.5)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("classes, from the largest to the smallest")
    axes.set_ylabel("images (logarithmic)" if steep else "images")
    figure.suptitle(_about_sizes(totals))
    if uneven:
        _name_ends(beside[0], totals, classes, order)
    _tidy(figure, axes, grid="y")
    return figure


def _name_ends(axes: Axes, totals: npt.NDArray[np.int64], classes: Sequence[str], order: npt.NDArray[np.int64]) -> None:
    lines = []
    for name, numbers in (("largest", order[:NAMED_ENDS]), ("smallest", order[-NAMED_ENDS:])):
        lines += [f"{name}:", *(f"{totals[k]:,}  {fitting(classes[k], 26)}" for k in numbers), ""]
    axes.set_axis_off()
    axes.text(
        0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.5, fontfamily=fonts(), parse_math=False,
        transform=axes.transAxes,
    )  # fmt: skip


def _tidy(figure: Figure, axes: Axes, *, grid: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def sample_grid(images: Sequence[Sequence[Pixels]], classes: Sequence[str], *, title: str) -> Figure:
    """Some images of each class, a block a class, the classes' order running down the columns.

    Of more than MOST_SAMPLED_CLASSES classes that many are shown, evenly chosen, and the title says so.

    Args:
        images: for each of the C classes its samples, each (H, W, 1|3) of any size.
        classes: the C class names.
        title: what the figure shows.
    """
    shown = list(range(len(classes)))
    if len(classes) > MOST_SAMPLED_CLASSES:
        shown = [round(k) for k in np.linspace(0, len(classes) - 1, MOST_SAMPLED_CLASSES)]
        title += f" ({len(shown)} of {len(classes):,} classes)"
    most = max(1, *(len(images[k]) for k in shown))
    a_line = min(most, 10)
    lines = math.ceil(most / a_line)
    room = int(np.clip(1300 / math.sqrt(len(shown) * lines * a_line), 48, 112))
    side = side_for([image for k in shown for image in images[k]], room)
    width, height = max(a_line * (side + 3), 190), LINE + lines * (side + 3) + 8
    columns = _columns(len(shown), width + 16, height)
    rows = math.ceil(len(shown) / columns)
    sheet = Sheet(columns * (width + 16) - 16, rows * height, title=title)
    for place, k in enumerate(shown):
        x, y = place // rows * (width + 16), place % rows * height
        sheet.text(classes[k], x, y, width=width)
        for number, image in enumerate(images[k]):
            sheet.tile(image, x + number % a_line * (side + 3), y + LINE + number // a_line * (side + 3), side)
    return sheet.figure()


def _columns(count: int, width: int, height: int) -> int:
    """Columns in which so many blocks make a page that is a little wider than high."""
    return min(range(1, count + 1), key=lambda c: max(c * width / 1.2, math.ceil(count / c) * height))


def size_scatter(widths: npt.NDArray[np.int64], heights: npt.NDArray[np.int64], *, title: str) -> Figure:
    """Widths and heights of images, with common aspect ratios as lines.

    Equal sizes are one point whose area grows with their number; of more than 2,000 different sizes, neighbours share
    a cell whose colour says how many they are.

    Args:
        widths, heights: (N,) pixels, N > 0.
        title: what the figure shows.
    """
    sizes, counts = np.unique(np.stack([widths, heights], axis=1), axis=0, return_counts=True)
    figure = Figure(figsize=(8.4, 7.4), layout="compressed")
    axes = figure.subplots()
    middle = math.sqrt(float(sizes.min()) * float(sizes.max()))
    reach = max(2.0, 1.4 * sizes.max() / middle)
    low, high = middle / reach, middle * reach
    figure.suptitle(f"{title}\n{_about_shapes(sizes, counts)}", parse_math=False, fontfamily=fonts())
    if len(sizes) > MOST_POINTS:
        cells = axes.hexbin(
            sizes[:, 0], sizes[:, 1], C=counts, reduce_C_function=np.sum, gridsize=70, xscale="log", yscale="log",
            bins="log", cmap="viridis_r", mincnt=1, extent=(*np.log10([low, high]), *np.log10([low, high])), lw=0.1,
        )  # fmt: skip
        form = StrMethodFormatter("{x:,.0f}")
        figure.colorbar(cells, ax=axes, fraction=0.046, pad=0.06, label="images", format=form)
    else:
        _draw_points(axes, sizes, counts)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="width (px)", ylabel="height (px)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5) if high / low < 40 else (1.0,), numticks=50))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    _draw_ratios(axes, low, high)
    return figure


def _about_shapes(sizes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> str:
    total = int(counts.sum())
    width, height = sizes[counts.argmax()]
    if len(sizes) == 1:
        return f"all {total:,} images are {width:,} × {height:,}"
    share = counts.max() / total
    return f"{len(sizes):,} sizes of {total:,} images; the most frequent, {width:,} × {height:,}, has {share:.1%}"


def _draw_points(axes: Axes, sizes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
    most = int(counts.max())

    def area(count: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray(12 + 600 * (count - 1) / max(1, most - 1))

    # The large ones first, so that they do not hide the small.
    order = np.argsort(-counts)
    xs, ys = sizes[order].T
    axes.scatter(xs, ys, s=area(counts[order]), color=BLUE, alpha=0.45, lw=0.4, edgecolors="white", zorder=3)
    if most > 1 and len(sizes) > 1:
        examples = np.unique([1, max(1, round(most / 10)), most])
        for count, size in zip(examples, area(examples), strict=True):
            axes.scatter([], [], s=size, color=BLUE, alpha=0.45, label=f"{count:,}")
        axes.legend(
            title="images of one size",
            loc="lower right",
            frameon=False,
            labelspacing=1.4,
            borderpad=1.2,
            handletextpad=1.4,
        )


def _draw_ratios(axes: Axes, low: float, high: float) -> None:
    for a, b in RATIOS:
        for x, y in {(a, b), (b, a)}:
            ends = np.array([low, high])
            axes.plot(ends, ends * y / x, color=GREY, lw=0.7, alpha=0.35 if a != b else 0.7, zorder=1)
            # Where the line leaves the axes: at the top for standing images, at the right for lying ones.
            place = (high * x / y, high) if y >= x else (high, high * y / x)
            if min(place) > low:
                shift = (0, 3) if y >= x else (4, 0)
                axes.annotate(
                    f"{x}:{y}", place, shift, textcoords="offset points", fontsize=7, color=GREY,
                    ha="center" if y >= x else "left", va="bottom" if y >= x else "center", annotation_clip=False,
                    rotation=90 if y > x else 0,
                )  # fmt: skip


def image_pairs(pairs: Sequence[tuple[Pixels, Pixels]], captions: Sequence[tuple[str, str]], *, title: str) -> Figure:
    """Pairs of images side by side, such as duplicates.

    Of more than MOST_PAIRS pairs the first are shown, and the title says so.

    Args:
        pairs: N pairs of images, each (H, W, 1|3) of any size.
        captions: N pairs of texts to stand below them; each may have several lines.
        title: what the figure shows.
    """
    shown = list(zip(pairs, captions, strict=True))[:MOST_PAIRS]
    if len(pairs) > len(shown):
        title += f" (the first {len(shown)} of {len(pairs):,} pairs)"
    room = 180 if len(shown) <= 9 else 150
    side = side_for([image for pair, _ in shown for image in pair], room)
    room = max(side, 150)  # for the texts
    lines = max((len(text.splitlines()) for _, texts in shown for text in texts), default=1)
    width, height = 2 * room + 6, side + lines * LINE + 16
    columns = max(1, min(len(shown), 4, _columns(max(1, len(shown)), width + 24, height)))
    sheet = Sheet(columns * (width + 24) - 24, math.ceil(len(shown) / columns) * height, title=title)
    for place, (pair, texts) in enumerate(shown):
        x, y = place % columns * (width + 24), place // columns * height
        for half, (image, text) in enumerate(zip(pair, texts, strict=True)):
            left = x + half * (room + 6)
            sheet.tile(image, left, y, side)
            for number, line in enumerate(text.splitlines()):
                sheet.text(line, left, y + side + 2 + number * LINE, width=room)
    return sheet.figure()


def augmentation_preview(
    originals: Sequence[Pixels], variants: Sequence[Sequence[Pixels]], captions: Sequence[str], *, title: str
) -> Figure:
    """One row an image: the original, then its augmented versions.

    Args:
        originals: N images, each (H, W, 1|3) of any size.
        variants: for each of them its versions, each (S, S, 1|3).
        captions: N lines of text to stand above the rows.
        title: what the figure shows.
    """
    most = max(map(len, variants))
    side = side_for([image for row in variants for image in row], 144)
    gap, step, height = 16, side + 4, LINE + side + 8
    width = side + gap + most * step
    sheet = Sheet(width, LINE + 6 + len(originals) * height, title=title)
    sheet.text("original", 0, 0, width=side + gap, colour=GREY)
    sheet.text("as training sees it", side + gap, 0, width=most * step, colour=GREY)
    for row, (original, versions, caption) in enumerate(zip(originals, variants, captions, strict=True)):
        y = LINE + 6 + row * height
        sheet.text(caption, 0, y, width=width)
        sheet.tile(original, 0, y + LINE, side)
        for number, image in enumerate(versions):
            sheet.tile(image, side + gap + number * step, y + LINE, side)
    return sheet.figure()
