"""What frozen stages give of the images, computed once and kept on disk for all epochs and all trainings that share it.

A **view** is one pass over all training images, varied as one epoch varies them.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data import cache
from imgcls.data.augment import Preprocessing
from imgcls.data.images import SPARE_BYTES
from imgcls.data.loading import Batch, Loader
from imgcls.models.family import StagedModel
from imgcls.models.fusing import fused
from imgcls.training.plan import Plan

KIND = "features"
FORMAT = 2
"""Raised when the same key would give other outputs."""
_OUTPUTS, _FORM = "outputs.bin", "outputs.json"
_STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<i2"),
}
"""What numpy holds each of torch's types as; it has no bfloat16, of which it keeps the bits."""
_PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow")
"""Those whose other version may give other outputs."""


class NotKept(Exception):
    """The outputs are not kept. The message is the reason."""


@dataclass(frozen=True)
class Subject:
    """Images, and all that their pixels depend on when the network sees them.

    Attributes:
        loader: the images in batches.
        contents: the content hash of each of its images, in its order.
        variation: what varies them, in JSON's types, with the seed where there is one.
        name: what they are, for the list of the cache.
    """

    loader: Loader
    contents: Sequence[str]
    variation: Mapping[str, Any]
    name: str


class View:
    """Outputs of every image, mapped into memory.

    Args:
        folder: an entry of the cache; it may be evicted while it is mapped.
        num_images: rows that it must have.

    Raises:
        NotKept: it is damaged or gone.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        try:
            form = json.loads((folder / _FORM).read_text(encoding="utf-8"))
            shape, name = tuple(int(side) for side in form["shape"]), str(form["dtype"])
            order = [int(dim) for dim in form["order"]]
            if sorted(order) != list(range(len(shape))):
                raise ValueError(f"order {order}")
            stored = _STORED[name]
            size = (folder / _OUTPUTS).stat().st_size
            if shape[0] != num_images or size != math.prod(shape) * stored.itemsize:
                raise ValueError(f"{size} bytes")
            # A plain view, as of the store: slices of a memmap each cost some microseconds more.
            mapped = np.memmap(folder / _OUTPUTS, stored, "r", shape=shape)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise NotKept(f"{folder} is damaged or gone ({error})") from error
        self._outputs: npt.NDArray[Any] = np.asarray(mapped)
        self._dtype: torch.dtype = getattr(torch, name)
        self._back = [order.index(dim) for dim in range(len(order))]
        self.num_bytes = size

    def gather(self, rows: Sequence[int]) -> torch.Tensor:
        """(B, …) copies of the outputs of these images, in the memory layout that the stages gave them."""
        taken = torch.from_numpy(np.take(self._outputs, rows, axis=0))
        return (taken.view(self._dtype) if self._dtype == torch.bfloat16 else taken).permute(self._back)


class FeatureLoader:
    """Batches of a loader with the frozen stages' outputs in place of the images.

    An epoch has the order, the seeds and the labels that it has of the loader; epoch e reads view (e - 1) mod V. While
    it is read the model takes outputs. Where the model has fewer frozen stages than at first, the loader's own batches
    of images come.

    Args:
        model: what is trained.
        images: the loader.
        views: outputs of its images, one at least.
    """

    def __init__(self, model: StagedModel, images: Loader, views: Sequence[View]) -> None:
        self._model, self._depth = model, model.freeze_depth
        self._images, self._views = images, list(views)
        self.num_images = images.num_images

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._images)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the batch `start` (from 0) on."""
        if self._model.freeze_depth != self._depth:
            yield from self._images.epoch(epoch, start=start)
            return
        view = self._views[(epoch - 1) % len(self._views)]
        with self._model.taking_frozen():
            yield from self._images.epoch_of(epoch, view.gather, start=start)


