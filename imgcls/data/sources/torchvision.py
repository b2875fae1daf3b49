"""torchvision's classification data sets by name, each with its own official split; downloaded once or put by hand."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from imgcls.data.facts import facts_of
from imgcls.data.source import SOURCES, DataConfig, ScanProgress, Source
from imgcls.data.sources.files import absolute
from imgcls.data.sources.torchvision_known import CLASS_NAMES, KNOWN, Known
from imgcls.errors import UserError
from imgcls.network import bounded_wait
from imgcls.plugins import unknown_name
from imgcls.tables import Manifest

ONE_FILE = (
    ("filename", "tgz_md5"),
    ("filename", "md5_checksum"),
    ("url", "md5"),
    ("_URL", "_MD5"),
    ("_DATASET_URL", "_DATASET_MD5"),
)
"""The attributes in which a class of torchvision names its one archive, and the archive's MD5."""


class TorchvisionConfig(DataConfig):
    """The fields of `source: torchvision`."""

    source: Literal["torchvision"] = "torchvision"
    """A data set that torchvision knows, with its official split."""
    name: str = Field(min_length=1)
    """The data set, such as CIFAR10, MNIST, SVHN, Flowers102, OxfordIIITPet, Food101, EuroSAT."""
    cache_dir: str | None = Field(None, min_length=1)
    """The folder of torchvision's files (what torchvision calls root), absolute or from the current directory. null:
    torchvision/<data set> in $IMGCLS_CACHE, or in ~/.cache/imgcls where that is not set."""
    download: bool = True
    """Download what is missing, and unpack archives that lie in cache_dir. false: use only what is unpacked there."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in KNOWN:
            raise unknown_name("torchvision data set", name, KNOWN)
        return name

    @field_validator("cache_dir")
    @classmethod
    def _absolute(cls, cache_dir: str | None) -> str | None:
        return None if cache_dir is None else absolute(cache_dir)

    @property
    def origin(self) -> str:
        """The data set's name."""
        return self.name


def scan_torchvision(config: TorchvisionConfig, _progress: ScanProgress) -> Manifest:
    """The data set as torchvision reads it: pixels where it holds an array, else image files.

    Raises:
        UserError: the data set is not there and cannot be downloaded, or its files are damaged or incomplete.
    """
    known = KNOWN[config.name]
    root = _root(config, known)
    parts = _load(config, known, root)
    try:
        if hasattr(next(iter(parts.values())), "data") or known.cls == "FER2013":
            return _from_arrays(parts, known)
        return _from_files(parts, known, root)
    except UserError:
        raise
    except Exception as error:  # whatever damaged files make of torchvision's attributes
        raise _unusable(config, known, root, _reason(error)) from error


def _root(config: TorchvisionConfig, known: Known) -> Path:
    if config.cache_dir is not None:
        return Path(config.cache_dir)
    cache = Path(os.environ.get("IMGCLS_CACHE") or "~/.cache/imgcls").expanduser().absolute()
    return cache / "torchvision" / known.cls


def _load(config: TorchvisionConfig, known: Known, root: Path) -> dict[str, Any]:
    """Our split -> torchvision's data set, downloaded where it is missing and that is allowed."""
    marker = root / f".{config.name}.unpacking"
    if marker.exists() and (root / known.scanned).exists():
        raise UserError(
            f"{root / known.scanned} is incomplete: an earlier download of {config.name} stopped while unpacking. "
            f"Delete that folder and {marker}, then run again."
        )
    try:
        return _build(known, root)
    except Exception as error:  # torchvision and the formats it reads raise errors of many kinds
        first, cause = _reason(error), error
    if not (config.download and known.downloads):
        raise _unusable(config, known, root, first) from cause
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _marked(marker, root / known.scanned if known.scanned else None), bounded_wait():
            return _build(known, root, download=True)
    except Exception as error:
        second = _reason(error)
        reason = first if second == first else f"{first}; the download failed: {second}"
        raise _unusable(config, known, root, reason) from error


def _build(known: Known, root: Path, **more: bool) -> dict[str, Any]:
    from torchvision import datasets

    more = more or ({"download": False} if known.downloads else {})
    with warnings.catch_warnings():
        # NumPy speaks up about the age of the CIFAR pickles; nobody can write them anew.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        return {split: getattr(datasets, known.cls)(str(root), **args, **more) for split, args in known.splits.items()}


@contextmanager
def _marked(marker: Path, unpacked: Path | None) -> Iterator[None]:
    """A marker file that stays where unpacking was cut short, also by a kill."""
    if unpacked is None or unpacked.exists():  # what is there already was put there whole
        yield
        return
    marker.touch()
    try:
        yield
    except BaseException:
        if not unpacked.exists():
            marker.unlink()
        raise
    marker.unlink()


def _from_arrays(parts: Mapping[str, Any], known: Known) -> Manifest:
    pixels: list[npt.NDArray[np.uint8]] = []
    rows: list[dict[str, Any]] = []
    classes = [name for name in _class_names(next(iter(parts.values())), known) if name != "N/A"]
    for split, part in sorted(parts.items()):
        images, labels = _array(part, known)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels in {split or 'it'}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}")
        start = len(rows)
        pixels.append(images)
        width = len(str(len(images)))
        rows += [
            {
                "id": f"{split or 'all'}/{k:0{width}d}",
                "row": start + k,
                "label": int(label),
                "split": split,
                "content": hashlib.blake2b(images[k].tobytes(), digest_size=16).hexdigest(),
            }
            for k, label in enumerate(labels)
        ]
    return Manifest.build(rows, classes=classes, images=np.concatenate(pixels))


