"""torchvision's weights by name, and their download into the cache folder."""

import hashlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls import network
from imgcls.errors import UserError
from imgcls.models.weights_torchvision import (
    TorchvisionWeights,
    family_of_size,
    fetch,
    is_torchvision,
    known_weights,
    named_weights,
    recognised,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("resnet18", "default", "ResNet18_Weights.IMAGENET1K_V1"),
        ("resnet50", "default", "ResNet50_Weights.IMAGENET1K_V2"),
        ("resnet50", "DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"),
        ("resnet50", "ResNet50_Weights.DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"),
        ("resnet50", "IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1"),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"),
    ],
)
def test_weights_are_named_as_torchvision_names_them_or_default(family: str, name: str, expected: str) -> None:
    assert named_weights(family, name).name == expected


@pytest.mark.parametrize(
    ("family", "name", "messages"),
    [
        ("resnet50", "IMAGENET1K_V3", ["are IMAGENET1K_V1, IMAGENET1K_V2 (default is IMAGENET1K_V2)", "Did you mean"]),
        ("resnet50", "imagenet", ["found 'imagenet'; torchvision's weights for resnet50 are", ".safetensors file"]),
        ("resnet18", "ResNet50_Weights.IMAGENET1K_V1", ["are weights of resnet50, but model.family is resnet18"]),
        ("plaincnn", "default", ["torchvision has no weights for model.family plaincnn", "runs:/…"]),
    ],
)
def test_a_name_that_is_none_lists_those_that_are(family: str, name: str, messages: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        named_weights(family, name)
    assert [message for message in messages if message not in str(caught.value)] == []


def test_the_preset_says_size_and_normalisation() -> None:
    vit = named_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert (vit.image_size, vit.mean, vit.std, len(vit.classes)) == (384, *IMAGENET, 1000)
    assert named_weights("resnet18", "default").image_size == 224
    large = named_weights("efficientnet_v2_l", "default")
    assert (large.image_size, large.mean) == (480, (0.5, 0.5, 0.5))


def test_every_architecture_of_torchvision_has_a_number_of_parameters_of_its_own() -> None:
    from torchvision import models

    by_size: dict[int, set[str]] = {}
    for family in models.list_models(module=models):
        for entry in models.get_model_weights(family):
            by_size.setdefault(entry.meta["num_params"], set()).add(family)
    assert [families for families in by_size.values() if len(families) > 1] == []
    assert family_of_size(11_689_512) == "resnet18"
    assert family_of_size(11_689_513) is None


def test_every_file_of_torchvision_has_digits_of_its_hash_in_its_name() -> None:
    from torchvision import models

    for family in models.list_models(module=models):
        assert [weights.url for weights in known_weights(family) if len(weights.hash_prefix) < 8] == []


def test_a_file_is_known_by_its_hash() -> None:
    assert recognised("resnet18", "f37072fd" + "0" * 56) == named_weights("resnet18", "IMAGENET1K_V1")
    assert recognised("resnet18", "0" * 64) is None
    assert recognised("plaincnn", "f37072fd" + "0" * 56) is None
    assert not is_torchvision("plaincnn")


@pytest.fixture
def remote(tmp_path: Path) -> TorchvisionWeights:
    """Weights whose address is a file on this machine."""
    data = b"weights" * 100
    path = tmp_path / "remote" / f"tiny-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    path.parent.mkdir()
    path.write_bytes(data)
    return replace(named_weights("resnet18", "default"), name="Tiny.V1", url=path.as_uri())


def get(weights: TorchvisionWeights, folder: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    return fetch(weights, folder, progress=False, say=said.append), said


def test_a_file_is_downloaded_once(remote: TorchvisionWeights, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "weights"
    path, said = get(remote, folder)
    assert path == folder / remote.file_name
    assert path.read_bytes() == b"weights" * 100
    assert said == [f"downloading Tiny.V1 from {remote.url}"]
    Path(remote.url.removeprefix("file://")).unlink()
    assert get(remote, folder) == (path, [])
    assert list(folder.iterdir()) == [path]


def test_without_a_network_the_error_names_address_file_and_folder_and_a_file_put_there_is_used(
    remote: TorchvisionWeights, tmp_path: Path
) -> None:
    there = Path(remote.url.removeprefix("file://"))
    data = there.read_bytes()
    there.unlink()
    with pytest.raises(UserError) as caught:
        get(remote, tmp_path / "weights")
    text = str(caught.value)
    assert "the weights Tiny.V1 cannot be downloaded: [Errno 2]" in text
    assert f"Expected the file {remote.file_name} (from {remote.url}) in the folder {tmp_path / 'weights'}: " in text
    assert "put it there by hand" in text
    (tmp_path / "weights" / remote.file_name).write_bytes(data)
    assert get(remote, tmp_path / "weights")[1] == []


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(remote: TorchvisionWeights, tmp_path: Path) -> None:
    Path(remote.url.removeprefix("file://")).write_bytes(b"other")
    with pytest.raises(UserError, match="cannot be downloaded: invalid hash value"):
        get(remote, tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_damaged_file_in_the_folder_is_an_error_that_says_to_delete_it(
    remote: TorchvisionWeights, tmp_path: Path
) -> None:
    path, _ = get(remote, tmp_path)
    path.write_bytes(b"weig")
    with pytest.raises(UserError, match=f"{path} is damaged: its SHA-256 begins with .*Delete it"):
        get(remote, tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(remote: TorchvisionWeights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be downloaded: .*Not a directory"):
        get(remote, tmp_path / "file" / "weights")


def test_a_server_that_says_nothing_is_not_waited_for_for_long(
    remote: TorchvisionWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network.TIMEOUT_S <= 30
    monkeypatch.setattr(network, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        silent_weights = replace(remote, url=f"http://127.0.0.1:{port}/{remote.file_name}")
        with pytest.raises(UserError, match=r"cannot be downloaded: .*timed out"):
            get(silent_weights, tmp_path)
    assert socket.getdefaulttimeout() is None
