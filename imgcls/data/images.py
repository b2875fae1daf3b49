"""Pixels by row of a manifest: from the store of decoded images, else from their files at every access."""

import contextlib
import hashlib
import io
import math
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from imgcls.data import cache
from imgcls.data.decode import DecodeError, Pixels, decode, shrink, to_channels
from imgcls.data.store import NotStored, Rows, read_store, store_key, write_store
from imgcls.errors import UserError
from imgcls.tables import Manifest

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""
SPARE_BYTES = 2 * 2**30
"""What a store leaves free on its disk."""
_SAMPLED = 256
"""Headers read to estimate the size of a store."""
_CHUNK_IMAGES, _CHUNK_BYTES = 16, 4 * 2**20
"""What a thread decodes before it hands it over: one by one, that would cost as much as decoding small images."""
_MOST_THREADS = 16
"""Beyond, the one that writes cannot follow."""


class Images(Protocol):
    """Images by index, each (H, W, C) uint8 of its own height and width."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pixels: ...


@runtime_checkable
class Gatherable(Protocol):
    """Images that come in batches where all are of one size.

    Attributes:
        size: (H, W) of all of them, or None.
    """

    size: tuple[int, int] | None

    def gather(self, rows: Sequence[int]) -> Pixels:
        """(B, H, W, C) copies of images, where `size` is not None."""


class OpenImages(Images, Protocol):
    """Images of which some can be selected."""

    def select(self, rows: Rows) -> "OpenImages":
        """These rows alone, without a copy."""


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
        return self.decoded(index, read_encoded(self._manifest, index))

    def decoded(self, index: int, data: bytes) -> Pixels:
        """The image from its bytes.

        Raises:
            UserError: they are no readable image.
        """
        try:
            return decode(data, channels=self._channels, short_side=self._short_side)
        except DecodeError as error:
            name = name_of(self._manifest, index)
            raise UserError(f"cannot read the image {name}: {error}. Mend or remove the file.") from error

    def select(self, rows: Rows) -> "DecodedImages":
        """These rows alone."""
        frame = self._manifest.frame.iloc[rows].reset_index(drop=True)
        part = Manifest(frame, self._manifest.classes, self._manifest.digest, encoded=self._manifest.encoded)
        return DecodedImages(part, channels=self._channels, short_side=self._short_side)


class ArrayImages:
    """Images that are there as an array.

    Args:
        pixels: (N, H, W), (N, H, W, 1) or (N, H, W, channels) uint8, not copied.
        rows: those that count, in order.
        channels: 1 or 3; grey is repeated where that is 3.
    """

    def __init__(self, pixels: Pixels, rows: Rows, *, channels: int) -> None:
        self._pixels = pixels if pixels.ndim == 4 else pixels[..., None]
        self._rows, self._channels = rows, channels
        assert self._pixels.shape[3] in (1, channels)
        self.size: tuple[int, int] | None = (pixels.shape[1], pixels.shape[2])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pixels:
        return to_channels(self._pixels[self._rows[index]], self._channels)

    def gather(self, rows: Sequence[int]) -> Pixels:
        """(B, H, W, C) copies of images."""
        taken = np.take(self._pixels, self._rows[list(rows)], axis=0)
        return taken if taken.shape[3] == self._channels else taken.repeat(self._channels, axis=3)

    def select(self, rows: Rows) -> "ArrayImages":
        """These rows alone."""
        return ArrayImages(self._pixels, self._rows[rows], channels=self._channels)


def open_images(
    manifest: Manifest,
    *,
    channels: int,
    short_side: int,
    budget: int,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _text: None,
    origin: str = "",
) -> OpenImages:
    """The manifest's images, each decoded once: into a store in the cache folder, shared by all who read the same ones.

    Where the store does not fit, or cannot be written, images are decoded at every access, and that is said. A store
    that is there already is opened without reading an image.

    Args:
        manifest: the rows to open; best those of all splits, for one store.
        channels: 1 or 3.
        short_side: pixels; larger images are shrunk to it.
        budget: bytes that all stores together may take; those used least recently make room. 0: no store.
        progress: told how many images are decoded.
        say: takes a line for the user.
        origin: what the images come from, for the list of the cache.

    Raises:
        UserError: images that cannot be read; up to five are named, with reasons.
    """
    if manifest.images is not None:
        return _open_array(manifest, channels=channels, short_side=short_side)
    files = DecodedImages(manifest, channels=channels, short_side=short_side)
    opening = _Opening(manifest, files, channels, short_side, budget, progress or (lambda _done, _total: None), say)
    if budget <= 0 or len(manifest) == 0:
        opening.prove()
        return files
    try:
        return opening.stored(origin)
    except (NotStored, OSError) as error:
        reason = error if isinstance(error, NotStored) else f"{cache.cache_dir()} cannot be written ({error.strerror})"
        say(f"images are decoded anew in every epoch, which is slow: {reason}")
        if not opening.proven:
            opening.prove()
        return files


def _open_array(manifest: Manifest, *, channels: int, short_side: int) -> ArrayImages:
    assert manifest.images is not None
    pixels, rows = manifest.images, manifest.frame["row"].to_numpy(dtype=np.int64)
    fits = len(pixels) == 0 or min(pixels.shape[1:3]) <= short_side
    if fits and (pixels.ndim == 3 or pixels.shape[3] in (1, channels)):
        return ArrayImages(pixels, rows, channels=channels)
    grey = pixels.ndim == 3 or pixels.shape[3] == 1
    smaller = np.stack([shrink(to_channels(pixels[row], 1 if grey else channels), short_side) for row in rows])
    return ArrayImages(smaller, np.arange(len(rows)), channels=channels)


class _Opening:
    """The one pass over all images of a manifest, with or without a store that keeps them.

    Attributes:
        proven: every image was decoded.
    """

    def __init__(
        self,
        manifest: Manifest,
        files: DecodedImages,
        channels: int,
        short_side: int,
        budget: int,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self._manifest, self._files, self._budget = manifest, files, budget
        self._channels, self._short_side = channels, short_side
        self._progress, self._say = progress, say
        self._contents = [str(content) for content in manifest.frame["content"]]
        self.proven = False

    def prove(self) -> None:
        """Decode all images and keep none."""
        with contextlib.suppress(NotStored):
            for _ in self._decoded():
                pass

    def stored(self, origin: str) -> OpenImages:
        """The images in their store, which is built where it is not there.

        Raises:
            NotStored: they do not fit.
            OSError: the cache folder cannot be written.
        """
        key = store_key(self._contents, channels=self._channels, short_side=self._short_side)
        damaged = cache.cache_dir().joinpath("store", key).is_dir()

        def whole(folder: Path) -> bool:
            return self._read(folder) is not None

        def build(folder: Path) -> None:
            if damaged:
                self._say(f"the store {folder.with_suffix('')} was damaged; it is made anew")
            self._build(folder, key)

        kinds = f"{self._channels} channel{'s' * (self._channels > 1)}, short side up to {self._short_side} px"
        about = f"{len(set(self._contents)):,} images, {kinds}"
        waiting = "another process is decoding the same images; waiting for it"
        for _ in range(3):
            folder = cache.entry(
                "store", key, build, whole=whole, about=f"{origin}: {about}" if origin else about,
                on_wait=lambda: self._say(waiting),
            )  # fmt: skip
            images = self._read(folder)
            if images is not None:
                return images
            damaged = False  # evicted by another process just now
        raise NotStored("other processes evict the store as soon as it is made; raise data.store_budget")

    def _read(self, folder: Path) -> OpenImages | None:
        return read_store(folder, self._contents, channels=self._channels, short_side=self._short_side)

    def _build(self, folder: Path, key: str) -> None:
        cache.sweep()
        limit = self._make_room(key)
        decoded = self._decoded()
        try:
            write_store(folder, list(dict.fromkeys(self._contents)), self._once_each(decoded), limit=limit)
        except (NotStored, OSError):
            shutil.rmtree(folder, ignore_errors=True)  # at once: others may need the space
            for _ in decoded:
                pass
            raise
        cache.evict("store", keep_bytes=self._budget - cache.size_of(folder), spare=key)
        self._say(
            f"decoded {len(self._files):,} images once, {cache.size_text(cache.size_of(folder))} in {folder.parent}"
        )

    def _once_each(self, decoded: Iterator[tuple[int, Pixels]]) -> Iterator[Pixels]:
        seen: set[str] = set()
        for index, pixels in decoded:
            if self._contents[index] not in seen:
                seen.add(self._contents[index])
                yield pixels

    def _make_room(self, key: str) -> int:
        """Evict other stores until this one fits; the bytes of pixels that it may take."""
        others = sum(item.num_bytes for item in cache.entries("store"))
        free = shutil.disk_usage(cache.cache_dir()).free
        limit = min(self._budget, free + others - SPARE_BYTES)
        needed = self._estimate()
        if needed > limit:
            why = (
                "data.store_budget"
                if limit == self._budget
                else f"what its disk has to spare ({cache.size_text(limit)})"
            )
            raise NotStored(f"decoded they take about {cache.size_text(needed)}, more than {why}")
        cache.evict("store", keep_bytes=int(limit - needed), spare=key)
        return int(limit)

    def _estimate(self) -> float:
        """Bytes of pixels, from the headers of some images."""
        step = max(1, len(self._files) // _SAMPLED)
        sampled = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers; what is wrong is told when the image is decoded
            for index in range(0, len(self._files), step):
                try:
                    with Image.open(io.BytesIO(read_encoded(self._manifest, index))) as image:
                        width, height = image.size
                except Exception:  # Pillow's plug-ins raise whatever their parser happens to
                    continue
                scale = min(1.0, self._short_side / min(width, height))
                sampled.append(width * height * scale**2 * self._channels)
        return float(np.mean(sampled)) * len(set(self._contents)) if sampled else 0.0

    def _decoded(self) -> Iterator[tuple[int, Pixels]]:
        """(index, pixels) of all images.

        Raises:
            UserError: after the last one, where some cannot be read.
            NotStored: after the last one, where some are not what was scanned.
        """
        bad: list[str] = []
        changed: list[int] = []
        num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
        size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (self._short_side**2 * self._channels)))

        def load(chunk: int) -> list[Pixels | UserError | None]:
            return [self._load(index) for index in range(chunk * size, min((chunk + 1) * size, len(self._files)))]

        with ThreadPoolExecutor(num_threads) as pool:
            chunks = map_bounded(pool, load, math.ceil(len(self._files) / size), ahead=2 * num_threads)
            for index, loaded in enumerate(item for chunk in chunks for item in chunk):
                if isinstance(loaded, UserError):
                    bad.append(str(loaded))
                elif loaded is None:
                    changed.append(index)
                elif not bad and not changed:
                    yield index, loaded
                self._progress(index + 1, len(self._files))
        if bad:
            more = f"\n… and {len(bad) - 5} more unreadable images." if len(bad) > 5 else ""
            raise UserError("\n".join(bad[:5]) + more)
        self.proven = True
        if changed:
            first = name_of(self._manifest, changed[0])
            raise NotStored(f"{len(changed):,} changed since they were listed, the first is {first}")

    def _load(self, index: int) -> Pixels | UserError | None:
        """The image, why it cannot be read, or None where it can be but is not what its content hash says."""
        try:
            data = read_encoded(self._manifest, index)
            pixels = self._files.decoded(index, data)
        except UserError as error:
            return error
        return pixels if hashlib.blake2b(data, digest_size=16).hexdigest() == self._contents[index] else None


def map_bounded(pool: ThreadPoolExecutor, load: Callable[[int], T], count: int, ahead: int = 64) -> Iterator[T]:
    """`load` of 0 … count - 1 in order, with at most `ahead` results waiting, so that memory stays bounded."""
    waiting: deque[Future[T]] = deque()
    for index in range(count):
        waiting.append(pool.submit(load, index))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
