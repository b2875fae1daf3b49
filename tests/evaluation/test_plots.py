"""Figures render for few and many classes and epochs, and for any class name."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.evaluation import plots
from imgcls.tables import History

NAMES = [
    "American Staffordshire terrier",
    "n02123045 tabby cat",
    "$x_{1}$ \\frac",
    "日本語の犬",
    "two\nlines",
    "_",
    " ",
]


def png(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5, "the figure is blank"
    return pixels.shape[1], pixels.shape[0]


@pytest.mark.parametrize("num_classes", [2, 10, 50, 1500])
def test_a_confusion_matrix_renders(tmp_path: Path, num_classes: int) -> None:
    rng = np.random.default_rng(0)
    counts = np.diag(rng.integers(20, 60, num_classes)) + rng.poisson(0.3, (num_classes, num_classes))
    classes = [f"{NAMES[k % len(NAMES)]} {k}" for k in range(num_classes)]
    figure = plots.confusion(counts, classes, title="Validation")
    plots.save(figure, tmp_path / "new/folder/confusion.png")
    width, height = png(tmp_path / "new/folder/confusion.png")
    assert 400 < min(width, height) <= max(width, height) < 2000
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(axes.texts) == (np.count_nonzero(counts) if num_classes <= 60 else 0)
    assert (len(labels) == num_classes) == (num_classes <= 60)
    assert ("neighbours a cell" in axes.get_xlabel()) == (num_classes > 250)


def test_a_matrix_with_classes_that_never_occur_renders(tmp_path: Path) -> None:
    plots.save(plots.confusion(np.zeros((3, 3), np.int64), ["a", "b", "c"], title="x"), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_short_names_stay_level_and_long_ones_keep_both_ends() -> None:
    digits = plots.confusion(np.eye(10, dtype=np.int64), [str(k) for k in range(10)], title="x").axes[0]
    assert digits.get_xticklabels()[0].get_rotation() == 0
    names = ["American Staffordshire terrier", "American Staffordshire puppies"]
    long = plots.confusion(np.eye(2, dtype=np.int64), names, title="x").axes[0]
    shown = [label.get_text() for label in long.get_xticklabels()]
    assert shown == ["American Staff…e terrier", "American Staff…e puppies"]
    assert long.get_xticklabels()[0].get_rotation() == 90


@pytest.mark.parametrize("num_epochs", [1, 3, 100])
def test_curves_render(tmp_path: Path, num_epochs: int) -> None:
    names = ("train/loss", "train/acc", "val/loss", "val/acc", "lr")
    history = History([{"epoch": k, **dict.fromkeys(names, 1 / k)} for k in range(1, num_epochs + 1)])
    figure = plots.curves(history, best_epoch=num_epochs)
    plots.save(figure, tmp_path / "curves.png")
    assert png(tmp_path / "curves.png")[0] > 1000
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks == [round(tick) for tick in ticks]
        assert ticks


def test_curves_of_a_validation_loss_that_is_no_number_render(tmp_path: Path) -> None:
    row = {"epoch": 1.0, "train/loss": 1.0, "train/acc": 0.5, "val/loss": math.nan, "val/acc": 0.1, "lr": 0.1}
    plots.save(plots.curves(History([row, {**row, "epoch": 2.0}]), best_epoch=1), tmp_path / "curves.png")
    png(tmp_path / "curves.png")
