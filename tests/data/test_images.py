"""Opening images: from a store that is made once and shared, or from their files, with every unreadable one named."""

import errno
import io
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.data import cache
from imgcls.data import images as module
from imgcls.data.images import ArrayImages, DecodedImages, OpenImages, open_images
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
from imgcls.data.store import PIXELS, StoredImages
from imgcls.errors import UserError
from imgcls.tables import Encoded, Manifest

MakeFolder = Callable[..., Path]
BUDGET = 2**24


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def manifest_of(root: Path) -> Manifest:
    return scan(FolderConfig(root=str(root)))


def opened(manifest: Manifest, said: list[str] | None = None, **others: Any) -> OpenImages:
    given = {"channels": 3, "short_side": 8, "budget": BUDGET, **others}
    return open_images(manifest, say=(said if said is not None else []).append, **given)


def stores() -> list[cache.Entry]:
    return cache.entries("store")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in (folder / "store").iterdir() if path.is_dir()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 30), (7, 5)])
def test_stored_images_are_those_that_are_decoded_on_the_fly(
    make_folder: MakeFolder, channels: int, size: tuple[int, int]
) -> None:
    manifest = manifest_of(make_folder(classes=2, images=40, size=size))
    stored = opened(manifest, channels=channels, short_side=20)
    files = opened(manifest, channels=channels, short_side=20, budget=0)
    assert isinstance(stored, StoredImages)
    assert isinstance(files, DecodedImages)
    assert len(stored) == len(files) == 80
    for row in range(80):
        assert np.array_equal(stored[row], files[row])
    assert stored[0].shape == ((20, 27, channels) if size == (40, 30) else (5, 7, channels))


@pytest.mark.parametrize("budget", [0, BUDGET])
def test_some_rows_can_be_selected(make_folder: MakeFolder, budget: int) -> None:
    images = opened(manifest_of(make_folder(classes=2, images=4)), budget=budget)
    some = images.select(np.array([5, 0, 3]))
    assert len(some) == 3
    assert np.array_equal(some[0], images[5])
    assert np.array_equal(some.select(np.array([2]))[0], images[3])


def test_a_second_opening_reads_no_image(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=4)
    manifest, said = manifest_of(root), list[str]()
    first = opened(manifest, said)
    assert said == [f"decoded 8 images once, {stores()[0].num_bytes / 1024:.1f} KiB in {cache.cache_dir()}/store"]
    for path in root.rglob("*.png"):
        path.unlink()
    told: list[tuple[int, int]] = []
    again = opened(manifest, said, progress=lambda done, total: told.append((done, total)))
    assert (len(said), told) == (1, [])
    assert all(np.array_equal(first[row], again[row]) for row in range(8))


def test_the_store_is_shared_whatever_the_labels_splits_names_and_order(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=4)
    first = opened(manifest_of(root))
    (root / "class0").rename(root / "other")
    (root / "class1/0.png").rename(root / "class1/zero.png")
    renamed = manifest_of(root).with_splits(["train", "val"] * 4)
    again = opened(renamed)
    assert len(stores()) == 1
    old = {first[row].tobytes() for row in range(8)}
    assert {again[row].tobytes() for row in range(8)} == old


def test_other_channels_sizes_and_images_have_stores_of_their_own(make_folder: MakeFolder) -> None:
    manifest = manifest_of(make_folder(classes=2, images=4))
    opened(manifest)
    opened(manifest, channels=1)
    opened(manifest, short_side=9)
    opened(manifest.without([0], skipped=[]))
    assert len(stores()) == 4
    assert "7 images, 3 channels, short side up to 8 px" in {item.about for item in stores()}


def test_equal_images_are_kept_once(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=2, size=(8, 8))
    (root / "class0" / "copy.png").write_bytes((root / "class0" / "0.png").read_bytes())
    images = opened(manifest_of(root))
    assert len(images) == 5
    assert np.array_equal(images[0], images[2])
    assert (stores()[0].path / PIXELS).stat().st_size == 4 * 8 * 8 * 3


def test_black_and_white_and_grey_images_keep_their_meaning(tmp_path: Path) -> None:
    strokes = np.zeros((9, 9), bool)
    strokes[4, 2:7] = True
    grey = np.arange(81, dtype=np.uint8).reshape(9, 9)
    for number in range(2):
        for name, picture in (("bits", Image.fromarray(strokes)), ("grey", Image.fromarray(grey + number))):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    with Image.open(tmp_path / "photos/bits/0.png") as picture:
        assert picture.mode == "1"
    manifest = manifest_of(tmp_path / "photos")
    for channels in (1, 3):
        images = opened(manifest, channels=channels, short_side=9)
        assert np.array_equal(images[0], np.repeat(strokes[:, :, None] * np.uint8(255), channels, 2))
        assert np.array_equal(images[2], np.repeat(grey[:, :, None], channels, 2))


