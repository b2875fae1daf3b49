"""The store's files: what is written is read back, and damage is noticed without reading pixels."""

import multiprocessing as mp
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from imgcls.data.store import INDEX, PIXELS, NotStored, StoredImages, read_store, store_key, write_store

Pixels = npt.NDArray[np.uint8]
CONTENTS = ["ab", "cd", "ef"]


def pictures(sizes: list[tuple[int, int]], channels: int = 3) -> list[Pixels]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, channels), dtype=np.uint8) for size in sizes]


def make(parent: Path, images: list[Pixels], limit: int = 10_000) -> Path:
    channels = images[0].shape[2]
    folder = parent / store_key(CONTENTS, channels=channels, short_side=8)
    folder.mkdir()
    write_store(folder, CONTENTS, iter(images), limit=limit)
    return folder


def read(folder: Path, contents: list[str] | None = None, channels: int = 3) -> StoredImages:
    found = read_store(folder, contents or CONTENTS, channels=channels, short_side=8)
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sizes", [[(4, 5)] * 3, [(4, 5), (8, 2), (1, 1)]])
def test_images_come_back_by_their_content_in_any_order(
    tmp_path: Path, channels: int, sizes: list[tuple[int, int]]
) -> None:
    images = pictures(sizes, channels)
    stored = read(make(tmp_path, images), ["ef", "ab", "ab", "cd"], channels)
    assert len(stored) == 4
    for index, expected in enumerate([2, 0, 0, 1]):
        assert np.array_equal(stored[index], images[expected])
        assert stored[index].dtype == np.uint8
    some = stored.select(np.array([3, 0]))
    assert np.array_equal(some[0], images[1])
    assert np.array_equal(some.select(np.array([1]))[0], images[2])


def test_images_of_one_size_are_one_array_and_come_in_batches(tmp_path: Path) -> None:
    images = pictures([(4, 5)] * 3)
    folder = make(tmp_path, images)
    stored = read(folder).select(np.array([2, 1]))
    assert stored.size == (4, 5)
    assert np.array_equal(stored.gather([1, 0, 1]), np.stack([images[1], images[2], images[1]]))
    assert np.array_equal(np.fromfile(folder / PIXELS, np.uint8).reshape(3, 4, 5, 3), np.stack(images))


def test_images_of_several_sizes_have_no_common_one(tmp_path: Path) -> None:
    assert read(make(tmp_path, pictures([(4, 5), (5, 4), (4, 5)]))).size is None


def test_pixels_cannot_be_changed_by_mistake_but_batches_can(tmp_path: Path) -> None:
    stored = read(make(tmp_path, pictures([(4, 5)] * 3)))
    with pytest.raises(ValueError, match="read-only"):
        stored[0][0, 0, 0] = 1
    stored.gather([0])[0, 0, 0, 0] = 1


def test_more_than_the_limit_is_refused_with_the_figures(tmp_path: Path) -> None:
    with pytest.raises(NotStored, match=r"^2 of 3 take more than 0\.1 KiB$"):
        make(tmp_path, pictures([(4, 5)] * 3), limit=119)


def test_the_key_follows_content_and_form_but_not_the_order() -> None:
    def key(contents: list[str], channels: int = 3, short_side: int = 8) -> str:
        return store_key(contents, channels=channels, short_side=short_side)

    assert key(["a", "b"]) == key(["b", "a", "b"])
    assert len({key(["a", "b"]), key(["a"]), key(["a", "b"], 1), key(["a", "b"], 3, 9)}) == 4


def _cut(folder: Path, name: str, keep: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])


@pytest.mark.parametrize("damage", ["cut pixels", "longer pixels", "no pixels", "cut index", "no index", "other index"])
def test_a_damaged_store_is_not_opened(tmp_path: Path, damage: str) -> None:
    folder = make(tmp_path, pictures([(4, 5)] * 3))
    if damage == "cut pixels":
        _cut(folder, PIXELS, 179)
    elif damage == "longer pixels":
        (folder / PIXELS).write_bytes(b"x" * 181)
    elif damage == "no pixels":
        (folder / PIXELS).unlink()
    elif damage == "cut index":
        _cut(folder, INDEX, 100)
    elif damage == "no index":
        (folder / INDEX).unlink()
    else:
        shapes = np.full((3, 2), (5, 4), np.int32)
        np.savez(folder / INDEX, contents=np.array(["ab", "cd", "xx"], np.bytes_), shapes=shapes)
    assert read_store(folder, CONTENTS, channels=3, short_side=8) is None


def _mean(stored: StoredImages, answer: "mp.Queue[float]") -> None:
    answer.put(float(stored.gather([0, 1, 2]).mean()))


def test_a_forked_process_reads_the_same_map(tmp_path: Path) -> None:
    images = pictures([(4, 5)] * 3)
    stored, context = read(make(tmp_path, images)), mp.get_context("fork")
    answer = context.Queue()
    worker = context.Process(target=_mean, args=(stored, answer))
    worker.start()
    assert answer.get(timeout=20) == np.stack(images).mean()
    worker.join(20)


def test_a_pickled_store_maps_the_file_and_carries_no_pixels(tmp_path: Path) -> None:
    images = pictures([(100, 50)] * 3)
    stored = read(make(tmp_path, images, limit=100_000)).select(np.array([2, 0]))
    text = pickle.dumps(stored)
    assert len(text) < images[0].nbytes
    assert np.array_equal(pickle.loads(text)[0], images[2])
