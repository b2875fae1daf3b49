"""A stream of predictions: those of the classifier bit by bit, in order, in bounded memory, past what is unreadable."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import pytest

from imgcls.data.augment import AugmentConfig, Preprocessing
from imgcls.errors import UserError
from imgcls.evaluation.ensemble import combine
from imgcls.inference.classifier import Classifier
from imgcls.inference.ensemble import Ensemble
from imgcls.inference.stream import Item, Seen, stream
from imgcls.inference.views import ViewMaker, Views
from imgcls.models.plaincnn import PlainCNNConfig
from tests.inference.test_classifier import classifier, noise, png

Pixels = npt.NDArray[np.uint8]
IMAGES = [noise(16 + number % 7, 16 + number % 5, number) for number in range(150)]


def items(images: Sequence[Pixels | bytes]) -> list[Item]:
    def read(number: int) -> Pixels | bytes:
        return images[number]

    return [Item(f"{number}.png", partial(read, number)) for number in range(len(images))]


def probs_of(seen: Iterator[Seen]) -> npt.NDArray[np.float32]:
    return np.stack([one.probs for one in seen if one.probs is not None])


@pytest.mark.parametrize("num_threads", [1, 8])
def test_it_gives_the_probabilities_of_the_classifier_bit_by_bit_in_order(num_threads: int) -> None:
    model = classifier()
    encoded = [png(image) for image in IMAGES]
    found = list(stream(model, items(encoded), num_threads=num_threads))
    assert [one.name for one in found] == [f"{number}.png" for number in range(150)]
    assert {one.error for one in found} == {""}
    assert np.array_equal(probs_of(iter(found)), model.probabilities(encoded))


@pytest.mark.parametrize("views", [Views(2, "flips"), Views(10), Views(7, "train", augment=AugmentConfig())])
def test_several_views_are_put_together_whatever_the_batches(views: Views) -> None:
    model, maker = classifier(), ViewMaker(classifier().preprocessing, views)
    images = IMAGES[:9]
    expected = np.stack(
        [model.probabilities(list(maker(image, f"{number}.png"))).mean(0) for number, image in enumerate(images)]
    )
    for batch_size in (1, 20, 1000):
        found = probs_of(stream(model, items(images), views=views, batch_size=batch_size))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - model.probabilities(images)).max() > 1e-4, "the views say something else than one"


def test_a_vote_counts_the_views_that_name_a_class() -> None:
    model, views = classifier(PlainCNNConfig(num_blocks=2, channels=8)), Views(5, combine="vote")
    maker = ViewMaker(model.preprocessing, views)
    found = probs_of(stream(model, items(IMAGES[:40]), views=views))
    each = [model.probabilities(list(maker(image))) for image in IMAGES[:40]]
    expected = np.stack([combine([view[None] for view in views_], how="vote")[0] for views_ in each])
    assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_an_ensemble_s_members_each_look_at_the_image_their_own_way() -> None:
    members = classifier(), classifier(PlainCNNConfig(num_blocks=1, channels=4), channels=1, size=24)
    model = Ensemble(members, (1.0, 3.0))
    found = probs_of(stream(model, items(IMAGES[:70])))
    assert np.array_equal(found, model.probabilities(IMAGES[:70]))


@pytest.mark.parametrize(
    ("views", "batch_size", "sizes"),
    [(Views(), 100, [100, 50]), (Views(), 40, [40, 40, 40, 30]), (Views(2), 90, [90, 90, 90, 30])],
)
def test_so_many_images_are_computed_together_as_are_asked_for(
    views: Views, batch_size: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sizes_of(monkeypatch, IMAGES, views, batch_size) == sizes


def test_one_image_s_views_are_cut_where_they_are_more_than_are_computed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sizes_of(monkeypatch, IMAGES[:2], Views(10), 4) == [4, 4, 2] * 2


def sizes_of(monkeypatch: pytest.MonkeyPatch, images: Sequence[Pixels], views: Views, batch_size: int) -> list[int]:
    """How many images the network got at a time."""
    sizes, of_pixels = list[int](), Classifier.of_pixels

    def counted(self: Classifier, pixels: Pixels) -> npt.NDArray[np.float32]:
        sizes.append(len(pixels))
        return of_pixels(self, pixels)

    monkeypatch.setattr(Classifier, "of_pixels", counted)
    assert len(list(stream(classifier(), items(images), views=views, batch_size=batch_size))) == len(images)
    return sizes


@pytest.mark.parametrize("views", [Views(), Views(4), Views(3, "train", augment=AugmentConfig())])
def test_an_image_is_decoded_once_for_all_members_of_one_preprocessing(
    views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = classifier(), classifier(PlainCNNConfig(num_blocks=1, channels=4)), classifier(size=24)
    each = [probs_of(stream(member, items(IMAGES[:9]), views=views)) for member in members]
    decodings, pixels = list[int](), Preprocessing.pixels

    def counted(self: Preprocessing, image: bytes | Pixels) -> Pixels:
        decodings.append(self.image_size)
        return pixels(self, image)

    monkeypatch.setattr(Preprocessing, "pixels", counted)
    found = probs_of(stream(Ensemble(members, (1.0, 2.0, 1.0)), items(IMAGES[:9]), views=views))
    assert sorted(decodings) == [16] * 9 + [24] * 9
    assert np.array_equal(found, combine(each, (1.0, 2.0, 1.0)).astype(np.float32))


def missing() -> bytes:
    return Path("nowhere.png").read_bytes()


def test_images_that_cannot_be_read_are_told_and_the_others_predicted() -> None:
    model, given = classifier(), items(IMAGES[:70])
    given[0] = Item("damaged", lambda: b"no image")
    given[10] = Item("missing", missing)
    given[64:69] = [Item(f"empty {number}", lambda: b"") for number in range(5)]
    found = list(stream(model, given, batch_size=64))
    assert [one.name for one in found] == [item.name for item in given]
    bad = {one.name: one.error for one in found if one.probs is None}
    assert bad.pop("missing") == "No such file or directory"
    assert "cannot be decoded" in bad.pop("damaged")
    assert list(bad.values()) == ["the file is empty"] * 5
    good = [image for number, image in enumerate(IMAGES[:70]) if number not in {0, 10, *range(64, 69)}]
    np.testing.assert_allclose(probs_of(iter(found)), model.probabilities(good), atol=1e-6)


def test_where_nothing_can_be_read_and_where_there_is_nothing() -> None:
    found = list(stream(classifier(), [Item("a", lambda: b"")]))
    assert [(one.name, one.probs) for one in found] == [("a", None)]
    assert list(stream(classifier(), [])) == []


def test_it_is_in_evaluation_mode() -> None:
    model = classifier()
    model.module.train()
    assert np.array_equal(probs_of(stream(model, items(IMAGES[:3]))), classifier().probabilities(IMAGES[:3]))


class Image(np.ndarray):
    """Pixels that can be counted."""


def test_of_20_000_images_three_batches_are_in_memory_at_a_time() -> None:
    lock, alive, most_alive, taken = Lock(), set[int](), 0, 0
    pixels = np.zeros((8, 8, 3), np.uint8)

    def gone(number: int) -> None:
        with lock:
            alive.discard(number)

    def read(number: int) -> Pixels:
        nonlocal most_alive
        image = pixels.copy().view(Image)
        weakref.finalize(image, gone, number)
        with lock:
            alive.add(number)
            most_alive = max(most_alive, len(alive))
        return image

    def source() -> Iterator[Item]:
        nonlocal taken
        for taken in range(1, 20_001):
            yield Item(str(taken), partial(read, taken))

    model = classifier(PlainCNNConfig(num_blocks=1, channels=1), size=8)
    most_ahead = 0
    for done, _ in enumerate(stream(model, source(), num_threads=2), 1):
        most_ahead = max(most_ahead, taken - done)
    assert done == taken == 20_000
    assert most_ahead <= 3 * 64
    assert most_alive <= 3 * 64
    gc.collect()
    assert not alive


def test_when_it_is_closed_no_more_images_are_read() -> None:
    taken: list[int] = []

    def source() -> Iterator[Item]:
        for number in range(10_000):
            taken.append(number)
            yield Item(str(number), partial(noise, 16, 16))

    seen = stream(classifier(), source(), num_threads=2)
    next(seen)
    seen.close()
    assert len(taken) <= 3 * 64


def test_an_error_that_is_none_of_the_image_ends_it() -> None:
    def broken() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stream(classifier(), [Item("a", broken)]))


def test_views_of_a_training_that_is_not_known_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "probabilities", None)
    with pytest.raises(UserError, match="need the training's recipe"):
        next(stream(classifier(), items(IMAGES), views=Views(2, "train")))
