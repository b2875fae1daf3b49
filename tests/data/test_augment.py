"""Pipelines and preprocessing: sizes, seeds, figures by hand, and the same pixels in training and serving."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from imgcls.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    Preprocessing,
    evaluation_pipeline,
    preprocessing,
    resolve_image_size,
    training_pipeline,
)
from imgcls.data.images import open_images
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest

Preset = Literal["none", "light", "standard"]
PRESETS: list[Preset] = ["none", "light", "standard"]
Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 64, 65, 96])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_asked_size_and_channels(preset: Preset, size: int, channels: int) -> None:
    pipeline = training_pipeline(AugmentConfig(preset=preset), size=size, channels=channels)
    for height, width in [(size, size), (size * 2, size + 3), (5, 9), (1, 90)]:
        image = pipeline(noise(height, width, channels))
        assert image.shape == (size, size, channels)
        assert image.dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 80])
@pytest.mark.parametrize("preset", PRESETS)
def test_equal_seeds_repeat_the_variations_and_others_do_not(preset: Preset, size: int, channels: int) -> None:
    pipeline = training_pipeline(AugmentConfig(preset=preset), size=size, channels=channels)
    other = training_pipeline(AugmentConfig(preset=preset), size=size, channels=channels)
    image = noise(size + 10, size + 5, channels)

    def stream(chosen: Any, seed: int) -> list[bytes]:
        chosen.seed(seed)
        return [chosen(image).tobytes() for _ in range(8)]

    first = stream(pipeline, 7)
    assert stream(pipeline, 8) != first
    assert stream(pipeline, 7) == first
    assert stream(other, 7) == first
    assert len(set(first)) > 1


@pytest.mark.parametrize("size", [16, 80])
def test_no_preset_and_no_flip_change_nothing(size: int) -> None:
    pipeline = training_pipeline(AugmentConfig(preset="none", horizontal_flip=False), size=size, channels=3)
    image = noise(size, size)
    assert all(np.array_equal(pipeline(image), image) for _ in range(4))


def test_a_pipeline_leaves_its_input_alone() -> None:
    image = noise(90, 90)
    before = image.copy()
    training_pipeline(AugmentConfig(preset="standard"), size=80, channels=3)(image)
    assert np.array_equal(image, before)


def test_half_of_the_training_images_are_mirrored() -> None:
    pipeline = training_pipeline(AugmentConfig(preset="none"), size=8, channels=1)
    image = noise(8, 8, 1)
    mirrored = sum(np.array_equal(pipeline(image), image[:, ::-1]) for _ in range(200))
    assert 70 < mirrored < 130


def test_evaluation_takes_the_middle_of_a_small_image_whole() -> None:
    image = noise(10, 16)
    assert np.array_equal(evaluation_pipeline(10)(image), image[:, 3:13])


def test_evaluation_takes_seven_eighths_of_a_large_image() -> None:
    image = noise(80, 80)
    assert np.array_equal(evaluation_pipeline(70)(image), image[5:75, 5:75])


def test_a_configured_size_is_taken_as_it_is() -> None:
    empty = Manifest.build([], classes=["a"])
    assert resolve_image_size(AugmentConfig(image_size=33), empty) == 33


@pytest.mark.parametrize(("sizes", "expected"), [([20, 30, 90], 30), ([2, 3, 4], 8), ([300, 400, 500], 224)])
def test_an_automatic_size_is_the_median_shorter_side(tmp_path: Path, sizes: list[int], expected: int) -> None:
    rows = []
    for side in sizes:
        Image.new("L", (side, side + 7)).save(tmp_path / f"{side}.png")
        rows.append({"id": str(side), "path": str(tmp_path / f"{side}.png")})
    assert resolve_image_size(AugmentConfig(), Manifest.build(rows, classes=["a"])) == expected


def test_an_automatic_size_looks_at_256_images_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(_manifest: Manifest, index: int) -> int:
        seen.append(index)
        return 40

    monkeypatch.setattr("imgcls.data.augment.config._short_side", look)
    for count, expected in [(1, 1), (256, 256), (257, 129), (511, 256), (512, 256), (10_000, 250)]:
        seen.clear()
        rows = [{"id": str(k), "path": str(tmp_path)} for k in range(count)]
        assert resolve_image_size(AugmentConfig(), Manifest.build(rows, classes=["a"])) == 40
        assert len(seen) == expected


def test_an_automatic_size_of_an_array_is_its_shorter_side() -> None:
    images = np.zeros((4, 12, 10), np.uint8)
    rows = [{"id": str(k), "row": k} for k in range(4)]
    assert resolve_image_size(AugmentConfig(), Manifest.build(rows, classes=["a"], images=images)) == 10


def test_an_automatic_size_of_an_unreadable_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    manifest = Manifest.build([{"id": "x", "path": str(tmp_path / "bad.png")}], classes=["a"])
    with pytest.raises(UserError, match=r"cannot read the image .*bad\.png"):
        resolve_image_size(AugmentConfig(), manifest)


def test_normalize_none_leaves_the_scale_from_0_to_1() -> None:
    steps = preprocessing(AugmentConfig(normalize="none"), size=8, channels=3, train_images=[])
    assert (steps.mean, steps.std) == ((0.0,) * 3, (1.0,) * 3)
    batch = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert steps.to_input(batch).flatten().tolist() == pytest.approx([0, 0.2, 1])


def test_normalize_imagenet_has_one_channel_for_grey() -> None:
    config = AugmentConfig(normalize="imagenet")
    assert preprocessing(config, size=8, channels=3, train_images=[]).mean == IMAGENET_MEAN
    grey = preprocessing(config, size=8, channels=1, train_images=[])
    assert (grey.mean, grey.std) == ((0.449,), (0.226,))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_dataset_measures_what_the_network_sees(channels: int) -> None:
    images = [noise(8, 8, channels, seed) // (1 + np.arange(channels, dtype=np.uint8)) for seed in range(5)]
    steps = preprocessing(AugmentConfig(normalize="dataset"), size=8, channels=channels, train_images=images)
    pixels = np.stack(images).reshape(-1, channels) / 255
    assert steps.mean == pytest.approx(pixels.mean(0), abs=1e-5)
    assert steps.std == pytest.approx(pixels.std(0), abs=1e-5)
    assert all(isinstance(value, float) for value in (*steps.mean, *steps.std))


def test_normalize_dataset_of_one_colour_stays_finite() -> None:
    images = [np.full((8, 8, 1), 90, np.uint8)]
    steps = preprocessing(AugmentConfig(normalize="dataset"), size=8, channels=1, train_images=images)
    assert steps.std[0] > 0
    assert torch.isfinite(steps.to_input(torch.from_numpy(images[0])[None])).all()


def test_the_input_equals_the_arithmetic_by_hand() -> None:
    steps = Preprocessing(3, 4, IMAGENET_MEAN, IMAGENET_STD)
    batch = np.stack([noise(4, 4, 3, seed) for seed in range(2)])
    expected = ((batch / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(0, 3, 1, 2)
    inputs = steps.to_input(torch.from_numpy(batch))
    assert inputs.dtype == torch.float32
    assert inputs.shape == (2, 3, 4, 4)
    assert np.allclose(inputs.numpy(), expected, atol=1e-5)


def test_preprocessing_survives_json() -> None:
    steps = Preprocessing(3, 96, IMAGENET_MEAN, (0.1, 0.2, 0.3))
    assert Preprocessing.from_dict(json.loads(json.dumps(steps.as_dict()))) == steps


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (8, 3), (70, 1), (70, 3)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("image", [(20, 16), (150, 100)])
def test_serving_sees_the_very_pixels_that_training_saw(
    make_folder: Callable[..., Path], size: int, channels: int, ending: str, image: tuple[int, int]
) -> None:
    manifest = scan(FolderConfig(root=str(make_folder(classes=2, images=2, size=image, ending=ending))))
    steps = Preprocessing(channels, size, (0.5,) * channels, (0.5,) * channels)
    images = open_images(manifest, channels=channels, short_side=steps.store_size, budget_mb=10)
    for row, path in enumerate(manifest.frame["path"]):
        trained = evaluation_pipeline(size)(images[row])
        assert trained.shape == (size, size, channels)
        assert np.array_equal(steps.load(Path(path).read_bytes()), trained)


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_the_array_of_their_pixels_load_the_same(tmp_path: Path, channels: int) -> None:
    pixels = noise(90, 100)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    steps = Preprocessing(channels, 70, (0.5,) * channels, (0.5,) * channels)
    assert np.array_equal(steps.load((tmp_path / "x.png").read_bytes()), steps.load(pixels))
    assert np.array_equal(steps.load(pixels[:, :, 0]), steps.load(pixels[:, :, :1]))
