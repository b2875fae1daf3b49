"""Batches cut out of images in a device's memory, on the CPU, where they are the same but for the speed."""

from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from imgcls.data.augment import AugmentConfig, evaluation_pipeline
from imgcls.data.decode import Pixels
from imgcls.data.loading import Loader
from imgcls.data.resident import ResidentLoader, Shifts, shifts_of
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import prepare
from imgcls.recipe import resolve

SIZE = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)


class Block:
    """Images of one size."""

    def __init__(self, pixels: Pixels = PIXELS, size: tuple[int, int] | None = None) -> None:
        self._pixels = pixels
        self.size: tuple[int, int] | None = size or (pixels.shape[1], pixels.shape[2])

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Pixels:
        found: Pixels = self._pixels[index]
        return found

    def gather(self, rows: Any) -> Pixels:
        found: Pixels = self._pixels[np.asarray(rows)]
        return found


def loader(images: Block | None = None, *, shuffle: bool = True) -> Loader:
    block = Block() if images is None else images
    labels = np.arange(len(block), dtype=np.int64)
    return Loader(block, labels, evaluation_pipeline(SIZE, 1.0), batch_size=16, seed=3, shuffle=shuffle)


def resident(shifts: Shifts, **options: Any) -> ResidentLoader:
    return ResidentLoader(loader(**options), shifts, device="cpu", image_size=SIZE)


def config(*steps: Any) -> AugmentConfig:
    return AugmentConfig.model_validate({"image_size": SIZE, "pipeline": list(steps)})


def test_without_variation_the_batches_are_the_loaders() -> None:
    for ours, theirs in zip(resident(Shifts()).epoch(2), loader().epoch(2), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.seed == theirs.seed


@pytest.mark.parametrize(("border", "mode"), [(4, "reflect"), (1, "edge"), (0, "constant")])
def test_each_image_is_a_window_of_its_padded_self_mirrored_or_not(border: int, mode: Any) -> None:
    shifts, seen = Shifts(padding=2, border=border, horizontal=0.5, vertical=0.5), set()
    padded = np.pad(PIXELS, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    for epoch in range(1, 6):
        for batch in resident(shifts).epoch(epoch):
            for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
                [found] = [
                    (y, x, flips)
                    for y in range(5)
                    for x in range(5)
                    for flips in ((1, 1), (1, -1), (-1, 1), (-1, -1))
                    if np.array_equal(image, padded[label, y : y + SIZE, x : x + SIZE][:: flips[0], :: flips[1]])
                ]
                seen.add(found)
    assert {place[0] for place in seen} == {place[1] for place in seen} == set(range(5))
    assert {place[2] for place in seen} == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_the_border_is_that_of_albumentations() -> None:
    step = A.Pad(padding=3, border_mode=4)
    padded = step(image=PIXELS[0])["image"]
    expected = np.pad(PIXELS[0], ((3, 3), (3, 3), (0, 0)), mode="reflect")
    assert np.array_equal(padded, expected)


def test_an_epoch_is_the_same_again_and_from_its_middle_on_and_unlike_another() -> None:
    batches = resident(Shifts(2, horizontal=0.5))
    once = [batch.images for batch in batches.epoch(1)]
    again = [batch.images for batch in batches.epoch(1)]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    rest = [batch.images for batch in batches.epoch(1, start=1)]
    assert all(torch.equal(a, b) for a, b in zip(once[1:], rest, strict=True))
    assert not torch.equal(once[0], next(iter(batches.epoch(2))).images)
    assert len(batches) == len(once) == 3


def test_a_pass_over_every_image_once_is_varied_as_the_epoch_is() -> None:
    batches = resident(Shifts(2, horizontal=0.5))
    epoch = {
        int(label): image for batch in batches.epoch(3) for image, label in zip(batch.images, batch.labels, strict=True)
    }
    seen: list[int] = []
    for rows, batch in batches.each_once(3):
        assert list(rows) == batch.labels.tolist()
        assert all(torch.equal(image, epoch[row]) for row, image in zip(rows, batch.images, strict=True))
        seen += rows
    assert sorted(seen) == list(range(len(PIXELS)))
    assert [row for rows, _ in resident(Shifts(), shuffle=False).each_once(0) for row in rows] == sorted(seen)


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.from_numpy(np.repeat(PIXELS[:1], 4000, axis=0))
    flipped = Shifts(horizontal=0.5).apply(images, torch.Generator().manual_seed(0))
    share = (flipped != images).flatten(1).any(1).float().mean()
    assert 0.46 < share < 0.54


@pytest.mark.parametrize(
    ("steps", "shifts"),
    [
        ([], Shifts()),
        (["HorizontalFlip"], Shifts(horizontal=0.5)),
        (
            [{"Pad": {"padding": 2, "border_mode": 4}}, {"RandomCrop": {}}, {"HorizontalFlip": {"p": 0.25}}],
            Shifts(2, 4, 0.25),
        ),
        ([{"Pad": {"padding": 1}}, {"RandomCrop": {"height": 8, "width": 8}}, "VerticalFlip"], Shifts(1, 0, 0, 0.5)),
    ],
)
def test_a_written_pipeline_of_crops_and_flips_is_understood(steps: list[Any], shifts: Shifts) -> None:
    assert shifts_of(config(*steps), image_size=SIZE) == shifts


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([{"Rotate": {"limit": 10}}], "Rotate"),
        ([{"RandomCrop": {}}], "one of Pad and RandomCrop without the other"),
        (["HorizontalFlip", {"Pad": {"padding": 1}}, {"RandomCrop": {}}], "HorizontalFlip, Pad, RandomCrop"),
        ([{"Pad": {"padding": 2, "border_mode": 2}}, {"RandomCrop": {}}], "'border_mode': 2"),
        ([{"Pad": {"padding": 8, "border_mode": 4}}, {"RandomCrop": {}}], "pads 8 pixels by 8"),
    ],
)
def test_other_variation_is_an_error_that_says_what_can_be_done(steps: list[Any], found: str) -> None:
    with pytest.raises(UserError, match=r"data\.device is cuda") as caught:
        shifts_of(config(*steps), image_size=SIZE)
    assert found in str(caught.value)
    assert "Pad with padding" in str(caught.value)


def test_a_preset_with_more_than_flips_is_an_error() -> None:
    with pytest.raises(UserError, match=r"augment\.preset is standard"):
        shifts_of(AugmentConfig.model_validate({"image_size": SIZE}), image_size=SIZE)
    plain = AugmentConfig.model_validate({"image_size": SIZE, "preset": "none"})
    assert shifts_of(plain, image_size=SIZE) == Shifts(horizontal=0.5)


def test_images_of_several_sizes_are_an_error() -> None:
    block = Block()
    block.size = None
    with pytest.raises(UserError, match=r"the images are of several sizes; expected all of 8x8"):
        resident(Shifts(), images=block)


def test_beside_a_training_on_the_cpu_it_is_an_error_before_there_is_a_run() -> None:
    with pytest.raises(UserError, match=r"data\.device is cuda, but the training is on the cpu"):
        prepare(resolve("digits", {"data.device": "cuda", "train.device": "cpu"}), Console(quiet=True))
