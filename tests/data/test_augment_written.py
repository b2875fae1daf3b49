"""Pipelines written in a recipe: every name and argument is checked, and what they make of images fits the network."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from imgcls.data.augment import AugmentConfig, Pipeline, training_pipeline
from imgcls.data.augment.written import KNOWN
from imgcls.errors import UserError
from imgcls.recipe import Resolved, json_schema, resolve

WRITTEN = """\
augment:
  image_size: 32
  pipeline:
    - RandomResizedCrop: {scale: [0.7, 1.0]}
    - HorizontalFlip
    - VerticalFlip:
    - Rotate: {limit: 30}
    - OneOf: {transforms: [{GaussianBlur: {}}, MotionBlur], p: 0.3}
"""
PLAIN = [
    {"RandomResizedCrop": {"scale": [0.7, 1.0]}},
    {"HorizontalFlip": {}},
    {"VerticalFlip": {}},
    {"Rotate": {"limit": 30}},
    {"OneOf": {"transforms": [{"GaussianBlur": {}}, {"MotionBlur": {}}], "p": 0.3}},
]
Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def recipe_of(steps: object, **fields: Any) -> Resolved:
    return resolve({"augment": {"pipeline": steps, **fields}})


def pipeline_of(*steps: object, size: int = 32, channels: int = 3) -> Pipeline:
    return training_pipeline(AugmentConfig.model_validate({"pipeline": list(steps)}), size=size, channels=channels)


def error_of(steps: object) -> str:
    with pytest.raises(UserError) as caught:
        recipe_of(steps)
    return str(caught.value).removeprefix("recipe: augment.pipeline: ")


def test_a_pipeline_is_read_from_a_file_in_one_plain_form(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(WRITTEN)
    augment = resolve(tmp_path / "mine.yaml").recipe.augment
    assert augment.pipeline == PLAIN
    assert (augment.preset, augment.horizontal_flip) == (None, None)


def test_a_pipeline_comes_back_from_yaml_and_from_a_command_line(tmp_path: Path) -> None:
    recipe = recipe_of(PLAIN).recipe
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert resolve(tmp_path / "again.yaml").recipe == recipe
    typed = {"augment.pipeline": json.dumps(PLAIN), "augment.preset": "null", "augment.horizontal_flip": "null"}
    augment = resolve("digits", texts=typed).recipe.augment
    assert augment.pipeline == PLAIN
    assert json.loads(json.dumps(recipe.flat()))["augment.pipeline"] == PLAIN
    assert recipe.replace({"augment.image_size": 48}).augment.pipeline == PLAIN


def test_a_pipeline_can_be_taken_back_for_a_preset() -> None:
    written = recipe_of(PLAIN).recipe.as_dict()
    augment = resolve(written, {"augment.pipeline": None, "augment.preset": "light"}).recipe.augment
    assert augment == AugmentConfig(preset="light")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            {"HorizontalFlop": {}},
            "found {'HorizontalFlop': {}}, albumentations 2.0.8 has no transform 'HorizontalFlop'. Did you mean "
            "'HorizontalFlip'?",
        ),
        (
            {"HorizontalFlip": {"prob": 0.5}},
            "found {'HorizontalFlip': {'prob': 0.5}}, HorizontalFlip has no argument 'prob'; it has p.",
        ),
        (
            {"ImageCompression": {"quality_lower": 3}},
            "found {'ImageCompression': {'quality_lower': 3}}, ImageCompression has no argument 'quality_lower'; it "
            "has compression_type, quality_range, p. Did you mean 'quality_range'?",
        ),
        (
            {"HorizontalFlip": {"p": 3}},
            "found {'HorizontalFlip': {'p': 3}}, HorizontalFlip: p: found 3, expected less than or equal to 1.",
        ),
        (
            {"CoarseDropout": {"num_holes_range": [3, 1]}},
            "found {'CoarseDropout': {'num_holes_range': [3, 1]}}, CoarseDropout: num_holes_range: found [3, 1], First "
            "value should be less than the second value, got (3, 1) instead.",
        ),
        (
            {"RandomSizedCrop": {}},
            "found {'RandomSizedCrop': {}}, RandomSizedCrop: min_max_height is missing.",
        ),
        (
            {"CropAndPad": {}},
            "found {'CropAndPad': {}}, CropAndPad: Both px and percent parameters cannot be None simultaneously.",
        ),
        (
            {"Normalize": {}},
            "found {'Normalize': {}}, Normalize cannot stand in a recipe: normalisation is augment.normalize.",
        ),
        (
            {"MixUp": {}},
            "found {'MixUp': {}}, MixUp cannot stand in a recipe: batches are mixed by augment.mixup.",
        ),
        (
            {"CenterCrop3D": {}},
            "found {'CenterCrop3D': {}}, CenterCrop3D cannot stand in a recipe: it takes volumes.",
        ),
        (
            {"OneOf": {"transforms": ["Blur", {"MotionBlurr": {}}]}},
            "found {'MotionBlurr': {}}, albumentations 2.0.8 has no transform 'MotionBlurr'. Did you mean "
            "'MotionBlur'?",
        ),
        (
            {"OneOf": {"transforms": ["Blur"], "p": 2}},
            "found {'OneOf': {'transforms': [{'Blur': {}}], 'p': 2}}, OneOf: p: expected less than or equal to 1.",
        ),
        (
            {"SomeOf": {"transforms": ["Blur"], "n": 2}},
            "found {'SomeOf': {'transforms': [{'Blur': {}}], 'n': 2}}, SomeOf: `n` is greater than number of "
            "transforms. `n` will be set to 1.",
        ),
        (
            {"OneOf": {"transforms": [{"Blur": {"p": 0}}]}},
            "found {'OneOf': {'transforms': [{'Blur': {'p': 0}}]}}, OneOf: every transform in it has p 0, so there is "
            "none to choose.",
        ),
        (
            {"Sequential": {}},
            "found {'Sequential': {}}, Sequential needs a list of transforms: {Sequential: {transforms: "
            "[{HorizontalFlip: {}}]}}.",
        ),
        (
            {"Blur": {"p": float("nan")}},
            "found {'Blur': {'p': nan}}, nan is no number, text, truth value, list or mapping.",
        ),
        (
            {"Blur": {}, "NoOp": {}},
            "found {'Blur': {}, 'NoOp': {}}, expected one transform with its arguments, such as {HorizontalFlip: {p: "
            "0.5}}.",
        ),
        (
            {"Blur": [3]},
            "found {'Blur': [3]}, expected a name and its arguments by name, such as {HorizontalFlip: {p: 0.5}}.",
        ),
        (
            "HorizontalFlop",
            "found 'HorizontalFlop', albumentations 2.0.8 has no transform 'HorizontalFlop'. Did you mean "
            "'HorizontalFlip'?",
        ),
        (7, "found 7, expected one transform with its arguments, such as {HorizontalFlip: {p: 0.5}}."),
    ],
)
def test_a_step_that_is_not_right_is_shown_with_the_reason(step: object, expected: str) -> None:
    assert error_of(["HorizontalFlip", step]) == expected


def test_a_pipeline_that_is_no_list_is_refused() -> None:
    assert error_of({"Blur": {}}) == (
        "found {'Blur': {}}, expected a list of transforms, such as [{HorizontalFlip: {p: 0.5}}]."
    )


def test_an_unknown_name_like_no_other_lists_the_known_ones() -> None:
    message = error_of(["Qqqq"])
    assert all(name in message for name in KNOWN)
    assert "Did you mean" not in message


def test_whatever_albumentations_only_warns_about_is_an_error() -> None:
    for name, argument in [("HorizontalFlip", "always_apply"), ("GaussNoise", "var_limit"), ("PadIfNeeded", "value")]:
        assert f"{name} has no argument {argument!r}" in error_of([{name: {argument: True}}])


def test_the_steps_of_old_projects_are_known() -> None:
    recipe_of(["HorizontalFlip", "ShiftScaleRotate", {"CoarseDropout": {"num_holes_range": [1, 1]}}])


NEEDY: dict[str, dict[str, Any]] = {
    "Crop": {"x_max": 20, "y_max": 20},
    "CropAndPad": {"px": 2},
    "GridElasticDeform": {"num_grid_xy": [3, 3], "magnitude": 4},
    "RandomSizedCrop": {"min_max_height": [10, 20]},
    "TimeMasking": {"time_mask_param": 10},
    "FrequencyMasking": {"freq_mask_param": 10},
    **{name: {"transforms": ["Blur", "HorizontalFlip"]} for name in ("OneOf", "SomeOf", "Sequential", "RandomOrder")},
}
COLOUR_ONLY = {
    "ChannelDropout", "ChromaticAberration", "HEStain", "HueSaturationValue", "ISONoise", "PlanckianJitter",
    "RandomFog", "RandomGravel", "RandomRain", "RandomSnow", "RandomSunFlare", "Spatter", "ToGray",
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_every_known_transform_gives_the_networks_size_repeats_by_seed_or_is_refused(name: str, channels: int) -> None:
    p = {} if name in ("D4", "SquareSymmetry") else {"p": 1.0}
    step = {name: {**p, **NEEDY.get(name, {})}}
    if channels == 1 and name in COLOUR_ONLY:
        with pytest.raises(
            UserError, match=rf"augment\.pipeline: {name} fails on an image of \d+x40 pixels and 1 channel:"
        ):
            pipeline_of(step, channels=1)
        return
    pipeline = pipeline_of(step, channels=channels)
    image = noise(40, 50, channels)

    def stream() -> list[bytes]:
        pipeline.seed(5)
        return [pipeline(image).tobytes() for _ in range(3)]

    first = stream()
    assert stream() == first
    result = pipeline(image)
    assert result.shape == (32, 32, channels)
    assert result.dtype == np.uint8


def test_images_of_any_shape_come_out_at_the_networks_size() -> None:
    pipeline = pipeline_of("HorizontalFlip", {"OneOf": {"transforms": ["RandomCrop", {"RandomScale": {}}], "p": 0.5}})
    for seed in range(20):
        pipeline.seed(seed)
        for height, width in [(40, 33), (90, 32), (32, 32), (32, 70)]:
            assert pipeline(noise(height, width)).shape == (32, 32, 3)


def test_sizes_that_are_left_out_are_the_networks() -> None:
    for name in ("RandomResizedCrop", "RandomCrop", "CenterCrop", "Resize"):
        assert pipeline_of(name)._compose(image=noise(40, 50))["image"].shape == (32, 32, 3)
    assert pipeline_of("SmallestMaxSize")._compose(image=noise(40, 80))["image"].shape == (32, 64, 3)
    assert pipeline_of("LongestMaxSize")._compose(image=noise(40, 80))["image"].shape == (16, 32, 3)
    assert pipeline_of("PadIfNeeded")._compose(image=noise(20, 50))["image"].shape == (32, 50, 3)
    assert pipeline_of({"RandomCrop": {"height": 20}})._compose(image=noise(40, 80))["image"].shape == (20, 32, 3)
    padded = pipeline_of({"PadIfNeeded": {"pad_height_divisor": 8, "pad_width_divisor": 8}})
    assert padded._compose(image=noise(21, 50))["image"].shape == (24, 56, 3)


def test_an_image_that_a_transform_fails_on_is_an_error_for_the_user() -> None:
    pipeline = pipeline_of({"Crop": {"x_min": 0, "y_min": 0, "x_max": 36, "y_max": 36}})
    assert pipeline(noise(40, 40)).shape == (32, 32, 3)
    with pytest.raises(UserError, match=r"augment\.pipeline fails on an image of 30x40 pixels and 3 channels: "):
        pipeline(noise(40, 30))


def test_an_empty_pipeline_only_sizes() -> None:
    image = noise(32, 32)
    assert np.array_equal(pipeline_of()(image), image)
    assert pipeline_of()(noise(64, 40)).shape == (32, 32, 3)


def test_the_schema_knows_every_transform() -> None:
    schema = json_schema()["properties"]["augment"]["properties"]["pipeline"]
    [steps] = [one for one in schema["anyOf"] if one.get("type") == "array"]
    texts, mappings = steps["items"]["anyOf"]
    assert texts["enum"] == mappings["propertyNames"]["enum"] == list(KNOWN)


def test_a_pipeline_is_yaml_that_a_person_can_read() -> None:
    text = recipe_of(PLAIN).recipe.to_yaml()
    assert yaml.safe_load(text)["augment"]["pipeline"] == PLAIN
    assert "&" not in text


def test_no_network_is_asked_for_a_newer_albumentations() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
