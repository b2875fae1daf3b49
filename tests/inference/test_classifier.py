"""A classifier on disk: the same probabilities, and errors for what is no classifier."""

import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from PIL import Image

from imgcls.data.augment import Preprocessing
from imgcls.data.decode import DecodeError
from imgcls.errors import UserError
from imgcls.inference.classifier import SPEC, WEIGHTS, Classifier, exact_convolutions
from imgcls.inference.ensemble import Ensemble
from imgcls.models.family import FAMILIES, ModelConfig, build
from imgcls.models.plaincnn import PlainCNNConfig
from tests.house.parsed import package_modules

Pixels = npt.NDArray[np.uint8]


def classifier(config: ModelConfig | None = None, *, channels: int = 3, size: int = 16) -> Classifier:
    torch.manual_seed(0)
    config = config or PlainCNNConfig(num_blocks=2, channels=4, dropout=0.3)
    module = build(config, num_classes=3, in_channels=channels, image_size=size)
    module.train()(torch.randn(8, channels, size, size))  # statistics of its own in the batch norms
    steps = Preprocessing(channels, size, (0.4,) * channels, (0.25,) * channels)
    return Classifier(module.eval(), config, steps, ("a", "b c", "日本"), 2)


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


MIXED = [noise(20, 30), noise(16, 16, 1), noise(5, 40, 2), noise(100, 90, 3)]


@pytest.mark.parametrize(
    ("channels", "size"),
    [(3, 16), (1, 16), (3, 72)],
)
def test_a_classifier_survives_the_disk(tmp_path: Path, channels: int, size: int) -> None:
    before = classifier(channels=channels, size=size)
    before.save(tmp_path / "new/folder")
    after = Classifier.load(tmp_path / "new/folder")
    assert (after.config, after.preprocessing, after.classes, after.top_k) == (
        before.config,
        before.preprocessing,
        before.classes,
        2,
    )
    assert not after.module.training
    assert np.array_equal(after.probabilities(MIXED), before.probabilities(MIXED))


@pytest.mark.parametrize("family", ["mobilenet_v3_small", "squeezenet1_1", "timm:test_vit"])
def test_a_library_s_network_survives_the_disk(tmp_path: Path, family: str) -> None:
    if family.startswith("timm:"):
        pytest.importorskip("timm")
    config = FAMILIES.get(family).config.model_validate({"family": family})
    before = classifier(config, channels=1, size=48)
    before.save(tmp_path)
    after = Classifier.load(tmp_path)
    assert after.config == config
    assert np.array_equal(after.probabilities(MIXED), before.probabilities(MIXED))


def test_probabilities_are_one_row_an_image_and_sum_to_one() -> None:
    probs = classifier().probabilities(MIXED)
    assert probs.shape == (4, 3)
    assert probs.dtype == np.float32
    assert np.allclose(probs.sum(1), 1, atol=1e-6)
    assert len({row.tobytes() for row in probs}) == 4


def test_bytes_and_arrays_of_the_same_pixels_agree() -> None:
    model = classifier()
    assert np.array_equal(model.probabilities([png(image) for image in MIXED]), model.probabilities(MIXED))


def test_grey_arrays_may_have_two_or_three_dimensions() -> None:
    for channels in (1, 3):
        model = classifier(channels=channels)
        grey = noise(20, 20, channels=1)
        shapes = [grey, grey[:, :, 0], grey.repeat(3, 2)]
        found = model.probabilities(shapes)
        assert np.allclose(found, found[:1], atol=1e-6)


def test_no_images_give_no_rows() -> None:
    assert classifier().probabilities([]).shape == (0, 3)


def test_the_batch_size_changes_nothing() -> None:
    model = classifier()
    images = MIXED * 3
    assert np.allclose(model.probabilities(images, batch_size=5), model.probabilities(images), atol=1e-6)


def test_bytes_that_are_no_image_are_an_error() -> None:
    with pytest.raises(DecodeError, match="cannot be decoded"):
        classifier().probabilities([png(MIXED[0]), b"no image"])


def test_an_image_that_cannot_be_read_spoils_its_own_row_only() -> None:
    model = classifier()
    images: list[bytes | Pixels] = [
        png(MIXED[0]),
        b"no image",
        MIXED[1],
        b"",
        png(MIXED[2])[:99],
        noise(9, 9, channels=4),
        MIXED[3],
    ]
    for batch_size in (1, 2, 64):
        probs, errors = model.try_probabilities(images, batch_size=batch_size)
        assert probs.dtype == np.float32
        assert [row for row, error in enumerate(errors) if error is not None] == [1, 3, 4, 5]
        assert all(isinstance(errors[row], DecodeError) for row in (1, 3, 4, 5))
        assert np.isnan(probs[[1, 3, 4, 5]]).all()
        assert np.allclose(probs[[0, 2, 6]], model.probabilities([MIXED[0], MIXED[1], MIXED[3]]), atol=1e-6)


