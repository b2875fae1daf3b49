"""The figure of a range test renders for any curve."""

import math
from pathlib import Path

import numpy as np
import pytest

from imgcls.evaluation import plots
from tests.evaluation.test_plots import png

RATES = np.geomspace(1e-6, 10, 50)


@pytest.mark.parametrize("lr", [1e-3, None])
@pytest.mark.parametrize("last", [100.0, math.nan, math.inf])
def test_a_range_test_renders(tmp_path: Path, lr: float | None, last: float) -> None:
    losses = np.linspace(2.3, 0.5, 50)
    losses[-1] = last
    figure = plots.range_test(RATES, losses, losses, lr=lr, tenth=lr, title="plaincnn on $x_")
    plots.save(figure, tmp_path / "rates.png")
    assert min(png(tmp_path / "rates.png")) > 400
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert low < 0.55
    assert 2.3 < high < 5, "what diverged is not shown"
    assert len(axes.get_lines()) == (2 if lr is None else 5)


@pytest.mark.parametrize("losses", [[math.nan], [2.0], [0.0, 0.0]])
def test_hardly_any_points_render(tmp_path: Path, losses: list[float]) -> None:
    values = np.array(losses)
    figure = plots.range_test(RATES[: len(values)], values, values, lr=None, tenth=None, title="x")
    plots.save(figure, tmp_path / "rates.png")
    png(tmp_path / "rates.png")