def test_encoded_images_are_stored_like_files(make_folder: MakeFolder) -> None:
    files = manifest_of(make_folder(classes=2, images=3))
    data = [Path(path).read_bytes() for path in files.frame["path"]]
    encoded = Encoded(np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)]).astype(np.int64))
    frame = files.frame.assign(path="", row=range(6))
    manifest = Manifest(frame, files.classes, files.digest, encoded=encoded)
    from_bytes, on_the_fly = opened(manifest), opened(manifest, budget=0)
    expected = opened(files)
    assert len(stores()) == 1
    for row in range(6):
        assert np.array_equal(from_bytes[row], expected[row])
        assert np.array_equal(on_the_fly[row], expected[row])


@pytest.mark.parametrize("budget", [0, BUDGET])
def test_unreadable_images_are_named_with_their_reasons(
    make_folder: MakeFolder, budget: int, cache_folder: Path
) -> None:
    root = make_folder(classes=2, images=4)
    (root / "class0/1.png").write_bytes(b"")
    (root / "class1/2.png").write_bytes((root / "class1/2.png").read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        opened(manifest_of(root), budget=budget)
    first, second = str(caught.value).splitlines()
    assert first == f"cannot read the image {root}/class0/1.png: the file is empty. Mend or remove the file."
    assert second.startswith(f"cannot read the image {root}/class1/2.png: it cannot be decoded")
    assert not budget or leftovers(cache_folder) == []


def test_of_many_unreadable_images_five_are_named_and_the_rest_counted(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=4)
    for path in root.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(UserError) as caught:
        opened(manifest_of(root))
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "… and 3 more unreadable images."


@pytest.mark.parametrize("budget", [0, BUDGET])
def test_progress_is_told_after_every_image(make_folder: MakeFolder, budget: int) -> None:
    told: list[tuple[int, int]] = []
    manifest = manifest_of(make_folder(classes=2, images=40, size=(3, 3)))
    opened(manifest, budget=budget, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 80) for done in range(1, 81)]


def test_what_does_not_fit_the_budget_is_decoded_on_the_fly_and_that_is_said(
    make_folder: MakeFolder, cache_folder: Path
) -> None:
    said: list[str] = []
    images = opened(manifest_of(make_folder(classes=2, images=4, size=(8, 8))), said, budget=8 * 192 - 1)
    assert isinstance(images, DecodedImages)
    assert said == [
        "images are decoded anew in every epoch, which is slow: decoded they take about 1.5 KiB, more than "
        "data.store_budget"
    ]
    assert leftovers(cache_folder) == []


def test_images_larger_than_their_sample_promised_are_noticed_while_they_are_written(
    make_folder: MakeFolder, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Opening, "_estimate", lambda _self: 10.0)
    said: list[str] = []
    told: list[int] = []
    manifest = manifest_of(make_folder(classes=2, images=4, size=(8, 8)))
    images = opened(manifest, said, budget=500, progress=lambda done, _total: told.append(done))
    assert isinstance(images, DecodedImages)
    assert said[0].endswith(": 3 of 8 take more than 0.5 KiB")
    assert told == list(range(1, 9)), "the rest is proven readable in the same pass"
    assert leftovers(cache_folder) == []


def test_an_unreadable_image_is_found_though_the_budget_ends_before_it(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Opening, "_estimate", lambda _self: 10.0)
    root = make_folder(classes=2, images=4, size=(8, 8))
    (root / "class1/3.png").write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        opened(manifest_of(root), budget=500)


def test_a_full_disk_leaves_nothing_behind_and_training_goes_on(
    make_folder: MakeFolder, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, _contents: Any, images: Any, **_others: Any) -> None:
        (folder / PIXELS).write_bytes(next(iter(images)).tobytes())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_store", full)
    said: list[str] = []
    images = opened(manifest_of(make_folder(classes=2, images=4)), said)
    assert images[7].shape == (8, 10, 3)
    assert said == [
        f"images are decoded anew in every epoch, which is slow: {cache_folder} cannot be written "
        "(No space left on device)"
    ]
    assert leftovers(cache_folder) == []


def test_a_disk_with_little_to_spare_gets_no_store(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 2**62)
    said: list[str] = []
    assert isinstance(opened(manifest_of(make_folder()), said), DecodedImages)
    assert "more than what its disk has to spare" in said[0]


def test_a_cache_folder_that_cannot_be_made_is_said(make_folder: MakeFolder, cache_folder: Path) -> None:
    cache_folder.write_text("a file")
    said: list[str] = []
    root = make_folder()
    assert isinstance(opened(manifest_of(root), said), DecodedImages)
    assert said[0].endswith(f"{cache_folder} cannot be written (Not a directory)")
    (root / "class0/0.png").write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        opened(manifest_of(root))


