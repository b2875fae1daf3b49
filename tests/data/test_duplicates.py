"""Copies by bytes, and pictures that look alike."""

import io
import itertools

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imgcls.data import duplicates
from imgcls.data.duplicates import MOST_DISTANCE, Print, fingerprint, groups, near_pairs

Pixels = npt.NDArray[np.uint8]


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Pixels:
    """A smooth picture of a few blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def changed(pixels: Pixels, how: str) -> Pixels:
    image = Image.fromarray(pixels)
    if how == "half the size":
        return np.asarray(image.resize((48, 36), Image.Resampling.LANCZOS))
    if how == "compressed":
        return as_jpeg(pixels, 30)
    if how == "brighter":
        return np.asarray(np.clip(pixels * 1.1, 0, 255), np.uint8)
    if how == "grey":
        return np.asarray(image.convert("L"))[:, :, None].copy()
    return np.ascontiguousarray(pixels[1:-1, 1:-1])  # a border cropped


def test_groups_are_the_rows_of_what_stands_more_than_once() -> None:
    assert groups(["b", "a", "b", "c", "a", "b"]) == [[0, 2, 5], [1, 4]]
    assert groups(["a", "b"]) == groups([]) == []


@pytest.mark.parametrize("how", ["half the size", "compressed", "brighter", "grey", "a border cropped"])
def test_a_picture_is_found_again_when_it_was_changed_a_little(how: str) -> None:
    originals = [picture(seed) for seed in range(8)]
    found = near_pairs([fingerprint(pixels) for pixels in [*originals, *(changed(p, how) for p in originals)]])
    assert sorted(found.rows.tolist()) == [[k, k + 8] for k in range(8)]
    assert found.count == 8
    assert (found.correlations >= duplicates.LEAST_CORRELATION).all()


def test_different_pictures_are_no_pairs() -> None:
    found = near_pairs([fingerprint(picture(seed)) for seed in range(60)])
    assert (found.count, found.rows.shape, found.distances.shape) == (0, (0, 2), (0,))


def test_images_of_one_colour_are_blank_and_in_no_pair() -> None:
    prints = [fingerprint(np.full((40, 50, 3), level, np.uint8)) for level in (0, 128, 129, 255)]
    assert [item.is_blank for item in prints] == [True] * 4
    assert near_pairs(prints).count == 0
    assert not fingerprint(picture(0)).is_blank


def test_a_fine_texture_is_neither_blank_nor_in_a_pair() -> None:
    noise = [np.random.default_rng(k).integers(118, 139, (256, 256, 1), dtype=np.uint8) for k in range(3)]
    prints = [fingerprint(pixels) for pixels in [*noise, noise[0]]]
    assert not any(item.is_blank or item.is_telling for item in prints)
    assert near_pairs(prints).count == 0


def test_images_with_fewer_pixels_than_a_thumbnail_are_in_no_pair() -> None:
    assert near_pairs([fingerprint(picture(0, size=(17, 16)))] * 2).count == 1
    assert near_pairs([fingerprint(picture(0, size=(17, 15)))] * 2).count == 0


def test_thin_drawings_of_equal_hash_are_told_apart_by_their_thumbnails() -> None:
    """A perceptual hash sees little of a thin stroke: without a second look, such drawings would flood a report."""

    def stroke(column: int) -> Pixels:
        pixels = np.full((64, 64, 1), 255, np.uint8)
        pixels[20:44, column : column + 2] = 0
        return pixels

    a, b, same = fingerprint(stroke(30)), fingerprint(stroke(36)), fingerprint(stroke(30))
    assert near_pairs([a, Print(a.hash, b.thumb)]).count == 0
    assert near_pairs([a, same]).rows.tolist() == [[0, 1]]


def test_all_pairs_are_found_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 4)
    monkeypatch.setattr(duplicates, "_COLUMNS", 8)
    generator = np.random.default_rng(0)
    thumb = fingerprint(picture(0)).thumb
    hashes = [int(value) for value in generator.integers(0, 2**20, 50)]  # the upper bits are alike in all
    expected = sorted(
        [a, b] for a, b in itertools.combinations(range(50), 2) if (hashes[a] ^ hashes[b]).bit_count() <= MOST_DISTANCE
    )
    found = near_pairs([Print(value, thumb) for value in hashes])
    assert sorted(found.rows.tolist()) == expected
    assert found.count == len(expected) > 100
    assert found.distances.tolist() == [(hashes[a] ^ hashes[b]).bit_count() for a, b in found.rows.tolist()]
    assert found.distances.tolist() == sorted(found.distances.tolist())


def test_pairs_beyond_the_most_that_are_listed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 7)
    found = near_pairs([fingerprint(picture(0))] * 20)
    assert (found.count, len(found.rows), len(found.distances), len(found.correlations)) == (190, 7, 7, 7)


def test_no_images_have_no_pairs() -> None:
    assert near_pairs([]).count == 0
    assert near_pairs([fingerprint(picture(0))]).rows.shape == (0, 2)
