"""How many views are kept, and what is refused."""

from typing import Any

import pytest
import torch

from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.training.views import Choice, Situation, choose_views, output_bytes


def network(depth: int) -> StagedModel:
    model = build_plaincnn(PlainCNNConfig(num_blocks=2, channels=4), num_classes=2, in_channels=1, image_size=16)
    model.freeze(depth)
    return model


def situation(depth: int = 2, **fields: Any) -> Situation:
    given = {
        "epochs": 20, "varied": True, "mixes": False, "output_bytes": 100, "image_bytes": 50,
        "num_train": 10, "num_val": 5, "budget": 10_000,
    }  # fmt: skip
    return Situation(network(depth), **{**given, **fields})


@pytest.mark.parametrize(
    ("epochs", "views"), [(1, 0), (2, 1), (3, 1), (4, 2), (29, 2), (30, 3), (99, 9), (100, 9), (1000, 9)]
)
def test_auto_keeps_two_views_or_one_for_every_ten_epochs_as_far_as_they_fit(epochs: int, views: int) -> None:
    assert choose_views("auto", situation(epochs=epochs)) == Choice(views)


def test_auto_keeps_ten_views_at_most() -> None:
    assert choose_views("auto", situation(epochs=1000, budget=10**9)) == Choice(10)


def test_auto_keeps_one_view_of_images_that_do_not_vary_at_any_depth() -> None:
    assert [choose_views("auto", situation(depth, varied=False)).num_views for depth in (0, 1, 2)] == [0, 1, 1]


def test_auto_keeps_nothing_where_more_than_the_head_learns_from_varied_images() -> None:
    assert choose_views("auto", situation(1)) == Choice(0)


@pytest.mark.parametrize("fields", [{"mixes": True}, {"epochs": 1}])
def test_auto_keeps_nothing_where_that_is_wrong_or_saves_nothing(fields: dict[str, Any]) -> None:
    assert choose_views("auto", situation(**fields)) == Choice(0)


def test_auto_keeps_nothing_that_is_larger_than_four_times_the_pixels_and_says_so() -> None:
    assert choose_views("auto", situation(output_bytes=200)) == Choice(2)
    choice = choose_views("auto", situation(output_bytes=201))
    assert choice.num_views == 0
    assert choice.note.startswith("what block2 gives takes 0.2 KiB an image, more than 4 times its pixels, so the ")


def test_auto_keeps_nothing_that_does_not_fit_and_says_so() -> None:
    assert choose_views("auto", situation(budget=1500)) == Choice(1)
    choice = choose_views("auto", situation(budget=1499))
    assert choice.num_views == 0
    assert choice.note.startswith("what block2 gives takes 1.5 KiB, more than data.store_budget, so the frozen ")


def test_off_keeps_nothing() -> None:
    assert choose_views("off", situation(varied=False)) == Choice(0)


def test_a_number_is_kept_at_any_depth_and_size_but_never_more_than_epochs_or_variations() -> None:
    assert choose_views(3, situation(1, output_bytes=240)) == Choice(3)
    assert choose_views(7, situation(epochs=2)) == Choice(2)
    assert choose_views(7, situation(varied=False)) == Choice(1)


def test_a_number_without_frozen_stages_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^train\.cache_features is 4, but no stage is frozen\. Set model\.freeze"):
        choose_views(4, situation(0))


def test_a_number_beside_mixing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^train\.cache_features is 4, but mixup and cutmix mix .* to off\.$"):
        choose_views(4, situation(mixes=True))


def test_a_number_that_does_not_fit_is_an_error_that_says_how_many_do() -> None:
    with pytest.raises(UserError) as caught:
        choose_views(20, situation())
    assert str(caught.value) == (
        "train.cache_features is 20: 20 views of 10 images, and 5 of validation, take 20.0 KiB at 0.1 KiB an image; "
        "expected at most 9.8 KiB, which is data.store_budget. Raise that, or lower train.cache_features to 9 or less."
    )
    with pytest.raises(UserError, match=r"Raise that, or set it to off\.$"):
        choose_views(1, situation(budget=0))


@pytest.mark.parametrize(("precision", "each"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_the_size_of_an_output_is_that_of_the_stage_in_the_precision(precision: str, each: int) -> None:
    model = network(1)
    model.stages["block1"] = torch.nn.Conv2d(1, 6, 3, stride=2)
    assert output_bytes(model, precision, channels=1, image_size=9) == 6 * 4 * 4 * each
