"""Pixels by row of a manifest: decoded once into memory where they fit, else from their files each time."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from imgcls.data.decode import DecodeError, Pixels, decode, shrink, to_channels
from imgcls.errors import UserError
from imgcls.tables import Manifest

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class Images(Protocol):
    """Images by index, each (H, W, C) uint8 of its own height and width."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pixels: ...


def read_encoded(manifest: Manifest, index: int) -> bytes:
    """The encoded bytes of one image of a manifest that holds no pixels itself.

    Raises:
        UserError: its file cannot be read.
    """
    if manifest.encoded is not None:
        return manifest.encoded[int(manifest.frame["row"].to_numpy()[index])]
    path = Path(str(manifest.frame["path"].iat[index]))
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}. Mend or remove the file.") from error


def name_of(manifest: Manifest, index: int) -> str:
    """What an error calls an image: its file, or its id where it has none of its own."""
    return str(manifest.frame["path"].iat[index] or manifest.frame["id"].iat[index])


class DecodedImages:
    """A manifest's images, decoded at every access.

    Args:
        manifest: files, or encoded bytes; not pixels.
        channels: 1 or 3.
        short_side: pixels; larger images are shrunk to it.
    """

    def __init__(self, manifest: Manifest, *, channels: int, short_side: int) -> None:
        self._manifest, self._channels, self._short_side = manifest, channels, short_side

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: int) -> Pixels:
        data = read_encoded(self._manifest, index)
        try:
            return decode(data, channels=self._channels, short_side=self._short_side)
        except DecodeError as error:
            name = name_of(self._manifest, index)
            raise UserError(f"cannot read the image {name}: {error}. Mend or remove the file.") from error


def open_images(
    manifest: Manifest, *, channels: int, short_side: int, budget_mb: int, progress: Progress | None = None
) -> Images:
    """The manifest's images, every one of them decoded once to prove it readable.

    Args:
        manifest: the rows to open.
        channels: 1 or 3.
        short_side: pixels; larger images are shrunk to it.
        budget_mb: MiB of pixels to keep; also never more than half the memory that is free now.
        progress: told how many images are done.

    Raises:
        UserError: images that cannot be read; up to five are named, with reasons.
    """
    if manifest.images is not None:
        rows = manifest.frame["row"].to_numpy()
        return [shrink(to_channels(manifest.images[row], channels), short_side) for row in rows]
    files = DecodedImages(manifest, channels=channels, short_side=short_side)
    budget = min(budget_mb * 2**20, psutil.virtual_memory().available // 2)
    kept: list[Pixels] = []
    bad: list[str] = []
    used = 0

    def load(index: int) -> Pixels | str:
        try:
            return files[index]
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, loaded in enumerate(map_bounded(pool, load, len(files)), 1):
            if isinstance(loaded, str):
                bad.append(loaded)
            elif used <= budget:
                kept.append(loaded)
                used += loaded.nbytes
            if progress is not None:
                progress(done, len(files))
    if bad:
        more = f"\n… and {len(bad) - 5} more unreadable images." if len(bad) > 5 else ""
        raise UserError("\n".join(bad[:5]) + more)
    return kept if len(kept) == len(files) else files


def map_bounded(pool: ThreadPoolExecutor, load: Callable[[int], T], count: int, ahead: int = 64) -> Iterator[T]:
    """`load` of 0 … count - 1 in order, with at most `ahead` results waiting, so that memory stays bounded."""
    waiting: deque[Future[T]] = deque()
    for index in range(count):
        waiting.append(pool.submit(load, index))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
