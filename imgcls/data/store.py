"""The store of decoded images: uint8 pixels in one file, mapped into memory and so shared between processes."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL

from imgcls.data.cache import size_text
from imgcls.data.decode import Pixels

FORMAT = 1
PIXELS, INDEX = "pixels.bin", "index.npz"
_BUFFER = 2**20
Rows = npt.NDArray[np.int64]


class NotStored(Exception):
    """The images are not kept. The message is the reason."""


def store_key(contents: Iterable[str], *, channels: int, short_side: int) -> str:
    """The name of the store of these images: 32 hex digits.

    Equal for equal images, whatever their labels, splits, files and order; another where Pillow or OpenCV is of another
    version, since those may decode or shrink to other pixels.
    """
    form = f"{FORMAT} {channels} {short_side} {PIL.__version__} {cv2.__version__}"
    text = "\n".join([form, *sorted(set(contents))])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_store(folder: Path, contents: Sequence[str], images: Iterable[Pixels], *, limit: int) -> None:
    """Write images one after the other; those of equal size form an (N, H, W, C) array.

    Args:
        folder: an empty folder.
        contents: N distinct content hashes.
        images: the N images, (H, W, C) uint8.
        limit: bytes of pixels, at most.

    Raises:
        NotStored: they are more than `limit`.
        OSError: the disk is full, or the folder cannot be written.
    """
    sizes: list[tuple[int, int]] = []
    written = 0
    with (folder / PIXELS).open("wb", buffering=_BUFFER) as file:
        for pixels in images:
            written += pixels.nbytes
            if written > limit:
                raise NotStored(f"{len(sizes) + 1:,} of {len(contents):,} take more than {size_text(limit)}")
            file.write(np.ascontiguousarray(pixels).data)
            sizes.append((pixels.shape[0], pixels.shape[1]))
    assert len(sizes) == len(contents)
    shapes = np.array(sizes, np.int32).reshape(-1, 2)
    np.savez(folder / INDEX, contents=np.array(contents, np.bytes_), shapes=shapes)


class StoredImages:
    """The images of a store, or some rows of it.

    Attributes:
        size: (H, W) where all of these images are of one size, else None.
    """

    def __init__(
        self,
        path: Path,
        offsets: Rows,
        shapes: npt.NDArray[np.int32],
        channels: int,
        rows: Rows,
        flat: Pixels | None = None,
    ) -> None:
        self._path, self._offsets, self._shapes = path, offsets, shapes
        self._channels, self._rows = channels, rows
        # A plain view: slices of a memmap each cost some microseconds more.
        self._flat = flat = np.asarray(np.memmap(path, np.uint8, "r")) if flat is None else flat
        self._block: Pixels | None = None
        self.size: tuple[int, int] | None = None
        if len(rows) and (shapes == shapes[0]).all():
            self.size = (int(shapes[0, 0]), int(shapes[0, 1]))
            self._block = flat.reshape(-1, *self.size, channels)

    def __reduce__(self) -> tuple[type["StoredImages"], tuple[Any, ...]]:
        """Where workers are not forked they map the file themselves; a pickled array would be a copy of it all."""
        return StoredImages, (self._path, self._offsets, self._shapes, self._channels, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pixels:
        """(H, W, C) uint8, mapped and not to be written to."""
        row = self._rows[index]
        if self._block is not None:
            one: Pixels = self._block[row]
            return one
        height, width = self._shapes[row]
        return self._flat[self._offsets[row] : self._offsets[row + 1]].reshape(height, width, self._channels)

    def gather(self, rows: Sequence[int]) -> Pixels:
        """(B, H, W, C) copies of images, where `size` is not None."""
        assert self._block is not None
        return np.take(self._block, self._rows[list(rows)], axis=0)

    def select(self, rows: Rows) -> "StoredImages":
        """These rows alone."""
        rows = self._rows[rows]
        return StoredImages(self._path, self._offsets, self._shapes, self._channels, rows, self._flat)


def read_store(folder: Path, contents: Sequence[str], *, channels: int, short_side: int) -> StoredImages | None:
    """The images with these contents, in this order; None where the store is damaged or gone.

    Damage is told by the sizes of its files and by its index, which must give the folder's name; pixels are not read.

    Args:
        folder: a store that holds all of `contents`, named by `store_key`.
        contents: a content hash for each image.
        channels: 1 or 3; the store's.
        short_side: pixels; the store's.
    """
    try:
        with np.load(io.BytesIO((folder / INDEX).read_bytes()), allow_pickle=False) as index:
            names = [name.decode("ascii") for name in index["contents"].tolist()]
            shapes = np.asarray(index["shapes"], np.int32)
        offsets = np.concatenate([[0], np.cumsum(shapes.astype(np.int64).prod(axis=1) * channels)])
        if store_key(names, channels=channels, short_side=short_side) != folder.name:
            return None
        if len(shapes) != len(names) or (folder / PIXELS).stat().st_size != offsets[-1]:
            return None
        where = {name: row for row, name in enumerate(names)}
        rows = np.array([where[content] for content in contents], np.int64)
        return StoredImages(folder / PIXELS, offsets, shapes, channels, rows)
    except Exception:  # whatever a damaged archive makes of zipfile and NumPy: BadZipFile, EOFError, KeyError, …
        return None
