"""From `model.weights` to a network that is prepared: what the weights decide of the recipe, and what is refused."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.data.augment import IMAGENET_MEAN, Preprocessing
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.jobs import weights as job
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.weights import open_weights
from imgcls.models.family import build
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.models.weights_torchvision import named_weights
from imgcls.recipe import resolve
from imgcls.tracking.model import Downloaded

RUN, MODEL = "0123456789abcdef" * 2, "m-" + "0123456789abcdef" * 2
CONFIG = PlainCNNConfig(num_blocks=1, channels=4)
SMALL = {"model.family": "plaincnn", "model.num_blocks": 1, "model.channels": 4}
CLASSES = ("class2", "class0", "class1")


@pytest.fixture
def root(make_folder: Callable[..., Path]) -> str:
    """Three classes of eight images."""
    return str(make_folder())


def save_classifier(folder: Path, *, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> Classifier:
    torch.manual_seed(7)
    steps = Preprocessing(channels, 24, (0.25, 0.5, 0.75)[:channels], (0.1, 0.2, 0.3)[:channels])
    module = build(CONFIG, num_classes=len(classes), in_channels=channels, image_size=24)
    classifier = Classifier(module.eval(), CONFIG, steps, classes, 1)
    classifier.save(folder)
    return classifier


def prepared(root: str, weights: str | Path, overrides: dict[str, Any] | None = None) -> Prepared:
    # A mapping and not the recipe `folder`, which gives an image size.
    sections = {"data": {"source": "folder", "root": root}}
    given = {**SMALL, "model.weights": str(weights), **(overrides or {})}
    return prepare(resolve(sections, given), Console())


def test_a_saved_classifier_gives_weights_classes_size_and_normalisation(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = save_classifier(tmp_path / "old")
    result = prepared(root, tmp_path / "old")
    augment = result.recipe.augment
    assert (augment.image_size, augment.normalize) == (24, "weights")
    assert result.preprocessing == old.preprocessing
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(result.model.eval()(images), old.module(images)[:, [1, 2, 0]])
    out = capsys.readouterr().out
    assert "note: as the weights were trained: augment.image_size 24, augment.normalize weights\n" in out
    assert "sha256:" in out
    assert ": tensors 12 loaded, 2 adapted (classes put into the order of this data set)\n" in out


def test_the_resolved_recipe_prepares_the_same_again(root: str, tmp_path: Path) -> None:
    save_classifier(tmp_path / "old")
    first = prepared(root, tmp_path / "old")
    Path("again.yaml").write_text(first.recipe.to_yaml())
    second = prepare(resolve("again.yaml"), Console())
    assert second.recipe == first.recipe
    assert second.preprocessing == first.preprocessing
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_what_the_user_writes_wins(root: str, tmp_path: Path) -> None:
    save_classifier(tmp_path / "old")
    given = {"augment.image_size": 16, "augment.normalize": "imagenet"}
    result = prepared(root, tmp_path / "old", given)
    assert (result.preprocessing.image_size, result.preprocessing.mean) == (16, IMAGENET_MEAN)


def test_a_grey_model_makes_grey_images_unless_somebody_wrote_the_channels(root: str, tmp_path: Path) -> None:
    save_classifier(tmp_path / "grey", channels=1)
    result = prepared(root, tmp_path / "grey")
    assert (result.recipe.data.channels, result.preprocessing.mean) == (1, (0.25,))
    colour = prepared(root, tmp_path / "grey", {"data.channels": 3})
    assert colour.preprocessing.mean == (0.25, 0.25, 0.25)
    assert colour.weights is not None
    assert "1 input channel spread over 3" in colour.weights.summary


def test_a_colour_model_on_grey_images_has_the_mean_of_its_statistics(root: str, tmp_path: Path) -> None:
    save_classifier(tmp_path / "old")
    steps = prepared(root, tmp_path / "old", {"data.channels": 1}).preprocessing
    assert (steps.mean, steps.std) == ((0.5,), (0.2,))


def test_without_weights_normalize_is_that_of_imagenet_and_the_size_that_of_the_images(root: str) -> None:
    result = prepared(root, "none")
    assert (result.recipe.augment.normalize, result.recipe.augment.image_size) == ("imagenet", 16)
    assert result.recipe.model.weights == "none"
    assert result.weights is None


@pytest.mark.parametrize("weights", ["none", "own.pth"])
def test_normalisation_of_weights_that_say_none_is_an_error(weights: str) -> None:
    state = build(CONFIG, num_classes=3, in_channels=3, image_size=16).state_dict()
    torch.save(state, "own.pth")
    with pytest.raises(UserError, match=rf"is weights, but those of model\.weights .*{weights}\) are not known"):
        prepared("/no/images", weights, {"augment.normalize": "weights"})


def test_a_checkpoint_of_a_run_starts_the_network_but_not_the_head(root: str) -> None:
    state = build(CONFIG, num_classes=3, in_channels=3, image_size=16).state_dict()
    torch.save({"model": state, "optimizer": {}, "epoch": 3, "batch": 0, "rows": [{"val/acc": 0.5}]}, "best.pt")
    result = prepared(root, "best.pt")
    assert result.weights is not None
    assert "2 fresh (the order of its classes is not known)" in result.weights.summary
    assert result.recipe.augment.image_size == 16
    assert result.recipe.model.weights == str(Path("best.pt").absolute())


def test_an_earlier_model_is_downloaded_and_its_lasting_address_is_kept(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextmanager
    def download(source: str) -> Iterator[Downloaded]:
        asked.append(source)
        save_classifier(tmp_path / "model")
        yield Downloaded(tmp_path / "model", MODEL, "models:/animals/3", RUN)

    monkeypatch.setattr(job, "download_classifier", download)
    for source in ("models:/animals@champion", RUN, f"runs:/{RUN}/model"):
        result = prepared(root, source)
        assert result.recipe.model.weights == "models:/animals/3"
        assert result.weights is not None
        assert result.weights.name == f"models:/animals/3 ({MODEL})"
    assert asked == ["models:/animals@champion", RUN, f"runs:/{RUN}/model"]


def test_an_earlier_model_of_another_family_is_an_error_that_names_both(root: str, tmp_path: Path) -> None:
    save_classifier(tmp_path / "old")
    sections = {"data": {"source": "folder", "root": root}, "model": {"family": "resnet18"}}
    with pytest.raises(UserError, match=r"are of a plaincnn, but model\.family is resnet18\. Set model\.family"):
        prepare(resolve(sections, {"model.weights": str(tmp_path / "old")}), Console())


def test_a_saved_classifier_whose_weights_have_other_classes_than_it_says_is_an_error(
    root: str, tmp_path: Path
) -> None:
    save_classifier(tmp_path / "old")
    path = tmp_path / "old" / "model.json"
    path.write_text(path.read_text().replace('"class2",', ""))
    with pytest.raises(UserError, match=r"do not fit model\.json"):
        prepared(root, tmp_path / "old")


def test_a_missing_file_is_an_error_before_the_images_are_looked_at() -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth cannot be used: there is no such file"):
        prepared("/no/images", "nowhere.pth")


def resnet_file(folder: Path) -> Path:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    path = folder / "weights.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    return path


def resnet(weights: str | Path) -> Any:
    return resolve({"model": {"family": "resnet18"}}, {"model.weights": str(weights)}).recipe.model


def test_a_file_in_torchvisions_names_is_taken_to_be_trained_as_its_architecture_is(tmp_path: Path) -> None:
    found = open_weights(resnet(resnet_file(tmp_path)), Console())
    assert found is not None
    assert (found.image_size, found.mean, found.classes) == (224, IMAGENET_MEAN, None)


def test_a_name_of_torchvision_is_taken_from_the_cache_folder_and_a_file_of_the_same_bytes_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resnet_file(tmp_path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    known = replace(named_weights("resnet18", "default"), url=f"https://nowhere.invalid/resnet18-{digits}.pth")
    monkeypatch.setattr(job, "named_weights", lambda _family, _name: known)
    monkeypatch.setattr(job, "recognised", lambda _family, sha256: known if sha256.startswith(digits) else None)
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    assert open_weights(resnet("default"), Console(), tensors=False) is not None
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    path.rename(tmp_path / "cache" / "weights" / known.file_name)
    found = open_weights(resnet("default"), Console())
    assert found is not None
    assert (found.name, found.pinned) == ("ResNet18_Weights.IMAGENET1K_V1", "IMAGENET1K_V1")
    assert (len(found.tensors), found.classes) == (122, known.classes)
    by_hand = open_weights(resnet(tmp_path / "cache" / "weights" / known.file_name), Console())
    assert by_hand is not None
    assert by_hand.name.endswith("(ResNet18_Weights.IMAGENET1K_V1)")
    assert (by_hand.classes, by_hand.image_size) == (known.classes, 224)
