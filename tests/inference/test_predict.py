"""Predictions over a loader agree with the classifier that is served."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.data.augment import Preprocessing, evaluation_pipeline
from imgcls.data.images import open_images
from imgcls.data.loading import Loader
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig, scan_unlabelled
from imgcls.inference.classifier import Classifier
from imgcls.inference.predict import predict
from imgcls.models.family import build
from imgcls.models.plaincnn import PlainCNNConfig


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "image", "ending"), [(16, (40, 30), "png"), (16, (12, 90), "jpg"), (72, (150, 110), "jpg")]
)
def test_predictions_agree_with_the_classifier_on_the_same_files(
    make_folder: Callable[..., Path], channels: int, size: int, image: tuple[int, int], ending: str
) -> None:
    torch.manual_seed(0)
    manifest = scan(FolderConfig(root=str(make_folder(classes=3, images=3, size=image, ending=ending))))
    steps = Preprocessing(channels, size, (0.5,) * channels, (0.2,) * channels)
    config = PlainCNNConfig(num_blocks=2, channels=4, dropout=0.5)
    model = build(config, num_classes=3, in_channels=channels, image_size=size).train()
    images = open_images(manifest, channels=channels, short_side=steps.store_size, budget=2**24)
    loader = Loader(images, manifest.labels, evaluation_pipeline(size), batch_size=4)
    found = predict(model, loader, manifest, preprocessing=steps, device="cpu", split="val")
    served = Classifier(model, config, steps, manifest.classes, 3)
    expected = served.probabilities([Path(path).read_bytes() for path in manifest.frame["path"]])
    assert np.abs(found.probs - expected).max() < 1e-5
    assert found.probs.std(axis=0).max() > 1e-4, "the images should differ"
    assert found.probs.dtype == np.float32
    assert found.ids == manifest.ids
    assert np.array_equal(found.labels, manifest.labels)
    assert (found.classes, found.split, found.manifest_digest) == (manifest.classes, "val", manifest.digest)
    assert not model.training


def test_an_unlabelled_folder_is_predicted_in_the_order_of_its_ids(make_folder: Callable[..., Path]) -> None:
    root = make_folder(classes=2, images=4, size=(20, 20))
    (root / "class1/3.png").rename(root / "0.png")
    steps = Preprocessing(3, 16, (0.5,) * 3, (0.2,) * 3)
    model = build(PlainCNNConfig(num_blocks=2, channels=4), num_classes=3, in_channels=3, image_size=16)
    manifest = scan_unlabelled(root, classes=["a", "b", "c"])
    images = open_images(manifest, channels=3, short_side=steps.store_size, budget=10**8)
    loader = Loader(images, manifest.labels, evaluation_pipeline(16), batch_size=3)
    found = predict(model, loader, manifest, preprocessing=steps, device="cpu", split="")
    assert found.ids == ["0.png", *(f"class0/{k}.png" for k in range(4)), *(f"class1/{k}.png" for k in range(3))]
    assert found.labels.tolist() == [-1] * 8
    assert found.classes == ("a", "b", "c")
    served = Classifier(model, PlainCNNConfig(num_blocks=2, channels=4), steps, found.classes, 3)
    expected = served.probabilities([(root / name).read_bytes() for name in found.ids])
    assert np.abs(found.probs - expected).max() < 1e-5
    assert len(np.unique(found.probs[:, 0])) == 8, "the images should differ"