def test_an_ensemble_leaves_out_the_same_rows_and_combines_the_others() -> None:
    members = (classifier(), classifier(size=24))
    model = Ensemble(members, (1.0, 3.0))
    images: list[bytes | Pixels] = [png(MIXED[0]), b"no image", MIXED[1]]
    probs, errors = model.try_probabilities(images)
    assert [error is None for error in errors] == [True, False, True]
    assert np.isnan(probs[1]).all()
    assert np.allclose(probs[[0, 2]], model.probabilities([images[0], images[2]]), atol=1e-6)
    assert model.try_probabilities([b"", b"x"])[0].shape == (2, 3)
    assert model.try_probabilities([])[0].shape == (0, 3)


def test_where_no_image_can_be_read_all_rows_are_errors() -> None:
    probs, errors = classifier().try_probabilities([b"", b"x"])
    assert probs.shape == (2, 3)
    assert np.isnan(probs).all()
    assert None not in errors
    assert classifier().try_probabilities([])[0].shape == (0, 3)


@pytest.mark.parametrize("threads", [1, 64])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(size=72)
    images = [png(noise(70 + 7 * k, 150 - 5 * k, k)) for k in range(20)]
    one_by_one = np.stack([model.preprocessing.load(image) for image in images])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    for _ in range(3):
        found = [pixels for batch in model._decoded(images, 6) for pixels in batch]
        assert np.array_equal(np.stack([np.asarray(pixels) for pixels in found]), one_by_one)


def test_an_array_with_four_channels_is_an_error() -> None:
    with pytest.raises(DecodeError, match=r"shape \(9, 9, 4\); expected \(H, W\)"):
        classifier().probabilities([noise(9, 9, channels=4)])


def test_the_files_hold_no_code_and_the_description_is_plain_json(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [SPEC, WEIGHTS]
    spec = json.loads((tmp_path / SPEC).read_text(encoding="utf-8"))
    assert spec["classes"] == ["a", "b c", "日本"]
    assert spec["model"]["family"] == "plaincnn"
    assert spec["preprocessing"]["image_size"] == 16


def test_the_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    classifier().save(tmp_path / "a")
    classifier(PlainCNNConfig(num_blocks=2, channels=8)).save(tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(UserError, match=rf"the weights in .*{WEIGHTS} do not fit {SPEC}"):
        Classifier.load(tmp_path / "a")


def test_weights_that_lack_a_part_are_an_error(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / WEIGHTS)
    weights.pop("head.1.bias")
    safetensors.torch.save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"do not fit(.|\n)*head\.1\.bias"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_weights_file_is_an_error(tmp_path: Path, keep: float) -> None:
    classifier().save(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match="holds no saved classifier"):
        Classifier.load(tmp_path)


def test_a_pickle_in_the_place_of_the_weights_is_an_error(tmp_path: Path) -> None:
    model = classifier()
    model.save(tmp_path)
    torch.save(model.module.state_dict(), tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="holds no saved classifier"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("name", [SPEC, WEIGHTS])
def test_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    classifier().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds no saved classifier"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.clear(),
        lambda spec: spec.pop("classes"),
        lambda spec: spec.update(model={"family": "unheard of"}),
        lambda spec: spec["model"].update(num_blocks="three"),
        lambda spec: spec.update(preprocessing=None),
        lambda spec: spec["preprocessing"].pop("mean"),
    ],
)
def test_a_description_that_does_not_describe_is_an_error(tmp_path: Path, change: Any) -> None:
    classifier().save(tmp_path)
    spec = json.loads((tmp_path / SPEC).read_text(encoding="utf-8"))
    change(spec)
    (tmp_path / SPEC).write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(UserError, match="holds no saved classifier"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"'])
def test_a_description_that_is_no_json_object_is_an_error(tmp_path: Path, text: str) -> None:
    classifier().save(tmp_path)
    (tmp_path / SPEC).write_text(text)
    with pytest.raises(UserError, match="holds no saved classifier"):
        Classifier.load(tmp_path)


def test_loading_draws_nothing_into_the_probabilities() -> None:
    first = classifier().probabilities(MIXED)
    torch.rand(9)
    again = classifier().probabilities(MIXED)
    assert np.array_equal(first, again)
    assert not any(math.isnan(value) for value in first.flat)


def test_a_cpu_computes_only_so_many_pixels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    images = [noise(16, 16, seed) for seed in range(10)]
    whole = model.probabilities(images)
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda _module, given: sizes.append(len(given[0])))
    steps = sys.modules["imgcls.data.augment.preprocessing"]  # the folder has a function of this name
    monkeypatch.setattr(steps, "MOST_PIXELS", 4 * 16 * 16)
    assert np.allclose(model.probabilities(images), whole, atol=1e-6)
    assert sizes == [4, 4, 2]
    sizes.clear()
    monkeypatch.setattr(steps, "MOST_PIXELS", 1)
    assert np.allclose(model.probabilities(images[:2]), whole[:2], atol=1e-6)
    assert sizes == [1, 1]


def test_exact_convolutions_are_cudnn_s_without_tf32() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.allow_tf32
    assert before == (True, True)
    with exact_convolutions():
        assert (cudnn.enabled, cudnn.allow_tf32) == (True, False)
    assert (cudnn.enabled, cudnn.allow_tf32) == before


def test_no_other_place_sets_the_flags_of_cudnn() -> None:
    assert [one.name for one in package_modules() if "cudnn.flags" in one.text] == ["imgcls.inference.classifier"]
