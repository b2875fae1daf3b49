"""Figures of an evaluation render for two and for 1,500 classes, and say what they show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from imgcls.evaluation import plots
from imgcls.evaluation.classes import class_table
from imgcls.evaluation.metrics import confusion_matrix
from imgcls.evaluation.scores import scores
from imgcls.tables import Predictions
from tests.evaluation.test_intervals import predictions
from tests.evaluation.test_plots import NAMES, png
from tests.evaluation.test_plots_data import drawn, has_tile, noise
from tests.evaluation.test_plots_sweep import texts

pytestmark = pytest.mark.slow


def counts_of(given: Predictions) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return confusion_matrix(given.labels, given.predicted, len(given.classes))


DRAWN: dict[str, Callable[[Predictions], Figure]] = {
    "confusion": lambda given: plots.confusion(counts_of(given), given.classes, title="$x_", normalised=True),
    "most_confused": lambda given: plots.most_confused(counts_of(given), given.classes, title="$x_"),
    "roc": lambda given: plots.roc(given, title="$x_"),
    "precision_recall": lambda given: plots.precision_recall(given, title="$x_"),
    "reliability": lambda given: plots.reliability(given, title="$x_"),
    "coverage": lambda given: plots.coverage(given, title="$x_"),
    "class_recalls": lambda given: plots.class_recalls(class_table(given), title="$x_"),
}


def case(num_classes: int) -> Predictions:
    given = predictions(min(40 * num_classes, 3000), num_classes, skill=1 + np.log(num_classes))
    return replace(given, classes=tuple(f"{NAMES[k % len(NAMES)]} {k}" for k in range(num_classes)))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("num_classes", [2, 10, 50, 1500])
def test_a_figure_renders(name: str, num_classes: int, tmp_path: Path) -> None:
    plots.save(DRAWN[name](case(num_classes)), tmp_path / "x.png")
    width, height = png(tmp_path / "x.png")
    assert 200 < min(width, height) <= max(width, height) < 2000


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(("labels", "skill"), [([0], 0.0), ([0, 0, 0], 9.0), ([1, 0, -1], -9.0), ([0, 1, 2], 30.0)])
def test_hardly_any_images_render(name: str, labels: list[int], skill: float, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(len(labels), 4))
    logits[np.arange(len(labels)), labels] += skill
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = Predictions([str(k) for k in range(len(labels))], probs.astype(np.float32), np.array(labels), tuple("abcd"))
    if name in ("confusion", "most_confused"):
        given = replace(given, labels=np.maximum(given.labels, 0))
    plots.save(DRAWN[name](given), tmp_path / "x.png")
    png(tmp_path / "x.png")


def test_a_normalised_matrix_writes_per_cents_that_never_round_to_all_or_nothing() -> None:
    counts = np.array([[999, 1], [3, 1]])
    cells = {text.get_text() for text in plots.confusion(counts, ["a", "b"], title="x", normalised=True).axes[0].texts}
    assert cells == {">99", "<1", "75", "25"}
    raw = {text.get_text() for text in plots.confusion(counts, ["a", "b"], title="x").axes[0].texts}
    assert raw == {"999", "1", "3"}


def test_of_many_classes_the_most_confused_ones_and_pairs_are_named() -> None:
    counts = np.diag(np.full(1500, 10))
    counts[700, 1200], counts[3, 4] = 5, 2
    found = texts(plots.most_confused(counts, [f"class {k}" for k in range(1500)], title="x"))
    assert "4 of 1,500" in found
    assert "2 of 2" in found
    assert found.index("class 700") < found.index("class 1200") < found.index("class 3\n")
    assert "33%" in found
    nothing = plots.most_confused(np.diag([3, 4]), ["a", "b"], title="x")
    assert "no image is taken for another class" in texts(nothing)


@pytest.mark.parametrize(("name", "figure"), [("auc", plots.roc), ("ap", plots.precision_recall)])
def test_the_legend_has_the_mean_and_all_classes_or_the_ends(name: str, figure: Callable[..., Figure]) -> None:
    for num_classes, rows in ((3, 1 + 3), (12, 1 + 2 + 8)):
        given = case(num_classes)
        labels = [text.get_text() for text in figure(given, title="x").legends[0].get_texts()]
        assert labels[0] == f"{scores(given)[name]:.4f}  mean of {num_classes} classes"
        assert len(labels) == rows
        areas = [float(label[:6]) for label in labels[1:] if label[0] in "01"]
        assert areas == sorted(areas)


def test_roc_curves_in_the_corner_are_enlarged() -> None:
    near = predictions(600, 6, skill=6.0)
    assert [len(axes.child_axes) for axes in plots.roc(near, title="x").axes] == [1]
    assert [len(axes.child_axes) for axes in plots.roc(predictions(600, 6), title="x").axes] == [0]


def test_the_reliability_diagram_says_the_error_and_counts_the_images() -> None:
    given = predictions(300)
    figure = plots.reliability(given, title="x")
    assert f"ECE {scores(given)['ece']:.4f}" in figure.axes[0].get_title()
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 300  # type: ignore[attr-defined]


def test_recalls_of_many_classes_are_those_of_the_hardest_and_the_easiest() -> None:
    table = class_table(predictions(3000, 40))
    figure = plots.class_recalls(table, title="x")
    assert [axes.get_title() for axes in figure.axes] == [
        "The 15 hardest of 40 classes",
        "The 15 easiest of 40 classes",
    ]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]  # type: ignore[attr-defined]
    recalls = sorted(table["recall"])
    assert widths[0] == pytest.approx(recalls[:15])
    assert widths[1] == pytest.approx(recalls[:-16:-1])


def test_classes_without_images_are_counted_and_not_drawn() -> None:
    given = predictions(100, 3)
    given = replace(given, labels=np.minimum(given.labels, 1))
    figure = plots.class_recalls(class_table(given), title="x")
    assert figure.get_suptitle() == "x (1 class without images left out)"
    assert len(figure.axes[0].patches) == 2


def test_a_gallery_shows_every_image_with_its_lines(tmp_path: Path) -> None:
    images = [noise(8, 8), noise(8, 6, 1), noise(12, 20)]
    figure = plots.gallery([(image, ("$x_ cat 98%", f"true: {k}")) for k, image in enumerate(images)], title="Worst")
    page = drawn(figure, tmp_path)
    assert all(has_tile(page, image, 22 if k < 2 else 8) for k, image in enumerate(images))
    assert {"$x_ cat 98%", "true: 0", "true: 2"} <= set(texts(figure).splitlines())


def test_a_gallery_of_too_many_says_so_and_one_of_none_too(tmp_path: Path) -> None:
    figure = plots.gallery([(noise(8, 8), ("a",))] * 50, title="Worst")
    assert "the first 42 of 50" in " ".join(texts(figure).split())
    plots.save(plots.gallery([], title="Worst"), tmp_path / "x.png")
    assert "Worst: none" in texts(plots.gallery([], title="Worst"))
