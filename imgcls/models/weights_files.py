"""Files of weights to tensors by name: nothing in a file is ever executed, and what is no weights is told apart."""

import errno
import hashlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from imgcls.errors import UserError
from imgcls.models.family import WEIGHTS_ENDINGS

Tensors = dict[str, torch.Tensor]

WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params",
    "state_dict_ema", "model_ema", "ema", "params_ema",
)  # fmt: skip
"""Keys under which training scripts keep the model among other things; the first that is there is taken."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What torch's DataParallel, torch.compile and Lightning put before every name."""
COUNTERS = ("n_averaged",)
"""Tensors of torch's weight averaging that are no weights."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights as it was read.

    Attributes:
        tensors: name -> tensor on the CPU, maybe memory-mapped; wrappers and prefixes removed.
        sha256: of the file, 64 hex digits.
        notices: sentences on what was unwrapped.
    """

    tensors: Tensors
    sha256: str
    notices: tuple[str, ...] = ()


def read_weights(path: Path) -> WeightsFile:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file.

    Raises:
        UserError: there is no such file, or it is something else, cut short, or holds code; nothing is executed.
    """
    _check_file(path)
    try:
        sha256 = sha256_of(path)
        if path.suffix.casefold() == ".safetensors":
            return WeightsFile(_read_safetensors(path), sha256)
        found = _read_torch(path)
    except OSError as error:
        raise _unusable(path, f"it cannot be read: {error.strerror or error}") from error
    tensors, notices = _unwrap(found, path)
    return WeightsFile(tensors, sha256, notices)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unusable(path: Path, found: str, todo: str = "") -> UserError:
    expected = "a file of tensors by name (a state dict) that ends in .safetensors, .pth or .pt"
    todo = todo or "Give such a file as model.weights, or none to train from fresh weights."
    return UserError(f"the weights {path} cannot be used: {found}. Expected {expected}. {todo}")


def _check_file(path: Path) -> None:
    """What can be told without a reader of the format."""
    if path.is_dir():
        raise _unusable(path, "it is a folder without a saved classifier (model.json and model.safetensors)")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise _unusable(path, "there is no such file") from error
    except OSError as error:
        raise _unusable(path, f"it cannot be read: {error.strerror}") from error
    if path.suffix.casefold() not in WEIGHTS_ENDINGS:
        raise _unusable(path, f"its name ends in {path.suffix!r}" if path.suffix else "its name has no ending")
    if not head:
        raise _unusable(path, "it is empty", "Download or copy it again.")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _unusable(path, "it is a web page, most likely the answer to a failed download", "Download it again.")
    if text.startswith(b"version https://git-lfs"):
        raise _unusable(path, "it is Git LFS's pointer to the file and not the file", "Fetch it with: git lfs pull")


def _read_safetensors(path: Path) -> Tensors:
    try:
        tensors: Tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        why = f"it is no safetensors file or cut short ({_line(error)})"
        raise _unusable(path, why, "Download or copy it again.") from error
    if not tensors:
        raise _unusable(path, "it holds no tensors")
    return tensors


def _read_torch(path: Path) -> object:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            raise _unusable(
                path,
                "it is a TorchScript archive, which holds code; nothing of it was executed",
                "Where you trust it, save its tensors alone: torch.save(torch.jit.load(file).state_dict(), 'new.pth').",
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other makes; the error says it better
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        raise _pickled(path, error) from error
    except Exception as error:  # what torch's readers raise on damaged bytes is open-ended
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # that is a seek to where a cut file has no bytes
            raise
        why = f"it is no file of torch.save, or is damaged or cut short ({_line(error)})"
        raise _unusable(path, why, "Download or copy it again.") from error


def _pickled(path: Path, error: pickle.UnpicklingError) -> UserError:
    """The error for a pickle that is more than tensors, or is none."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    name = found[1] if found else _first_global(path)
    if name is None:
        why = f"it is no file of torch.save, or is damaged or cut short ({_line(error)})"
        return _unusable(path, why, "Download or copy it again.")
    return _unusable(
        path,
        f"it holds code or Python objects ({name}), which could do anything; nothing of it was executed",
        "Where you trust it, save its state dict alone: torch.save(model.state_dict(), 'new.pth').",
    )


def _first_global(path: Path) -> str | None:
    """The first name that a bare pickle would import, by reading its operations; None where it is no whole pickle."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(texts[-2:])
                if isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # random bytes make pickletools raise errors of many kinds
        return None
    return None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^Weights only load failed\..*?(?:WeightsUnpickler error: |$)", "", text) or "no pickle"
    return text[:160].rstrip(". ")


def _unwrap(found: object, path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """The model's tensors among what the file holds, and what was taken off them."""
    notices = []
    while isinstance(found, Mapping) and not _is_state(found):
        key = next((name for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if key is None:
            break
        others = [name for name in WRAPPERS if name != key and isinstance(found.get(name), Mapping)]
        beside = f", not {', '.join(others)}" if others else ""
        notices.append(f"of the weights file {path.name}, {key!r} is taken{beside}")
        found = found[key]
    if not isinstance(found, Mapping) or not _is_state(found):
        raise _unusable(path, f"it holds {_description(found)}")
    tensors = {str(name): tensor.detach() for name, tensor in found.items() if name not in COUNTERS}
    for prefix in _prefixes(tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notices.append(f"of the weights file {path.name}, the prefix {prefix!r} is taken off every name")
    return tensors, tuple(notices)


def _prefixes(tensors: Tensors) -> list[str]:
    """The prefixes that all names have, from the outermost in."""
    found: list[str] = []
    names = list(tensors)
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)), None):
        found.append(prefix)
        names = [name.removeprefix(prefix) for name in names]
    return found


def _is_state(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(name, str) and torch.is_tensor(value) for name, value in found.items())


def _description(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__} and no dict of tensors"
    names = ", ".join(f"{name} ({type(value).__name__})" for name, value in list(found.items())[:5])
    return f"a dict of other things than tensors ({names})" if names else "an empty dict"
