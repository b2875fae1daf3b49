"""Images that stand in a data set more than once: the same bytes, or nearly the same picture."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls.data.decode import Pixels, to_channels
from imgcls.data.images import map_bounded

MOST_DISTANCE = 8
"""Bits of 64 in which the hashes of near duplicates may differ."""
LEAST_CORRELATION = 0.97
"""Of near duplicates' thumbnails. Of what a hash alone takes for near duplicates, most is not: of 8,000 drawings of
letters it brought together 2,583 pairs, of which 3 were alike; of 3,832 photos 20, of which 14 were. What is resized,
compressed anew, brightened or of less contrast stays above 0.97, what is cropped by 2 % of each side mostly."""
LEAST_CONTRAST = 2.0
"""Standard deviation of grey, in levels of 255, below which an image counts as of one colour, and below which a
thumbnail has no forms to recognise it by (a fine, even texture averages out)."""
THUMB = 16
"""Pixels on a thumbnail's side."""
MOST_PAIRS = 100_000
"""Pairs that are listed; all are counted."""
_ROWS, _COLUMNS = 256, 4096


@dataclass(frozen=True)
class Print:
    """What an image is recognised by.

    Attributes:
        hash: 64 bits of its lowest frequencies (pHash: Zauner 2010, Implementation and benchmarking of perceptual image
            hash functions).
        thumb: (THUMB, THUMB) uint8, grey.
        side: pixels of the image's shorter side.
        is_blank: it shows one colour only.
    """

    hash: int
    thumb: Pixels
    side: int = THUMB
    is_blank: bool = False

    @property
    def is_telling(self) -> bool:
        """Whether there is enough in it to recognise it by."""
        return self.side >= THUMB and float(self.thumb.std()) >= LEAST_CONTRAST


@dataclass(frozen=True)
class NearPairs:
    """Pairs of images that look alike.

    Attributes:
        count: how many there are.
        rows: (P, 2) int64, P at most MOST_PAIRS, the smaller row first; in order of distance.
        distances: (P,) bits in which their hashes differ.
        correlations: (P,) of their thumbnails.
    """

    count: int
    rows: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int64]
    correlations: npt.NDArray[np.float64]


def fingerprint(pixels: Pixels) -> Print:
    """The print of (H, W, 1|3) pixels."""
    import cv2
    import imagehash
    from PIL import Image

    grey = to_channels(pixels, 1)[:, :, 0]
    bits = imagehash.phash(Image.fromarray(grey)).hash
    number = int.from_bytes(np.packbits(bits).tobytes(), "big")
    thumb = np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.uint8)
    return Print(number, thumb, min(grey.shape), is_blank=float(grey.std()) < LEAST_CONTRAST)


def groups(contents: Sequence[str]) -> list[list[int]]:
    """The rows of every content that stands more than once, in order of the first."""
    rows: dict[str, list[int]] = {}
    for row, content in enumerate(contents):
        rows.setdefault(content, []).append(row)
    return [same for same in rows.values() if len(same) > 1]


def near_pairs(prints: Sequence[Print]) -> NearPairs:
    """Every pair whose hashes are near and whose thumbnails correlate.

    Images without forms are in none, nor are those with fewer pixels than a thumbnail: different digits of 8 x 8 pixels
    are as alike as copies of a photo.

    All pairs are compared: 60,000 images take a few seconds, a million a quarter of an hour.
    """
    hashes = np.array([item.hash for item in prints], np.uint64)
    thumbs = np.array([item.thumb for item in prints], np.uint8).reshape(len(prints), THUMB * THUMB)
    usable = np.array([row for row, item in enumerate(prints) if item.is_telling], np.int64)
    hashes, thumbs = hashes[usable], thumbs[usable]
    tiles = [
        (top, left)
        for top in range(0, len(hashes), _ROWS)
        for left in range(top // _COLUMNS * _COLUMNS, len(hashes), _COLUMNS)
    ]
    count, kept = 0, 0
    found: list[npt.NDArray[np.float64]] = [np.empty((0, 4))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for near in map_bounded(pool, lambda tile: _near_in(hashes, thumbs, *tiles[tile]), len(tiles)):
            count += len(near)
            found.append(near[: MOST_PAIRS - kept])
            kept += len(found[-1])
    table = np.concatenate(found)
    table = table[np.lexsort((table[:, 1], table[:, 0], -table[:, 3], table[:, 2]))]
    rows = usable[table[:, :2].astype(np.int64)].astype(np.int64).reshape(-1, 2)
    return NearPairs(count, rows, table[:, 2].astype(np.int64), table[:, 3])


def _near_in(hashes: npt.NDArray[np.uint64], thumbs: Pixels, top: int, left: int) -> npt.NDArray[np.float64]:
    """(P, 4) row, column, distance and correlation of the near pairs above the diagonal of one tile."""
    differing = np.bitwise_count(hashes[top : top + _ROWS, None] ^ hashes[None, left : left + _COLUMNS])
    rows, columns = np.nonzero(differing <= MOST_DISTANCE)
    distances = differing[rows, columns]
    rows, columns = rows + top, columns + left
    above = columns > rows
    rows, columns, distances = rows[above], columns[above], distances[above]
    near = [np.empty((0, 4))]
    for begin in range(0, len(rows), _COLUMNS):
        part = slice(begin, begin + _COLUMNS)
        alike = _correlations(thumbs[rows[part]], thumbs[columns[part]])
        both = np.stack([rows[part], columns[part], distances[part], alike], axis=1)
        near.append(both[alike >= LEAST_CORRELATION])
    return np.concatenate(near)


def _correlations(a: Pixels, b: Pixels) -> npt.NDArray[np.float64]:
    """(P,) Pearson's correlation of (P, D) with (P, D), row by row."""
    x = a.astype(np.float64) - a.mean(axis=1, keepdims=True)
    y = b.astype(np.float64) - b.mean(axis=1, keepdims=True)
    r: npt.NDArray[np.float64] = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return r
