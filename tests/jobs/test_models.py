"""The tables of `imgcls models`."""

import pytest

from imgcls.errors import UserError
from imgcls.jobs.models import describe_family, list_families
from imgcls.models.family import FAMILIES


def described(name: str | None, texts: dict[str, str] | None = None) -> str:
    return describe_family(name, texts or {}, image_size=32, num_classes=10, in_channels=1)


def test_every_family_is_listed_with_its_parameters_and_weights() -> None:
    lines = list_families().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == FAMILIES.names()
    cells = {line.split()[0]: line.split()[1:] for line in lines[:-1]}
    assert cells["resnet18"] == ["11,689,512", "46.8", "IMAGENET1K_V1"]
    assert cells["resnet50"] == ["25,557,032", "102.2", "IMAGENET1K_V1,", "IMAGENET1K_V2"]
    assert cells["quizdnn"] == [f"{299_018 + 990 * 65:,}", "1.5", "-"]
    assert cells["family"] == ["parameters", "MB", "weights"]


def test_a_list_can_be_cut_down_to_a_part_of_a_name() -> None:
    assert [line.split()[0] for line in list_families("CNN").splitlines()[1:-1]] == [
        name for name in FAMILIES.names() if "cnn" in name
    ]
    with pytest.raises(UserError, match=r"no model family has .resnet19. in its name\. Did you mean 'resnet18'"):
        list_families("resnet19")


def test_a_description_is_a_table_of_stages_with_a_total() -> None:
    texts = {"model.num_blocks": "2", "model.channels": "4", "model.freeze_depth": "block1"}
    assert described("plaincnn", texts) == (
        "stage   output   parameters  trained     MACs  receptive field\n"
        "block1  4x16x16         196        0  184,320                6\n"
        "block2  8x16x16         896      896  221,184               14\n"
        "head    10               90       90       80           global\n"
        "total                 1,182      986  405,584\n"
        "plaincnn, 0.0 MB, for 1x32x32 and 10 classes; frozen: block1.\n"
        "MACs: multiply-accumulates for one image. Receptive field: pixels, with the gates of "
        "squeeze-and-excitation held constant.\n"
    )


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("resnet19", {}, r"unknown model family 'resnet19'; known: .*Did you mean 'resnet18'"),
        (None, {}, "which network"),
        ("resnet18", {"optim.lr": "1"}, r"--optim\.lr is no field of a network"),
        ("resnet18", {"model.family": "plaincnn"}, r"--model\.family is no field of a network"),
        ("resnet18", {"model.depth": "1"}, r"unknown field 'model\.depth'"),
        ("resnet18", {"model.freeze_depth": "6"}, "found 6; expected 0, .*1 stem, 2 layer1"),
    ],
)
def test_what_cannot_be_described_is_an_error(name: str | None, texts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        described(name, texts)
