"""Pipelines and preprocessing: sizes, seeds, figures by hand, and the same pixels in training and serving."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

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
from imgcls.data.augment.presets import Preset
from imgcls.data.images import open_images
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest

PRESETS: tuple[Preset, ...] = get_args(Preset)
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


@pytest.mark.parametrize("preset", PRESETS)
def test_without_flips_no_preset_mirrors(preset: Preset) -> None:
    pipeline = training_pipeline(AugmentConfig(preset=preset, horizontal_flip=False), size=32, channels=1)
    ramp = np.tile(np.linspace(60, 190, 32, dtype=np.uint8), (32, 1))[:, :, None]
    rising = []
    for _ in range(40):
        columns = pipeline(ramp).astype(float).mean((0, 2))
        rising.append(columns[20:].mean() > columns[:12].mean())
    # Solarising, or a hole on one side, turns a few of the ramps of `strong` around.
    assert sum(rising) >= (25 if preset in ("strong", "cifar") else 40)


def test_the_hole_of_cifar_is_half_as_wide_as_the_image_and_has_the_colour_of_the_mean() -> None:
    config = AugmentConfig(preset="cifar", horizontal_flip=False)
    pipeline = training_pipeline(config, size=32, channels=3, mean=(0.2, 0.4, 0.6))
    image = np.zeros((32, 32, 3), np.uint8)
    holes = [int((pipeline(image) == (51, 102, 153)).all(2).sum()) for _ in range(100)]
    assert set(holes) == {0, 16 * 16}
    assert 30 < sum(hole > 0 for hole in holes) < 70


def test_the_crops_of_animals_show_seventy_percent_or_more() -> None:
    pipeline = training_pipeline(AugmentConfig(preset="animals", horizontal_flip=False), size=40, channels=1)
    assert repr(pipeline._compose.transforms[0].scale) == "(0.7, 1.0)"
    assert pipeline._compose.transforms[1].limit == (-30, 30)


def test_the_transforms_of_a_pipeline_are_drawn_apart_from_each_other() -> None:
    steps = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    pipeline = training_pipeline(AugmentConfig(pipeline=steps), size=8, channels=1)
    image = noise(8, 8, 1)
    turned = {"none": image, "left": image[:, ::-1], "up": image[::-1], "both": image[::-1, ::-1]}
    counts = dict.fromkeys(turned, 0)
    for seed in range(100):
        pipeline.seed(seed)
        for _ in range(4):
            result = pipeline(image)
            counts[next(name for name, other in turned.items() if np.array_equal(result, other))] += 1
    assert all(70 < count < 130 for count in counts.values())


def test_a_null_preset_or_flip_is_the_default() -> None:
    assert AugmentConfig(preset=None, horizontal_flip=None) == AugmentConfig()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mix_prob": 0.5}, "nothing to mix with"),
        ({"mix_prob": 0, "mixup": 1}, "greater than 0"),
        ({"mixup": -0.1}, "greater than or equal to 0"),
        ({"cutmix": 1000}, "less than or equal to 100"),
        ({"preset": "light", "pipeline": []}, "Set augment.preset to null"),
        ({"horizontal_flip": True, "pipeline": []}, "Set augment.horizontal_flip to null"),
        ({"horizontal_flip": False, "preset": "none", "pipeline": []}, "augment.preset and augment.horizontal_flip"),
    ],
)
def test_fields_without_a_use_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig.model_validate(fields)


def test_evaluation_takes_the_middle_of_a_small_image_whole() -> None:
    image = noise(10, 16)
    assert np.array_equal(evaluation_pipeline(10)(image), image[:, 3:13])


def test_evaluation_takes_the_share_that_is_asked_for() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, 50:250] = 255  # the square in the middle
    image[:10] = image[-10:] = 128
    assert (evaluation_pipeline(100, 1.0)(image)[0] == 128).all()
    assert (evaluation_pipeline(100, 0.8)(image) == 255).all()
    config = AugmentConfig(eval_crop=0.9, normalize="none")
    steps = preprocessing(config, size=100, channels=3, train_images=[image])
    assert steps.eval_crop == 0.9
    assert Preprocessing.from_dict(steps.as_dict()) == steps
    assert Preprocessing.from_dict({"channels": 1, "image_size": 8, "mean": [0], "std": [1]}).eval_crop is None


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


def test_the_constants_go_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would be waited for at each copy; what a prediction made must do for a training."""
    steps = Preprocessing(3, 4, (0.1, 0.2, 0.3), (0.31, 0.32, 0.33))
    batch = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    with torch.inference_mode():
        first = steps.to_input(batch).tolist()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", None)
        second = steps.to_input(batch)
    assert second.tolist() == first
    weight = torch.ones((), requires_grad=True)
    torch.autograd.backward((second * weight).sum())
    expected = (batch.permute(0, 3, 1, 2) / 255 - torch.tensor(steps.mean)[:, None, None]) / torch.tensor(steps.std)[
        :, None, None
    ]
    assert torch.allclose(second, expected, atol=1e-5)


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


