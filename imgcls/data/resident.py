"""Batches of images that lie in a device's memory as a whole, cropped and mirrored there: for small images on a GPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from imgcls.data.augment import AugmentConfig
from imgcls.data.images import Gatherable, Images
from imgcls.data.loading import Batch, Loader
from imgcls.errors import UserError

_REFLECT, _REPLICATE, _CONSTANT = 4, 1, 0
"""OpenCV's border modes, as albumentations takes them: BORDER_REFLECT_101, BORDER_REPLICATE, BORDER_CONSTANT."""
_CAN = (
    "Pad with padding: N and border_mode 4, 1 or 0, then RandomCrop to the image size, HorizontalFlip, VerticalFlip, "
    "each once at most and in this order"
)
_FREE_SHARE = 0.8
"""What of a GPU's free memory the images may take."""


@dataclass(frozen=True)
class Shifts:
    """What is done to a batch: a crop of the padded images at a random place, mirrored at random.

    Attributes:
        padding: pixels added on every side.
        border: how they are filled, by OpenCV's number of the mode; 0 fills with black.
        horizontal, vertical: chances of a mirrored image.
    """

    padding: int = 0
    border: int = _REFLECT
    horizontal: float = 0.0
    vertical: float = 0.0

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B, S, S, C) images varied, on their device, with the generator's randomness, which is of that device."""
        count, size = images.shape[:2]
        if not (self.padding or self.horizontal or self.vertical):
            return images
        rows = self._places(count, size, self.vertical, generator)
        columns = self._places(count, size, self.horizontal, generator)
        black = None
        if self.padding and self.border == _CONSTANT:
            outside = [(places < 0) | (places >= size) for places in (rows, columns)]
            black = outside[0][:, :, None] | outside[1][:, None, :]
        rows, columns = self._inside(rows, size), self._inside(columns, size)
        numbers = torch.arange(count, device=images.device)
        moved = images[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
        return moved if black is None else moved.masked_fill_(black[..., None], 0)

    def _places(self, count: int, size: int, chance: float, generator: torch.Generator) -> torch.Tensor:
        """(B, S) which row or column of an image comes to each place; below 0 and from S on it is padding."""
        device = generator.device
        begin = torch.randint(2 * self.padding + 1, (count, 1), device=device, generator=generator) - self.padding
        places = begin + torch.arange(size, device=device)
        flipped = torch.rand((count, 1), device=device, generator=generator) < chance
        return torch.where(flipped, places.flip(1), places)

    def _inside(self, places: torch.Tensor, size: int) -> torch.Tensor:
        if self.border == _REFLECT:
            places = places.abs()
            return (size - 1) - ((size - 1) - places).abs()
        return places.clamp(0, size - 1)


def shifts_of(config: AugmentConfig, *, image_size: int) -> Shifts:
    """The recipe's random variation as a batch on a device can have it.

    Raises:
        UserError: it has more than crops of padded images and flips.
    """
    if config.pipeline is None:
        if config.preset == "none":
            return Shifts(horizontal=0.5 if config.horizontal_flip else 0.0)
        raise _cannot(f"augment.preset is {config.preset}")
    found: dict[str, Any] = {}
    order: list[str] = []
    for step in config.pipeline:
        [(name, arguments)] = step.items()
        order.append(name)
        found |= _step(name, arguments, image_size)
    known = ["Pad", "RandomCrop", "HorizontalFlip", "VerticalFlip"]
    if order != [name for name in known if name in order]:
        raise _cannot(f"augment.pipeline has {', '.join(order)}")
    if ("Pad" in order) != ("RandomCrop" in order):
        raise _cannot("augment.pipeline has one of Pad and RandomCrop without the other")
    if found.get("padding", 0) >= image_size:
        raise _cannot(f"augment.pipeline pads {image_size} pixels by {found['padding']}")
    return Shifts(**found)


def _step(name: str, arguments: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """What a step sets of `Shifts`."""
    given, problem = dict(arguments), f"augment.pipeline has {name}: {dict(arguments)}"
    if name == "Pad":
        padding, border = given.pop("padding", 0), given.pop("border_mode", _CONSTANT)
        if given or not isinstance(padding, int) or padding < 0 or border not in (_REFLECT, _REPLICATE, _CONSTANT):
            raise _cannot(problem)
        return {"padding": padding, "border": border}
    if name == "RandomCrop":
        if {given.pop("height", image_size), given.pop("width", image_size)} != {image_size} or given:
            raise _cannot(problem)
        return {}
    if name in ("HorizontalFlip", "VerticalFlip"):
        chance = given.pop("p", 0.5)
        if given:
            raise _cannot(problem)
        return {"horizontal" if name == "HorizontalFlip" else "vertical": float(chance)}
    raise _cannot(problem)


def _cannot(found: str) -> UserError:
    return UserError(
        f"data.device is cuda, but {found}; expected no random variation, or {_CAN}. Change it, or set data.device to "
        "cpu."
    )


class ResidentLoader(Loader):
    """A loader's batches, cut out of images that lie on the device, as a loader.

    The order, the labels and the seeds are the loader's; what is drawn for a batch depends on its seed alone.

    Args:
        loader: of the images, all of the network's size; its own pipeline is passed over.
        shifts: what is done to a batch.
        device: where they lie, `cuda` or `cpu`.
        image_size: pixels on each side of the network's input.

    Raises:
        UserError: the images are not all of that size, or do not fit into the device's memory.
    """

    def __init__(self, loader: Loader, shifts: Shifts, *, device: str, image_size: int) -> None:
        images, self._whole, self._shifts = loader.images, loader, shifts
        self.num_images, self.num_workers, self.batch_size = loader.num_images, 0, loader.batch_size
        self.decodes = False
        if not isinstance(images, Gatherable) or images.size != (image_size, image_size):
            found = images.size if isinstance(images, Gatherable) else None
            sizes = "several sizes" if found is None else f"{found[0]}x{found[1]} pixels"
            raise UserError(
                f"data.device is cuda, but the images are of {sizes}; "
                f"expected all of {image_size}x{image_size}, in the store. Set augment.image_size to theirs, raise "
                "data.store_budget, or set data.device to cpu."
            )
        need = len(images) * image_size**2 * images[0].shape[2]
        if device == "cuda" and need > _FREE_SHARE * torch.cuda.mem_get_info()[0]:
            free = torch.cuda.mem_get_info()[0] / 2**30
            raise UserError(
                f"data.device is cuda, but the images take {need / 2**30:.1f} GiB and the GPU has {free:.1f} GiB free. "
                "Set data.device to cpu."
            )
        self._pixels = torch.from_numpy(images.gather(range(len(images)))).to(device)
        self._generator = torch.Generator(device)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._whole)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the batch `start` (from 0) on; equal epochs give bit-identical batches."""
        for batch in self._whole.epoch_of(epoch, self._gather, start=start):
            yield self._varied(batch)

    def epoch_of(
        self, epoch: int, gather: Callable[[Sequence[int]], torch.Tensor], *, start: int = 0
    ) -> Iterator[Batch]:
        """As of the loader."""
        return self._whole.epoch_of(epoch, gather, start=start)

    def each_once(self, epoch: int) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """As of the loader, from the device and varied as the batches of an epoch are."""
        for rows, batch in self._whole.each_once_of(epoch, self._gather):
            yield rows, self._varied(batch)

    def rebatched(self, batch_size: int) -> Loader:
        """As of the loader: not from the device, and varied by its own pipeline."""
        return self._whole.rebatched(batch_size)

    @property
    def images(self) -> Images:
        """The images, as they come before the pipeline."""
        return self._whole.images

    def _varied(self, batch: Batch) -> Batch:
        self._generator.manual_seed(batch.seed)
        return batch._replace(images=self._shifts.apply(batch.images, self._generator))

    def _gather(self, rows: Sequence[int]) -> torch.Tensor:
        return self._pixels[torch.tensor(rows, dtype=torch.int64).to(self._pixels.device, non_blocking=True)]
