"""Overlaid curves render for two and for twenty runs."""

import math
from pathlib import Path

import pytest

from imgcls.evaluation import plots
from imgcls.tables import History
from tests.evaluation.test_plots import png


def history(top: float, epochs: int = 8) -> History:
    return History(
        [
            {
                "epoch": float(k), "train/loss": 2 / k, "val/loss": 2.2 / k, "train/acc": 1 - 1 / (k + 1),
                "val/acc": top * (1 - 1 / (k + 1)), "lr": 0.1,
            }
            for k in range(1, epochs + 1)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("num", [1, 2, 6, 20])
def test_the_legend_names_every_run_from_the_best_to_the_worst(num: int, tmp_path: Path) -> None:
    runs = {f"$run_{k} a name too long for a line, cut {k:02d}": history(0.5 + 0.02 * k, 3 + k) for k in range(num)}
    figure = plots.compared_curves(runs)
    plots.save(figure, tmp_path / "x.png")
    width, height = png(tmp_path / "x.png")
    assert 600 < height < width < 2000
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name[-2:] for name in names] == [f"{k:02d}" for k in reversed(range(num))]
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(styles) == num


def test_a_run_of_one_epoch_and_one_without_any_render(tmp_path: Path) -> None:
    figure = plots.compared_curves({"one": history(0.5, 1), "none": History([])})
    plots.save(figure, tmp_path / "x.png")
    assert len(figure.legends[0].get_texts()) == 1
    assert figure.get_supxlabel() == "without an epoch: none"
    plots.save(plots.compared_curves({"none": History([])}), tmp_path / "y.png")


def test_a_loss_that_explodes_or_is_no_number_leaves_the_others_in_sight(tmp_path: Path) -> None:
    bad = history(0.3)
    bad.rows[3]["val/loss"] = 1e9
    bad.rows[4].update({"val/loss": math.nan, "val/acc": math.nan})
    figure = plots.compared_curves({"bad": bad, **{str(k): history(0.5) for k in range(3)}})
    plots.save(figure, tmp_path / "x.png")
    assert figure.axes[1].get_ylim()[1] < 10
    assert "up to 1e+09" in [text.get_text() for text in figure.axes[1].texts]
