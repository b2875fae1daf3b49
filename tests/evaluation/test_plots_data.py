"""Figures of data sets stay readable from 2 to 1,500 classes, and images keep their pixels."""

import time
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure
from PIL import Image

from imgcls.evaluation import plots
from imgcls.evaluation.plots.base import fitting
from imgcls.evaluation.plots.sheet import fitted, side_for

NAMES = ["American Staffordshire terrier of the neighbours", "$x_{1}$ \\frac", "日本語の犬" * 8, "two\nlines", "_", " "]
Pixels = npt.NDArray[np.uint8]


def names(count: int) -> list[str]:
    return [f"{NAMES[k % len(NAMES)]} {k}" for k in range(count)]


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def drawn(figure: Figure, tmp_path: Path) -> Pixels:
    """The pixels of the saved figure."""
    plots.save(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def texts(figure: Figure) -> list[str]:
    title = figure.get_suptitle()
    return [title, *(text.get_text() for axes in figure.axes for text in axes.texts)]


def has_tile(page: Pixels, image: Pixels, times: int) -> bool:
    """Whether the image stands on the page, every pixel of it as a square of `times` pixels."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    big = rgb.repeat(times, axis=0).repeat(times, axis=1)
    corners = np.argwhere((page == big[0, 0]).all(axis=2))
    height, width = big.shape[:2]
    return any(np.array_equal(page[y : y + height, x : x + width], big) for y, x in corners)


# --- class_histogram


@pytest.mark.parametrize("num_classes", [2, 12, 50, 61, 1500])
def test_a_class_histogram_renders_quickly(tmp_path: Path, num_classes: int) -> None:
    rng = np.random.default_rng(0)
    counts = {split: rng.integers(1, 100, num_classes) for split in ("train", "val", "test")}
    begin = time.monotonic()
    page = drawn(plots.class_histogram(counts, names(num_classes)), tmp_path)
    assert time.monotonic() - begin < 10  # 0.3 s on an idle machine
    assert page.std() > 5
    assert max(page.shape) < 2000


def test_few_classes_keep_their_order_and_many_go_by_size() -> None:
    def shown(num_classes: int) -> list[str]:
        counts = {"train": np.arange(1, num_classes + 1)}
        axes = plots.class_histogram(counts, [f"c{k}" for k in range(num_classes)]).axes[0]
        return [label.get_text() for label in axes.get_yticklabels()]

    assert shown(3) == ["c0", "c1", "c2"]
    assert shown(13) == [f"c{k}" for k in range(12, -1, -1)]


def test_a_bar_is_as_long_as_its_split_and_starts_where_the_last_ended() -> None:
    counts = {"train": np.array([5, 7]), "val": np.array([2, 1])}
    axes = plots.class_histogram(counts, ["a", "b"]).axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]  # type: ignore[attr-defined]
    assert bars == [(0, 5), (0, 7), (5, 2), (7, 1)]
    assert [text.get_text() for text in axes.texts] == ["7", "8"]


def test_a_curve_names_the_largest_and_the_smallest_classes() -> None:
    counts = {"train": np.arange(1, 101)}
    [title, listed] = texts(plots.class_histogram(counts, [f"class{k:02}" for k in range(100)]))
    assert title == "5,050 images of 100 classes\nthe largest class has 100, the smallest 1: imbalance 100 to 1"
    lines = listed.splitlines()
    assert lines[:3] == ["largest:", "100  class99", "99  class98"]
    assert lines[-3:] == ["3  class02", "2  class01", "1  class00"]


@pytest.mark.parametrize(("ends", "scale"), [((10, 500), "linear"), ((10, 501), "log"), ((0, 51), "log")])
def test_a_curve_is_logarithmic_where_sizes_differ_much(ends: tuple[int, int], scale: str) -> None:
    counts = {"train": np.linspace(*ends, 100).astype(np.int64)}
    assert plots.class_histogram(counts, [str(k) for k in range(100)]).axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("sizes", "title"),
    [
        ([4, 4], "8 images of 2 classes, 4 of each"),
        ([3, 4], "7 images of 2 classes\nthe largest class has 4, the smallest 3: imbalance 1.3 to 1"),
        ([0, 4], "4 images of 2 classes\nthe largest class has 4, the smallest 0: 1 of the classes without any image"),
        ([0, 0], "0 images of 2 classes, 0 of each"),
    ],
)
def test_the_title_says_how_even_the_classes_are(sizes: list[int], title: str, tmp_path: Path) -> None:
    figure = plots.class_histogram({"train": np.array(sizes)}, ["a", "b"])
    assert texts(figure)[0] == title
    drawn(figure, tmp_path)


def test_many_classes_of_one_size_render_without_names(tmp_path: Path) -> None:
    figure = plots.class_histogram({"": np.full(1623, 20)}, names(1623))
    assert (texts(figure), len(figure.axes)) == (["32,460 images of 1,623 classes, 20 of each"], 1)
    drawn(figure, tmp_path)


# --- sheets of images


@pytest.mark.parametrize(("num_classes", "num_images"), [(2, 1), (2, 30), (10, 8), (50, 8), (60, 8), (1500, 2)])
def test_a_sample_grid_fits_a_screen(tmp_path: Path, num_classes: int, num_images: int) -> None:
    shapes = [(8, 8, 1), (300, 200, 3), (20, 90, 3), (1, 60, 3)]
    images = [[noise(*shapes[(k + n) % 4]) for n in range(num_images)] for k in range(num_classes)]
    page = drawn(plots.sample_grid(images, names(num_classes), title="Samples " * 20), tmp_path)
    assert page.std() > 5
    assert max(page.shape) < 2200


def test_a_grid_of_too_many_classes_says_which_part_it_shows() -> None:
    images = [[noise(4, 4)]] * 1500
    shown = texts(plots.sample_grid(images, [f"c{k}" for k in range(1500)], title="Samples"))
    assert shown[1] == "Samples (60 of 1,500 classes)"
    assert (len(shown), shown[2], shown[-1]) == (62, "c0", "c1499")


def test_small_images_are_enlarged_with_sharp_pixels_wherever_they_are_drawn(tmp_path: Path) -> None:
    colour, grey = noise(8, 8), noise(8, 8, 1)
    page = drawn(plots.sample_grid([[colour, grey], []], ["a", "b"], title="x"), tmp_path)
    assert has_tile(page, colour, 14)
    assert has_tile(page, grey, 14)
    page = drawn(plots.image_pairs([(colour, grey)], [("a", "b")], title="x"), tmp_path)
    assert has_tile(page, colour, 22)
    assert has_tile(page, grey, 22)
    page = drawn(plots.augmentation_preview([grey], [[noise(16, 16)] * 2], ["a"], title="x"), tmp_path)
    assert has_tile(page, grey, 18)
    assert has_tile(page, noise(16, 16), 9)


def test_a_large_image_is_averaged_down_with_its_shape_kept() -> None:
    image = np.zeros((100, 200, 1), np.uint8)
    image[:, ::2] = 200
    small = fitted(image, 50)
    assert small.shape == (25, 50, 3)
    assert (small == 100).all()
    assert fitted(noise(300, 1), 50).shape == (50, 1, 3)
    np.testing.assert_array_equal(fitted(noise(50, 30), 50), noise(50, 30))


def test_tiles_are_a_multiple_of_the_usual_image() -> None:
    assert [side_for([noise(size, size)], 144) for size in (8, 32, 100, 145)] == [144, 128, 100, 144]
    assert side_for([noise(32, 32), noise(32, 32), noise(20, 20)], 100) == 96
    assert side_for([], 144) == 144


def test_pairs_beyond_what_fits_are_counted_in_the_title() -> None:
    pairs = [(noise(4, 4), noise(4, 4))] * 30
    shown = texts(plots.image_pairs(pairs, [("one\ntrain", "two\nval")] * 30, title="Equal"))
    assert shown[1:6] == ["Equal (the first 24 of 30 pairs)", "one", "train", "two", "val"]
    assert len(shown) == 2 + 24 * 4


def test_sheets_without_a_picture_render(tmp_path: Path) -> None:
    drawn(plots.image_pairs([], [], title="No duplicates"), tmp_path)
    drawn(plots.sample_grid([[], []], ["a", "b"], title="No samples"), tmp_path)


def test_a_preview_has_a_caption_a_row() -> None:
    rows = [[noise(16, 16)] * 3, [noise(16, 16)] * 2]
    figure = plots.augmentation_preview([noise(9, 12, 1), noise(300, 200)], rows, ["one", "$two_$"], title="T")
    assert texts(figure) == ["", "T", "original", "as training sees it", "one", "$two_$"]


def test_names_fit_their_columns_where_letters_are_wide() -> None:
    assert fitting("cat", 11) == "cat"
    assert fitting("a" * 30, 30) == "a" * 30
    line = fitting("日本語の犬" * 8, 30)
    assert line.startswith("日本語")
    assert "…" in line
    assert len(line) <= 15


# --- size_scatter


@pytest.mark.parametrize("num_images", [1, 500, 100_000])
def test_sizes_render(tmp_path: Path, num_images: int) -> None:
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(20, 4000, (2, num_images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = drawn(plots.size_scatter(widths, heights, title="$a_ Sizes"), tmp_path)
    assert page.std() > 5


def test_many_equal_sizes_show_as_many() -> None:
    widths = np.array([320] * 90 + [640] * 10 + [100])
    figure = plots.size_scatter(widths, widths // 2, title="Sizes")
    areas = figure.axes[0].collections[0].get_sizes()  # type: ignore[attr-defined]
    assert list(areas) == sorted(areas, reverse=True)
    assert areas[0] / areas[-1] > 20
    assert texts(figure)[0] == "Sizes\n3 sizes of 101 images; the most frequent, 320 × 160, has 89.1%"


def test_images_of_one_size_are_said_to_be_so() -> None:
    figure = plots.size_scatter(np.full(60_000, 32), np.full(60_000, 24), title="Sizes")
    assert texts(figure)[0] == "Sizes\nall 60,000 images are 32 × 24"


def test_a_cell_counts_its_images_and_not_its_sizes() -> None:
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(100, 400, (2, 10_000))
    widths[:5000], heights[:5000] = 200, 200
    cells = plots.size_scatter(widths, heights, title="Sizes").axes[0].collections[0].get_array()
    assert cells is not None
    assert (int(cells.sum()), int(cells.max()) >= 5000) == (10_000, True)