def test_the_stores_used_least_recently_make_room(make_folder: MakeFolder) -> None:
    first = manifest_of(make_folder(classes=2, images=4, size=(8, 8), name="first"))
    kept = opened(first)
    before = kept[0].copy()
    opened(first, channels=1)
    os.utime(stores()[0].path, (1, 1))
    size = max(item.num_bytes for item in stores())
    opened(first, short_side=7, budget=2 * size + 100)
    assert len(stores()) == 2
    opened(first, short_side=6, budget=size + 100)
    assert [item.about.split()[-2] for item in stores()] == ["6"]
    assert np.array_equal(kept[0], before), "who has an evicted store open keeps it"


@pytest.mark.parametrize("name", [PIXELS, "index.npz"])
def test_a_damaged_store_is_made_anew_and_that_is_said(make_folder: MakeFolder, name: str) -> None:
    manifest = manifest_of(make_folder(classes=2, images=4))
    first = opened(manifest)[3].copy()
    path = stores()[0].path
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    said: list[str] = []
    assert np.array_equal(opened(manifest, said)[3], first)
    assert said[0] == f"the store {path} was damaged; it is made anew"
    assert said[1].startswith("decoded 8 images once")
    opened(manifest, said)
    assert len(said) == 2


def test_an_image_that_changed_since_it_was_listed_is_not_stored_under_its_old_content(
    make_folder: MakeFolder,
) -> None:
    root = make_folder(classes=2, images=4)
    manifest = manifest_of(root)
    Image.new("RGB", (9, 9)).save(root / "class0/2.png")
    said: list[str] = []
    images = opened(manifest, said)
    assert not images[2].any()
    assert said[0].endswith(f": 1 changed since they were listed, the first is {root}/class0/2.png")
    assert stores() == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 8, 8, 3)])
def test_a_source_that_holds_its_pixels_gives_the_rows_of_the_manifest(channels: int, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rows = [{"id": str(k), "row": k, "split": "val" if k > 2 else "train"} for k in range(5)]
    part = Manifest.build(rows, classes=["a"], images=pixels).part("val")
    images = opened(part, channels=channels, short_side=100)
    assert isinstance(images, ArrayImages)
    assert len(images) == 2
    grey = pixels.reshape(5, 8, 8, -1)
    expected = grey[4] if grey.shape[3] == channels else grey[4].repeat(3, 2)
    if grey.shape[3] > channels:
        expected = np.asarray(Image.fromarray(pixels[4]).convert("L"))[:, :, None]
    assert np.array_equal(images[1], expected)
    assert np.array_equal(images.gather([1, 0, 1])[0], expected)
    assert np.array_equal(images.select(np.array([1]))[0], expected)
    smaller = opened(part, channels=channels, short_side=4)
    assert smaller[0].shape == (4, 4, channels)
    assert stores() == []


def test_an_array_that_fits_is_not_copied() -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    manifest = Manifest.build([{"id": str(k), "row": k} for k in range(4)], classes=["a"], images=pixels)
    assert np.shares_memory(opened(manifest)[2], pixels)


def test_an_empty_part_has_no_images() -> None:
    assert len(opened(Manifest.build([], classes=["a"]))) == 0


def _open(root: Path, answer: "mp.Queue[Any]", pause_s: float) -> None:
    def progress(_done: int, _total: int) -> None:
        time.sleep(pause_s)

    said: list[str] = []
    images = opened(manifest_of(root), said, progress=progress)
    answer.put((said, float(np.mean([images[row].mean() for row in range(len(images))]))))


def test_two_processes_at_once_decode_once(make_folder: MakeFolder) -> None:
    root, context = make_folder(classes=2, images=10), mp.get_context("fork")
    answer = context.Queue()
    both = [context.Process(target=_open, args=(root, answer, 0.05)) for _ in range(2)]
    for process in both:
        process.start()
    answers = [answer.get(timeout=60) for _ in both]
    for process in both:
        process.join(20)
    assert sorted(said[0].split(" ")[0] for said, _ in answers) == ["another", "decoded"]
    assert [len(said) for said, _ in answers] == [1, 1]
    assert answers[0][1] == answers[1][1]
    assert len(stores()) == 1


def test_a_process_killed_half_way_leaves_nothing_that_is_taken_for_a_store(
    make_folder: MakeFolder, cache_folder: Path
) -> None:
    root, context = make_folder(classes=2, images=30), mp.get_context("fork")
    answer = context.Queue()
    victim = context.Process(target=_open, args=(root, answer, 0.05))
    victim.start()
    deadline = time.monotonic() + 20
    while not list(cache_folder.glob(f"store/*.building/{PIXELS}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(20)
    assert stores() == []
    assert [name.partition(".")[2] for name in leftovers(cache_folder)] == ["building"]
    assert isinstance(opened(manifest_of(root)), StoredImages)
    assert leftovers(cache_folder) == [stores()[0].key]


def test_an_image_with_a_strange_header_does_not_keep_others_from_being_estimated(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=4)
    buffer = io.BytesIO()
    Image.new("L", (6000, 50)).save(buffer, "PNG")
    (root / "class0/0.png").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="6000 x 50"):
        opened(manifest_of(root))
