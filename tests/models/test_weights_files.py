"""Files of weights: every format gives the same tensors, and what is no weights is told apart and never executed."""

import os
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import StagedModel, build
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.models.weights import Pretrained, load_weights
from imgcls.models.weights_files import read_weights, sha256_of

CONFIG = PlainCNNConfig(num_blocks=2, channels=4)


def made(seed: int = 0) -> StagedModel:
    torch.manual_seed(seed)
    return build(CONFIG, num_classes=3, in_channels=3, image_size=16)


def save_safetensors(state: dict[str, torch.Tensor], path: Path) -> None:
    safetensors.torch.save_file(state, path)


def save_legacy(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def wrapped(**beside: Any) -> Callable[[dict[str, torch.Tensor], Path], None]:
    return lambda state, path: torch.save({"epoch": 3, "lr": 0.1, **beside, "state_dict": state}, path)


def prefixed(*prefixes: str) -> Callable[[dict[str, torch.Tensor], Path], None]:
    whole = "".join(prefixes)
    return lambda state, path: torch.save({whole + name: tensor for name, tensor in state.items()}, path)


WRITERS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor], Path], None], tuple[str, ...]]] = {
    "safetensors": ("a.safetensors", save_safetensors, ()),
    "zip": ("a.pth", torch.save, ()),
    "pt, capitals": ("a.PT", torch.save, ()),
    "before torch 1.6": ("a.pth", save_legacy, ()),
    "wrapped": ("a.pth", wrapped(), ("'state_dict' is taken",)),
    "wrapped twice": ("a.pth", lambda s, p: torch.save({"model": {"net": s}}, p), ("'model'", "'net'")),
    "beside averages": ("a.pth", wrapped(model_ema={"x": torch.zeros(1)}), ("'state_dict' is taken, not model_ema",)),
    "data parallel": ("a.pth", prefixed("module."), ("prefix 'module.'",)),
    "compiled, parallel": ("a.pt", prefixed("_orig_mod.", "module."), ("prefix '_orig_mod.'", "prefix 'module.'")),
    "averaged": (
        "a.pth",
        lambda s, p: torch.save(
            {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in s.items()}}, p
        ),
        ("prefix 'module.'",),
    ),
    "parameters": ("a.pth", lambda s, p: torch.save({n: nn.Parameter(t, False) for n, t in s.items()}, p), ()),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_that_went_through_a_file_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    name, write, notices = WRITERS[kind]
    first, second = made(1), made(2)
    images = torch.randn(2, 3, 16, 16)
    first.train()(images)  # so that the statistics of batch norm are not those of a fresh network
    path = tmp_path / name
    write(dict(first.state_dict()), path)
    file = read_weights(path)
    assert file.sha256 == sha256_of(path)
    assert [fragment in notice for fragment, notice in zip(notices, file.notices, strict=True)] == [True] * len(notices)
    classes = ("a", "b", "c")
    load_weights(second, Pretrained("x", "x", file.tensors, classes), config=CONFIG, classes=classes)
    with torch.no_grad():
        assert torch.equal(first.eval()(images), second.eval()(images))


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "beside tensors"])
def test_code_in_a_file_is_told_and_not_executed(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a user's variable must not open the door
    target, path = tmp_path / "executed", tmp_path / "a.pth"
    bad = Malicious(target)
    if form == "pickle":
        path.write_bytes(pickle.dumps(bad))
    elif form == "legacy":
        torch.save(bad, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": made().state_dict(), "x": bad} if form == "beside tensors" else bad, path)
    with pytest.raises(UserError, match=r"a\.pth cannot be used: it holds code .*system.*nothing of it was executed"):
        read_weights(path)
    assert not target.exists()


def test_a_whole_pickled_network_is_told_with_the_way_to_save_its_tensors(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict\(\)"):
        read_weights(tmp_path / "a.pth")


def test_a_torchscript_archive_is_told_and_not_executed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have nobody make such files any more
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="a TorchScript archive, which holds code; nothing of it was executed"):
        read_weights(tmp_path / "a.pt")


BAD_BYTES = {
    "empty": (b"", "it is empty"),
    "a web page": (b"\n<!DOCTYPE html><html>not found</html>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS's pointer"),
    "text": (b"hello, I am a file of notes\n" * 50, "no file of torch.save, or is damaged or cut short|no safetensors"),
    "zeros": (bytes(5000), "no file of torch.save, or is damaged or cut short|no safetensors"),
    "a huge header": (struct.pack("<Q", 2**60) + b"{}", "no file of torch.save, or is damaged|no safetensors"),
}


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("kind", BAD_BYTES)
def test_a_file_that_is_no_weights_is_an_error_that_says_what_it_is(kind: str, ending: str, tmp_path: Path) -> None:
    data, message = BAD_BYTES[kind]
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "Expected a file of tensors by name" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "before torch 1.6"])
def test_a_file_that_is_cut_short_is_an_error_in_one_paragraph(kind: str, share: float, tmp_path: Path) -> None:
    name, write, _ = WRITERS[kind]
    path = tmp_path / name
    write(dict(made().state_dict()), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cut short") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds a list and no dict of tensors"),
        (torch.zeros(3), "it holds a Tensor and no dict"),
        ({}, "an empty dict"),
        ({"epoch": 3, "weight": torch.zeros(2)}, r"a dict of other things than tensors \(epoch \(int\), weight \(Tens"),
        ({"state_dict": {"epoch": 3}}, r"other things than tensors \(epoch \(int\)\)"),
    ],
)
def test_a_file_of_other_things_is_an_error_that_lists_them(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "a.pth")


def test_a_missing_file_a_folder_and_another_ending_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pth cannot be used: there is no such file\. Expected .*\.safetensors"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"it is a folder without a saved classifier \(model\.json"):
        read_weights(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"its name ends in '\.onnx'\. Expected"):
        read_weights(tmp_path / "a.onnx")