@dataclass
class Features:
    """The outputs of a model's frozen stages, by way of the cache folder.

    Attributes:
        model: on the plan's device, its first stages frozen.
        architecture: what the model was built from, in JSON's types.
        preprocessing: from images to the network's input.
        plan: where and how to compute.
        budget: bytes that all outputs in the cache folder together may take; those used least recently make room.
        fuses: batch norms of the frozen stages are multiplied into their convolutions: the outputs are rounded in other
            ways than the model's own, and computed sooner.
        progress: called with (what, images done, images in all).
        say: takes a line for the user.
        num_computed: views that were not there yet.
    """

    model: StagedModel
    architecture: Mapping[str, Any]
    preprocessing: Preprocessing
    plan: Plan
    budget: int
    fuses: bool = False
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None
    say: Callable[[str], None] = lambda _text: None
    num_computed: int = field(default=0, init=False)
    _used: set[str] = field(default_factory=set, init=False)
    _stages: list[nn.Module] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        assert self.model.freeze_depth
        self._backbone = self._hash_of_backbone()

    def view(self, subject: Subject, number: int) -> View:
        """A view, computed where it is not there.

        Args:
            subject: the images.
            number: the epoch whose variation it has; 0 is in the images' own order.

        Raises:
            NotKept: there is no room, or the images have no content hashes.
            OSError: the cache folder cannot be written.
            UserError: an image cannot be read.
        """
        if not all(subject.contents):
            raise NotKept("the images have no content hashes")
        key = self.key(subject, number)
        folder = cache.cache_dir() / KIND / key
        what = f"features of {subject.name}" + (f", view {number}" if number else "")
        if folder.is_dir() and not _is_whole(folder, len(subject.contents)):
            self.say(f"the {what} in {folder} were damaged; they are computed anew")
        last = self.model.stage_names[self.model.freeze_depth - 1]
        for _ in range(3):
            kept = cache.entry(
                KIND, key, lambda folder: self._compute(folder, subject, number, key, what),
                whole=lambda folder: _is_whole(folder, len(subject.contents)),
                about=f"{self.architecture.get('family', 'network')} up to {last}, {what}",
                on_wait=lambda: self.say(f"another process is computing the {what}; waiting for it"),
            )  # fmt: skip
            try:
                view = View(kept, len(subject.contents))
            except NotKept:  # evicted by another process just now
                continue
            self._used.add(key)
            return view
        raise NotKept("other processes evict the features as soon as they are made; raise data.store_budget")

    def key(self, subject: Subject, number: int) -> str:
        """The name of a view: 32 hex digits, equal where all that its outputs depend on is equal."""
        about = {
            "format": FORMAT,
            "backbone": self._backbone,
            "preprocessing": self.preprocessing.as_dict(),
            "plan": str(self.plan),
            "variation": dict(subject.variation),
            # The sums of a product may be rounded in other ways in batches of another size.
            "batch_size": subject.loader.batch_size,
            "view": number,
            "fused": self.fuses,
            "versions": [_version(name) for name in _PACKAGES],
        }
        text = "\n".join([json.dumps(about, sort_keys=True), *subject.contents])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _hash_of_backbone(self) -> str:
        """Of the frozen stages' form, weights and statistics."""
        digest = hashlib.blake2b(json.dumps(dict(self.architecture), sort_keys=True).encode(), digest_size=16)
        for name in self.model.stage_names[: self.model.freeze_depth]:
            stage = self.model.stage(name)
            digest.update(f"\n{name} {stage!r}".encode())
            for key, tensor in stage.state_dict().items():
                digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if self.model.only_head_trained:
            digest.update(f"\npool {self.model.pool!r}".encode())
        return digest.hexdigest()

    def _compute(self, folder: Path, subject: Subject, number: int, key: str, what: str) -> None:
        """Fill an entry's folder.

        Raises:
            NotKept: there is no room.
        """
        cache.sweep()
        if self.fuses and self._stages is None:
            frozen = self.model.stage_names[: self.model.freeze_depth]
            self._stages = [fused(self.model.stage(name)) for name in frozen]
            for stage in self._stages:
                self.plan.place(stage)
        total, done = len(subject.contents), 0
        row_bytes = 0
        with (folder / _OUTPUTS).open("wb") as file:
            for rows, batch in subject.loader.each_once(number):
                outputs, order = _in_order(self._outputs(batch))
                if not row_bytes:
                    name = str(outputs.dtype).removeprefix("torch.")
                    form = {"shape": [total, *outputs.shape[1:]], "order": order, "dtype": name}
                    (folder / _FORM).write_text(json.dumps(form), encoding="utf-8")
                    row_bytes = outputs[0].numel() * outputs.element_size()
                    self._make_room(total * row_bytes, key)
                bits = outputs.view(torch.int16) if outputs.dtype == torch.bfloat16 else outputs
                for row, values in zip(rows, bits.numpy(), strict=True):
                    file.seek(row * row_bytes)
                    file.write(values.data)
                done += len(rows)
                self.progress(what, done, total)
        self.num_computed += 1

    @torch.no_grad()
    def _outputs(self, batch: Batch) -> torch.Tensor:
        """What the frozen stages give of a batch, on the CPU."""
        images = batch.images.to(self.plan.device, non_blocking=True)
        with self.plan.autocast():
            outputs = self.model.frozen_outputs(self.plan.arrange(self.preprocessing.to_input(images)), self._stages)
        return outputs.cpu()

    def _make_room(self, needed: int, key: str) -> None:
        """Evict views used least recently until one more of this size fits."""
        sizes = {item.key: item.num_bytes for item in cache.entries(KIND)}
        own = sum(sizes.pop(name, 0) for name in self._used)
        free = shutil.disk_usage(cache.cache_dir()).free
        limit = min(self.budget - own, free + sum(sizes.values()) - SPARE_BYTES)
        if needed > limit:
            whose = "data.store_budget leaves" if limit == self.budget - own else "what its disk has to spare"
            raise NotKept(f"they take {cache.size_text(needed)}, more than {whose}, {cache.size_text(max(0, limit))}")
        cache.evict(KIND, keep_bytes=int(own + limit - needed), spare=key)


def _in_order(outputs: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The outputs as they lie in memory, and which of their dimensions each is: the next stage computes in that layout,
    and in another one would round in another way."""
    order = [0, *sorted(range(1, outputs.ndim), key=outputs.stride, reverse=True)]
    return outputs.permute(order).contiguous(), order


def _is_whole(folder: Path, num_images: int) -> bool:
    try:
        View(folder, num_images)
    except NotKept:
        return False
    return True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
