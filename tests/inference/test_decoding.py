"""Decoding in threads: the order of the images, errors in their places, and when it runs ahead."""

import os
import threading
import time

import numpy as np
import pytest

from imgcls.data.decode import DecodeError, Pixels
from imgcls.inference import decoding
from imgcls.inference.decoding import Loaded, decoded

CORES = 4


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(CORES)))


def load(image: bytes | Pixels) -> Pixels:
    """The number in the first byte, or an error for 13."""
    assert isinstance(image, bytes)
    if image[0] == 13:
        raise DecodeError("thirteen")
    return np.array([[[image[0]]]], np.uint8)


def images(number: int, *, size: int = decoding.LARGE_BYTES) -> list[bytes]:
    return [bytes([k]) * size for k in range(number)]


def numbers(batch: list[Loaded]) -> list[int]:
    return [-1 if isinstance(one, DecodeError) else int(one[0, 0, 0]) for one in batch]


@pytest.mark.parametrize("busy", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 17])
@pytest.mark.parametrize("size", [1, decoding.LARGE_BYTES])
def test_the_batches_have_the_images_in_their_order(busy: int, number: int, size: int) -> None:
    found = [numbers(batch) for batch in decoded(images(number, size=size), load, batch_size=5, busy_cores=busy)]
    expected = [-1 if k == 13 else k for k in range(number)]
    assert found == [expected[begin : begin + 5] for begin in range(0, number, 5)]


def test_where_cores_are_free_the_next_batch_is_decoded_meanwhile() -> None:
    seen: list[bytes | Pixels] = []

    def noted(image: bytes | Pixels) -> Pixels:
        seen.append(image)
        return load(image)

    batches = decoded(images(4), noted, batch_size=2, busy_cores=CORES - 1)
    next(batches)
    deadline = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(seen) == 4
    batches.close()


@pytest.mark.parametrize(
    ("busy", "size", "batches"),
    [(1, decoding.LARGE_BYTES, [16] * 4), (1, 1, [64]), (CORES, decoding.LARGE_BYTES, [64])],
)
def test_one_batch_is_made_into_four_only_where_decoding_can_run_ahead(
    busy: int, size: int, batches: list[int]
) -> None:
    found = decoded(images(64, size=size), load, batch_size=64, busy_cores=busy)
    assert [len(batch) for batch in found] == batches


def test_where_the_network_takes_all_cores_nothing_is_decoded_meanwhile() -> None:
    seen: list[bytes | Pixels] = []

    def noted(image: bytes | Pixels) -> Pixels:
        seen.append(image)
        return load(image)

    batches = decoded(images(4), noted, batch_size=2, busy_cores=CORES)
    next(batches)
    time.sleep(0.02)
    assert len(seen) == 2
    batches.close()


@pytest.mark.parametrize(("size", "threads"), [(decoding.LARGE_BYTES, CORES), (decoding.LARGE_BYTES - 1, 1)])
def test_only_large_images_are_spread_over_threads(size: int, threads: int) -> None:
    names = set()
    meet = threading.Barrier(threads, timeout=20)

    def noted(image: bytes | Pixels) -> Pixels:
        names.add(threading.current_thread().name)
        meet.wait()  # or one thread could take all
        return load(image)

    list(decoded(images(CORES, size=size), noted, batch_size=CORES, busy_cores=CORES))
    assert len(names) == threads
    assert ("MainThread" in names) == (threads == 1)


def test_an_error_that_is_not_the_image_s_is_not_taken_for_one() -> None:
    def broken(_image: bytes | Pixels) -> Pixels:
        raise ZeroDivisionError

    for busy in (0, CORES):
        with pytest.raises(ZeroDivisionError):
            list(decoded(images(4), broken, batch_size=2, busy_cores=busy))


def test_threads_end_with_the_images() -> None:
    before = threading.active_count()
    batches = decoded(images(8), load, batch_size=2, busy_cores=1)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
