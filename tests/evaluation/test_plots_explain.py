"""Heat maps over images render for one image as for many, and say what they show."""

from pathlib import Path

import numpy as np
import pytest

from imgcls.evaluation import plots
from imgcls.evaluation.plots.explain import overlaid
from tests.evaluation.test_plots import png
from tests.evaluation.test_plots_data import NAMES, drawn, has_tile, noise, texts


def item(size: int = 8, channels: int = 3, *, true: str = "cat", label: str = "cat", hot: float = 1.0) -> plots.HeatMap:
    heat = np.zeros((size, size), np.float32)
    heat[size // 4 : size // 2, size // 4 : size // 2] = hot
    return plots.HeatMap(noise(size, size, channels), heat, label, 0.004, "cat", 0.996, true)


@pytest.mark.parametrize("count", [1, 2, 8, 24, 32])
@pytest.mark.parametrize("size", [8, 32, 96, 224])
def test_any_number_of_images_of_any_size_renders(tmp_path: Path, count: int, size: int) -> None:
    items = [item(size, 1 + 2 * (k % 2), true=NAMES[k % len(NAMES)], label=NAMES[k % 3]) for k in range(count)]
    plots.save(plots.heat_maps(items, title="Where $x_ looked"), tmp_path / "x.png")
    width, height = png(tmp_path / "x.png")
    assert 150 < min(width, height) <= max(width, height) < 2000


def test_an_image_stands_beside_its_map(tmp_path: Path) -> None:
    shown = item()
    page = drawn(plots.heat_maps([shown], title="x"), tmp_path)
    assert has_tile(page, shown.pixels, 27)
    assert has_tile(page, overlaid(shown.pixels, shown.heat), 27)


def test_a_caption_says_what_was_predicted_what_is_true_and_what_is_explained() -> None:
    def lines(shown: plots.HeatMap) -> list[str]:
        return texts(plots.heat_maps([shown], title="x"))[2:-1]

    assert lines(item()) == ["cat >99%", "true: cat"]
    assert lines(item(true="dog", label="dog")) == ["cat >99%", "true: dog", "map of: dog <1%"]
    assert lines(item(true="")) == ["cat >99%"]
    assert lines(item(hot=0)) == ["cat >99%", "true: cat", "nothing speaks for it"]


def test_a_true_class_that_was_missed_has_another_colour() -> None:
    def colour(shown: plots.HeatMap) -> object:
        (axes,) = plots.heat_maps([shown], title="x").axes
        return next(text.get_color() for text in axes.texts if text.get_text().startswith("true"))

    assert colour(item(true="dog")) != colour(item())


def test_a_cold_place_is_the_grey_image_and_a_hot_one_has_colour() -> None:
    shown = item()
    over = overlaid(shown.pixels, shown.heat).astype(int)
    spread = over.max(2) - over.min(2)
    assert (spread[shown.heat == 0] == 0).all()
    assert (spread[shown.heat == 1] > 60).all()
    assert np.allclose(over[0, 0, 0], shown.pixels[0, 0].mean(), atol=1)


def test_too_many_are_cut_off_and_none_is_said(tmp_path: Path) -> None:
    figure = plots.heat_maps([item()] * 40, title="Maps")
    assert "the first 32 of 40" in " ".join(texts(figure)[1].split())
    plots.save(plots.heat_maps([], title="Maps"), tmp_path / "x.png")
    assert "Maps: none" in " ".join(text.get_text() for text in plots.heat_maps([], title="Maps").texts)
