"""Figures of a sweep render for none, one and many trials, families and fields."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from imgcls.evaluation import plots
from imgcls.evaluation.leaderboard import finished
from imgcls.evaluation.plots.scales import MISSING, scale, shown_range
from tests.evaluation.test_plots import png
from tests.evaluation.trial_tables import FAMILIES, FIELDS, trial_table

Draw = Callable[[pd.DataFrame], Figure]
DRAWN: dict[str, Draw] = {
    "optimisation_history": lambda table: plots.optimisation_history(table, "val/acc"),
    "families": lambda table: plots.families(table, "val/acc"),
    "pareto": lambda table: plots.pareto(table, ["val/acc", "speed/images_per_s"]),
    "parallel_coordinates": lambda table: plots.parallel_coordinates(table, "val/acc"),
    "slices": lambda table: plots.slices(table, "val/acc"),
}


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(("num", "families", "fields"), [(1, 1, 2), (12, 3, 3), (60, 8, 12), (500, 8, 6)])
def test_a_figure_renders(name: str, num: int, families: int, fields: int, tmp_path: Path) -> None:
    plots.save(DRAWN[name](trial_table(num, families=families, fields=fields)), tmp_path / "x.png")
    width, height = png(tmp_path / "x.png")
    assert 400 < min(width, height) <= max(width, height) < 2500


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("num", [0, 6])
def test_as_long_as_no_trial_is_complete_the_figure_says_so(name: str, num: int, tmp_path: Path) -> None:
    figure = DRAWN[name](trial_table(num, families=2, finished=False))
    assert "no trial is complete yet" in texts(figure)
    plots.save(figure, tmp_path / "x.png")


@pytest.mark.parametrize("name", DRAWN)
def test_values_that_are_no_numbers_and_equal_ones_render(name: str, tmp_path: Path) -> None:
    table = trial_table(20, families=2, fields=4)
    table["val/acc"] = [math.nan, math.inf, *[0.5] * 18]
    table["optim.lr"] = 0.1
    table["train.batch_size"] = None
    plots.save(DRAWN[name](table), tmp_path / "x.png")
    png(tmp_path / "x.png")


@pytest.mark.parametrize("name", DRAWN)
def test_a_family_of_which_nothing_is_complete_renders(name: str, tmp_path: Path) -> None:
    table = trial_table(30, families=3)
    table.loc[table["family"] == FAMILIES[1], "state"] = "failed"
    plots.save(DRAWN[name](table), tmp_path / "x.png")


def test_each_family_has_its_colour_in_all_figures_and_pruned_trials_are_hollow() -> None:
    table = trial_table(60, families=3)
    figure = plots.optimisation_history(table, "val/acc")
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:3] == list(FAMILIES[:3])
    assert {"best so far", "pruned", "failed"} <= set(names)
    other = [text.get_text() for text in plots.families(table, "val/acc").legends[0].get_texts()]
    assert other[:3] == names[:3]
    bare = table.assign(**{"val/acc": table["val/acc"].where(table["state"] == "complete")})
    figure = plots.optimisation_history(bare, "val/acc")  # what they reported last is in their curves
    hollow = [
        len(points.get_offsets())  # type: ignore[arg-type]
        for points in figure.axes[0].collections
        if len(points.get_offsets()) and not len(points.get_facecolor())  # type: ignore[arg-type]
    ]
    assert sum(hollow) == int((table["state"] == "pruned").sum())


def test_the_best_so_far_never_falls_and_falls_for_a_loss() -> None:
    table = trial_table(40)
    for name, sign in (("val/acc", 1), ("val/loss", -1)):
        renamed = table.rename(columns={"val/acc": name})
        lines = plots.optimisation_history(renamed, name).axes[0].get_lines()
        steps = np.asarray(
            next(line for line in lines if line.get_drawstyle() == "steps-post").get_ydata(), dtype=float
        )
        assert len(steps) > 20
        assert (sign * np.diff(steps) >= 0).all()
        assert (np.diff(steps) != 0).any()


def test_one_hopeless_trial_does_not_squeeze_the_others() -> None:
    values = np.array([0.9, 0.91, 0.92, 0.93, 0.89, 0.1])
    low, high = shown_range(values, "val/acc")
    assert low > 0.7
    assert high > 0.93
    low, high = shown_range(np.array([0.3, 0.31, 0.35, 0.4, 1e6]), "val/loss")
    assert low < 0.3
    assert high < 1


def test_a_diverged_trial_does_not_squeeze_the_front() -> None:
    table = trial_table(40).rename(columns={"val/acc": "val/loss"})
    table.loc[0, "val/loss"] = 1e6
    figure = plots.pareto(table, ["val/loss", "speed/images_per_s"])
    assert figure.axes[0].get_ylim()[1] < 10
    assert figure.axes[0].get_title() == "some trials are far behind, off the axes"


def test_learning_rates_stand_on_a_logarithmic_axis_and_dropouts_on_a_linear_one() -> None:
    rates = scale([1e-4, 1e-3, 1e-2])
    assert rates.places.tolist() == pytest.approx([0, 0.5, 1])
    rng = np.random.default_rng(0)
    even = rng.uniform(0.001, 0.5, 50)
    assert scale(even.tolist()).places == pytest.approx((even - even.min()) / (even.max() - even.min()))
    assert scale([16, 32, 64]).places.tolist() == pytest.approx([0, 1 / 3, 1])


def test_names_and_what_is_missing_have_ticks_of_their_own() -> None:
    found = scale(["sgd", None, "adamw", float("nan"), "sgd"])
    assert found.places.tolist() == [1, MISSING, 0, MISSING, 1]
    assert found.ticks == {MISSING: "not set", 0: "adamw", 1: "sgd"}
    assert scale([True, False, 3]).ticks == {0: "3", 0.5: "False", 1: "True"}
    assert scale([None, None]).ticks == {MISSING: "not set"}


def test_parallel_coordinates_have_an_axis_a_field_and_one_for_the_families() -> None:
    table = trial_table(60, families=8, fields=12)
    axes = plots.parallel_coordinates(table, "val/acc").axes[0]
    names = [label.get_text().replace("\n", "") for label in axes.get_xticklabels()]
    assert names == ["family", *FIELDS]
    assert "not set" in [text.get_text() for text in axes.texts]
    assert len(axes.collections[0].get_paths()) == len(finished(table, "val/acc"))


@pytest.mark.parametrize("num_families", [1, 3, 8])
def test_the_importance_names_its_evaluator_and_the_families_without_enough_trials(
    num_families: int, tmp_path: Path
) -> None:
    shares = {"optim.lr": 0.7, "model.freeze_depth": 0.3}
    figure = plots.importance({**dict.fromkeys(FAMILIES[:num_families], shares), "late": {}}, "PED-ANOVA")
    assert "(PED-ANOVA)" in texts(figure)
    assert "too few complete trials: late" in texts(figure)
    assert "70%" in texts(figure)
    plots.save(figure, tmp_path / "x.png")
    png(tmp_path / "x.png")
    assert "too few trials" in texts(plots.importance({"a": {}}, "PED-ANOVA"))


def test_a_field_that_one_family_does_not_search_renders(tmp_path: Path) -> None:
    figure = plots.importance({"a": {"optim.lr": 1.0}, "b": {"optim.lr": 0.5, "model.dropout": 0.5}}, "fANOVA")
    assert "not searched" in texts(figure)
    plots.save(figure, tmp_path / "x.png")