def _array(part: Any, known: Known) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels (N, H, W) or (N, H, W, 3), and labels (N,) from 0."""
    if known.cls == "FER2013":
        samples = part._samples
        return np.stack([np.asarray(image) for image, _ in samples]), np.array([int(label) for _, label in samples])
    images = np.asarray(part.data)
    labels = np.asarray(part.targets if hasattr(part, "targets") else part.labels).astype(np.int64)
    if known.cls in ("SVHN", "STL10"):
        images = images.transpose(0, 2, 3, 1)
    elif known.cls == "EMNIST":
        images = images.transpose(0, 2, 1)  # its files hold columns where MNIST's hold rows
        labels = labels - (part.split == "letters")
    elif known.cls == "QMNIST":
        labels = labels[:, 0]
    return np.ascontiguousarray(images, dtype=np.uint8), labels


def _from_files(parts: Mapping[str, Any], known: Known, root: Path) -> Manifest:
    first = parts.get("train", next(iter(parts.values())))
    classes = _class_names(first, known)
    index = {name: k for k, name in enumerate(classes)}
    rows = []
    for split, part in parts.items():
        names = _class_names(part, known)
        for path, label in _labelled_files(part, known):
            if names[label] not in index:
                raise ValueError(f"the class {names[label]!r} of its {split} images has no training images")
            about = {"path": str(path), "label": index[names[label]], "split": split}
            rows.append({"id": path.relative_to(root / known.folder).as_posix(), **about})
    if not rows:
        raise ValueError("it holds no images")
    contents = [fact.content for fact in facts_of([str(row["path"]) for row in rows])]
    missing = [str(row["path"]) for row, content in zip(rows, contents, strict=True) if not content]
    if missing:
        raise ValueError(f"{len(missing)} of {len(rows)} images cannot be read, the first is {missing[0]}")
    rows = [{**row, "content": content} for row, content in zip(rows, contents, strict=True)]
    ids = {row["id"] for row in rows}
    if len(ids) < len(rows):
        raise ValueError(f"{len(rows) - len(ids)} images stand in its lists more than once")
    return Manifest.build(sorted(rows, key=lambda row: str(row["id"])), classes=classes)


def _labelled_files(part: Any, known: Known) -> Iterator[tuple[Path, int]]:
    """(file, label) of every image, from wherever its class keeps them."""
    if known.cls == "Caltech101":
        for label, number in zip(part.y, part.index, strict=True):
            folder = Path(part.root, "101_ObjectCategories", part.categories[label])
            yield folder / f"image_{number:04d}.jpg", label
    elif known.cls == "Caltech256":
        for label, number in zip(part.y, part.index, strict=True):
            folder = Path(part.root, "256_ObjectCategories", part.categories[label])
            yield folder / f"{label + 1:03d}_{number:04d}.jpg", label
    elif known.cls == "INaturalist":
        for label, name in part.index:
            yield Path(part.root, part.all_categories[label], name), label
    else:
        pairs = getattr(part, "samples", None) or getattr(part, "_samples", None)
        if pairs is None:
            files = part._images if known.cls == "OxfordIIITPet" else part._image_files
            pairs = zip(files, part._labels, strict=True)
        yield from ((Path(path), int(label)) for path, label in pairs)


def _class_names(part: Any, known: Known) -> list[str]:
    if known.cls in CLASS_NAMES:
        return list(CLASS_NAMES[known.cls])
    found = next(
        getattr(part, name) for name in ("classes", "categories", "all_categories") if getattr(part, name, None)
    )
    names = [str(name if isinstance(name, str) else ", ".join(name)) for name in found]
    if len(set(names)) < len(names):  # ImageNet has two cranes
        names = [
            f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, part.wnids, strict=True)
        ]
    return names


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\s*You can (?:use|set) download=True.*", "", text).rstrip(".")[:500]


def _unusable(config: TorchvisionConfig, known: Known, root: Path, reason: str) -> UserError:
    """The error for a data set that is not there or damaged: what is expected where, and what was found."""
    from torchvision import datasets

    cls = getattr(datasets, known.cls)
    damaged = [str(path) for path, md5 in _checksums(cls, known, root) if not _fits(path, md5)]
    found = f" Found damaged (wrong MD5): {', '.join(damaged)}; delete and replace." if damaged else ""
    files = ", ".join(known.files)
    unpack = " Archives are unpacked there when data.download is true." if known.downloads else ""
    links = [text for text in _texts(vars(cls)) if text.startswith("http")][:2]
    links_text = f" (from {' or '.join(links)})" if links else ""
    return UserError(
        f"the data set {config.name} cannot be read from {root}: {reason}.{found} Expected in that folder: "
        f"{files}{links_text}.{unpack} Put the files there by hand, or give the folder that has them with "
        "data.cache_dir."
    )


def _checksums(cls: Any, known: Known, root: Path) -> Iterator[tuple[Path, str]]:
    """(file, MD5) of the files that are there and whose checksum torchvision's class knows."""
    pairs = {Path(texts[0]).name: texts[-1] for texts in _tuples(vars(cls)) if re.fullmatch("[0-9a-f]{32}", texts[-1])}
    for name, md5 in ONE_FILE:
        if hasattr(cls, name) and hasattr(cls, md5):
            pairs[Path(getattr(cls, name)).name] = getattr(cls, md5)
    for folder in dict.fromkeys((root, root / known.folder, root / known.folder / "raw")):
        yield from ((folder / name, md5) for name, md5 in pairs.items() if (folder / name).is_file())


def _fits(path: Path, md5: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
    except OSError:
        return False


def _tuples(value: Any) -> Iterator[list[str]]:
    """Every list or tuple of texts inside."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        yield list(value)
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tuples(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


SOURCES.register("torchvision")(Source(TorchvisionConfig, scan_torchvision))