class Counted:
    """Images that count how often they are read."""

    def __init__(self, count: int = 5) -> None:
        self.images = [noise(8, 8, 3, seed) for seed in range(count)]
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pixels:
        self.reads += 1
        return self.images[index]


def of_contents(*contents: str) -> Manifest:
    return Manifest.build([{"id": str(k), "label": 0, "content": c} for k, c in enumerate(contents)], classes=["a"])


MEASURED = AugmentConfig(normalize="dataset")


def test_statistics_are_measured_once_for_the_same_contents_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    images, train = Counted(), of_contents(*"abcde")
    bare = preprocessing(MEASURED, size=8, channels=3, train_images=images)
    first = preprocessing(MEASURED, size=8, channels=3, train_images=images, train=train)
    assert images.reads == 10
    assert preprocessing(MEASURED, size=8, channels=3, train_images=images, train=train) == first == bare
    assert images.reads == 10
    preprocessing(MEASURED, size=9, channels=3, train_images=images, train=train)
    preprocessing(MEASURED, size=8, channels=3, train_images=images, train=of_contents(*"abcdf"))
    assert images.reads == 20


@pytest.mark.parametrize("damage", ["", "{}", '{"mean": [1], "std": [1]}', '{"mean": 1, "std": 2}', "[]"])
def test_statistics_that_were_damaged_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    images, train = Counted(), of_contents(*"abcde")
    first = preprocessing(MEASURED, size=8, channels=3, train_images=images, train=train)
    [path] = (tmp_path / "cache").rglob("statistics.json")
    path.write_text(damage)
    assert preprocessing(MEASURED, size=8, channels=3, train_images=images, train=train) == first


def test_statistics_need_no_cache_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "file"))
    images = Counted()
    found = preprocessing(MEASURED, size=8, channels=3, train_images=images, train=of_contents(*"abcde"))
    assert found == preprocessing(MEASURED, size=8, channels=3, train_images=images)
    assert images.reads == 10


def test_images_without_a_content_hash_have_no_statistics_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    preprocessing(MEASURED, size=8, channels=3, train_images=Counted(2), train=of_contents("", ""))
    assert not (tmp_path / "cache").exists()


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
@pytest.mark.parametrize("crop", [None, 0.8, 1.0])
def test_serving_sees_the_very_pixels_that_training_saw(
    make_folder: Callable[..., Path], size: int, channels: int, ending: str, image: tuple[int, int], crop: float | None
) -> None:
    manifest = scan(FolderConfig(root=str(make_folder(classes=2, images=2, size=image, ending=ending))))
    steps = Preprocessing(channels, size, (0.5,) * channels, (0.5,) * channels, crop)
    images = open_images(manifest, channels=channels, short_side=steps.store_size, budget=2**24)
    for row, path in enumerate(manifest.frame["path"]):
        trained = evaluation_pipeline(size, crop)(images[row])
        assert trained.shape == (size, size, channels)
        assert np.array_equal(steps.load(Path(path).read_bytes()), trained)


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_the_array_of_their_pixels_load_the_same(tmp_path: Path, channels: int) -> None:
    pixels = noise(90, 100)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    steps = Preprocessing(channels, 70, (0.5,) * channels, (0.5,) * channels)
    assert np.array_equal(steps.load((tmp_path / "x.png").read_bytes()), steps.load(pixels))
    assert np.array_equal(steps.load(pixels[:, :, 0]), steps.load(pixels[:, :, :1]))
