"""The views of test-time augmentation: which they are, and that random ones depend on nothing but the image's name."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from imgcls.data.augment import AugmentConfig, Preprocessing
from imgcls.data.decode import DecodeError
from imgcls.errors import UserError
from imgcls.inference.views import ViewMaker, Views
from tests.inference.test_classifier import MIXED, noise, png

STEPS = Preprocessing(3, 16, (0.5,) * 3, (0.25,) * 3)
LARGE = Preprocessing(3, 72, (0.5,) * 3, (0.25,) * 3, 0.7)
RANDOM = Views(3, "train", augment=AugmentConfig(preset="strong"))


@pytest.mark.parametrize("steps", [STEPS, LARGE])
@pytest.mark.parametrize("views", [Views(), Views(5), Views(10), Views(4, "flips"), Views(2, "flips")])
@pytest.mark.parametrize("image", MIXED)
def test_the_first_view_is_what_evaluation_sees(steps: Preprocessing, views: Views, image: np.ndarray) -> None:
    found = ViewMaker(steps, views)(image)
    assert found.shape == (views.num, steps.image_size, steps.image_size, 3)
    assert np.array_equal(found[0], steps.load(image))


def test_a_single_train_view_is_what_evaluation_sees_and_needs_no_training() -> None:
    assert np.array_equal(ViewMaker(STEPS, Views(1, "train"))(MIXED[0])[0], STEPS.load(MIXED[0]))


def test_crops_are_the_middle_its_mirror_image_the_corners_and_theirs() -> None:
    image = np.zeros((18, 18, 3), np.uint8)  # 16 px of 18, which is the wide size: no resizing in the way
    corners = {(0, 0): 50, (0, -1): 100, (-1, 0): 150, (-1, -1): 200}
    for place, value in corners.items():
        image[place] = value
    found = ViewMaker(STEPS, Views(10))(image)
    assert np.array_equal(found[1], found[0][:, ::-1])
    for view, (place, value) in zip(found[2:6], corners.items(), strict=True):
        assert view[place].tolist() == [value] * 3
        assert (view > 0).sum() == 3, "no other corner is in it"
    assert np.array_equal(found[6:10], found[2:6, :, ::-1])
    assert np.array_equal(ViewMaker(STEPS, Views(4))(image), found[:4])


def test_flips_are_mirrored_left_to_right_upside_down_and_both() -> None:
    first, *others = ViewMaker(STEPS, Views(4, "flips"))(MIXED[1])
    for view, expected in zip(others, (first[:, ::-1], first[::-1], first[::-1, ::-1]), strict=True):
        assert np.array_equal(view, expected)


def test_bytes_and_pixels_have_the_same_views() -> None:
    maker = ViewMaker(STEPS, Views(10))
    assert np.array_equal(maker(png(MIXED[0])), maker(MIXED[0]))
    with pytest.raises(DecodeError, match="cannot be decoded"):
        maker(b"no image")


def test_random_views_are_those_of_the_name_in_any_order_and_any_thread() -> None:
    names = [f"photo {number}" for number in range(40)]
    image = noise(20, 20)
    maker = ViewMaker(STEPS, RANDOM)
    expected = {name: maker(image, name) for name in names}
    again = {name: maker(image, name) for name in reversed(names)}
    with ThreadPoolExecutor(4) as pool:
        apart = dict(zip(names, pool.map(lambda name: ViewMaker(STEPS, RANDOM)(image, name), names), strict=True))
    for name in names:
        assert np.array_equal(expected[name], again[name])
        assert np.array_equal(expected[name], apart[name])
    assert len({view.tobytes() for views in expected.values() for view in views}) > 100, "they are random"


def test_another_seed_draws_other_views() -> None:
    other = Views(3, "train", augment=RANDOM.augment, seed=1)
    image = noise(20, 20)
    assert not np.array_equal(ViewMaker(STEPS, RANDOM)(image, "a"), ViewMaker(STEPS, other)(image, "a"))


def test_a_name_that_is_no_utf_8_has_random_views_too() -> None:
    assert ViewMaker(STEPS, RANDOM)(noise(20, 20), "\udcff.png").shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("num", "kind", "message"),
    [
        (11, "crops", "found 11 views of the kind crops; expected 1 to 10; views of the kind train"),
        (5, "flips", "found 5 views of the kind flips; expected 1 to 4;"),
        (1001, "train", r"found 1001 views of the kind train; expected 1 to 1000\.$"),
        (0, "crops", "found 0 views"),
    ],
)
def test_a_number_of_views_that_there_are_not_is_an_error(num: int, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Views(num, kind)  # type: ignore[arg-type]


def test_train_views_without_a_training_are_an_error() -> None:
    with pytest.raises(UserError, match=r"need the training's recipe.*crops or flips"):
        ViewMaker(STEPS, Views(2, "train"))
