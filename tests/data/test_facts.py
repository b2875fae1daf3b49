"""What headers tell, and that every file is read once until it changes."""

import hashlib
import io
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.data import facts
from imgcls.data.facts import Fact, fact_of, facts_of


def encoded(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def bomb(width: int) -> bytes:
    """A PNG of a few bytes that says it is width x width."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(facts, "_memory", {})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the images whose headers were read."""
    seen: list[int] = []

    def counting(data: bytes) -> Fact:
        seen.append(len(data))
        return fact_of(data)

    monkeypatch.setattr(facts, "fact_of", counting)
    return seen


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[list[Path]]:
    """Three images that were written long ago."""
    made = [tmp_path / f"{k}.png" for k in range(3)]
    for k, path in enumerate(made):
        path.write_bytes(encoded(size=(5 + k, 4)))
        os.utime(path, (1e9, 1e9))
    before, facts.SETTLED_NS = facts.SETTLED_NS, 0  # the time of the inode's change cannot be set
    time.sleep(0.02)
    yield made
    facts.SETTLED_NS = before


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_plain_image_is_described_by_its_header(kind: str) -> None:
    data = encoded("RGB", kind)
    fact = fact_of(data)
    assert fact == Fact(
        content=hashlib.blake2b(data, digest_size=16).hexdigest(),
        num_bytes=len(data),
        format=kind,
        width=9,
        height=7,
        mode="RGB",
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded("1"), {"mode": "1", "bits": 1}),
        (encoded("L"), {"mode": "L"}),
        (encoded("P"), {"mode": "P"}),
        (encoded("RGBA"), {"mode": "RGBA", "transparent": True}),
        (encoded("P", transparency=0), {"mode": "P", "transparent": True}),
        (encoded("CMYK", "JPEG"), {"mode": "CMYK"}),
        (encoded("I;16"), {"mode": "I;16", "bits": 16}),
        (encoded("I;16", "TIFF"), {"mode": "I;16", "bits": 16}),
        (encoded("I", "TIFF"), {"mode": "I", "bits": 32}),
        (encoded("RGB", "JPEG", exif=rotated(6)), {"orientation": 6}),
        (encoded("RGB", "PNG", exif=rotated(3)), {"orientation": 3}),
        (encoded("RGB", "JPEG", exif=rotated(99)), {"orientation": 1}),
        (encoded("RGB", "WEBP", save_all=True, append_images=[Image.new("RGB", (9, 7), "red")]), {"frames": 2}),
        (encoded("RGB", "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 7), "red")]), {"frames": 2}),
        (encoded("RGB", "MPO", save_all=True, append_images=[Image.new("RGB", (9, 7), "red")]), {"frames": 1}),
    ],
)
def test_what_is_unusual_is_told(data: bytes, expected: dict[str, Any]) -> None:
    fact = fact_of(data)
    plain = {"transparent": False, "bits": 8, "orientation": 1, "frames": 1, "ends": True, "problem": ""}
    assert {name: getattr(fact, name) for name in {**plain, **expected}} == {**plain, **expected}


def test_sixteen_bits_of_colour_are_told_from_bitmaps_of_sixteen_bits_a_pixel() -> None:
    import cv2

    deep = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint16))[1].tobytes()
    assert (fact_of(deep).mode, fact_of(deep).bits) == ("RGB", 16)
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 62, 0, 0, 54, 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0)
    assert (fact_of(header + bytes(8)).mode, fact_of(header + bytes(8)).bits) == ("RGB", 8)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"these are words", "it is no image of a known format (it begins with b'these ar')"),
        (encoded()[:20], "it"),
        (encoded("RGB", "WEBP", (60, 60))[:-20], "its header cannot be read (OSError: "),
        (bomb(60_000), "it is too large to decode safely: "),
        (bomb(12_000), "it is too large to decode safely: "),
        (encoded(size=(4, 401)), "it is 4 x 401 pixels; expected no side over 100 times the other"),
        (encoded("F", "TIFF"), "its pixels are of the kind 'F', expected at most 16 bits a channel"),
    ],
)
def test_what_cannot_be_decoded_has_a_problem_and_a_content(data: bytes, problem: str) -> None:
    fact = fact_of(data)
    assert fact.problem.startswith(problem)
    assert fact.content == hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_was_cut_off_lacks_its_end(kind: str) -> None:
    data = encoded("RGB", kind, (60, 60))
    assert fact_of(data).ends
    assert fact_of(data + b"trailing").ends
    cut = fact_of(data[:-20])
    assert (cut.format, cut.ends, cut.problem) == (kind, False, "")


def test_files_are_described_in_their_order_and_progress_reaches_the_end(paths: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    found = facts_of(paths, lambda done, total: told.append((done, total)))
    assert [fact.width for fact in found] == [5, 6, 7]
    assert [fact.content for fact in found] == [fact_of(path.read_bytes()).content for path in paths]
    assert told[-1] == (3, 3)


def test_a_file_is_read_once_by_this_process_and_by_later_ones(
    paths: list[Path], reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = facts_of(paths)
    assert facts_of(paths) == first
    assert len(reads) == 3
    monkeypatch.setattr(facts, "_memory", {})  # as a new process has it
    assert facts_of(paths) == first
    assert len(reads) == 3


def test_what_is_remembered_in_the_file_has_the_types_it_had(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths[0].write_bytes(encoded("RGBA"))
    time.sleep(0.02)
    first = facts_of(paths)
    monkeypatch.setattr(facts, "_memory", {})
    assert [list(map(type, fact)) for fact in facts_of(paths)] == [list(map(type, fact)) for fact in first]


def test_a_changed_file_is_read_again_even_with_its_old_length_and_time(paths: list[Path], reads: list[int]) -> None:
    before = facts_of(paths)
    image = Image.new("RGB", (5, 4), "#000001")
    image.save(paths[0])
    padded = paths[0].read_bytes()
    paths[0].write_bytes(padded + bytes(max(0, before[0].num_bytes - len(padded))))
    os.utime(paths[0], (1e9, 1e9))
    after = facts_of(paths)
    assert after[0].content == fact_of(paths[0].read_bytes()).content != before[0].content
    assert after[1:] == before[1:]
    assert len(reads) == 4


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path, reads: list[int]) -> None:
    (tmp_path / "new.png").write_bytes(encoded())
    facts_of([tmp_path / "new.png"])
    facts_of([tmp_path / "new.png"])
    assert len(reads) == 2


def test_a_file_that_cannot_be_read_has_the_reason_and_no_content(paths: list[Path], tmp_path: Path) -> None:
    found = facts_of([paths[0], tmp_path / "gone.png", tmp_path])
    assert [fact.content != "" for fact in found] == [True, False, False]
    assert (found[1].problem, found[2].problem) == ("No such file or directory", "it is no regular file")


def test_without_a_cache_that_can_be_written_files_are_read_all_the_same(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "file"))
    assert [fact.width for fact in facts_of(paths)] == [5, 6, 7]


@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_damaged_file_of_facts_is_made_anew(
    content: bytes, paths: list[Path], reads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "cache" / "facts.db"
    database.parent.mkdir()
    database.write_bytes(content * 100)
    for _ in range(3):
        assert [fact.width for fact in facts_of(paths)] == [5, 6, 7]
        monkeypatch.setattr(facts, "_memory", {})
    assert len(reads) == 3


def test_a_file_of_facts_that_grew_too_large_is_begun_anew(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts_of(paths[:2])
    monkeypatch.setattr(facts, "MOST_BYTES", 10)
    facts_of(paths)
    with sqlite3.connect(tmp_path / "cache" / "facts.db") as database:
        assert database.execute("select count(*) from facts").fetchone() == (1,)
    database.close()


def test_more_facts_than_a_process_keeps_come_from_the_file(
    paths: list[Path], reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MOST_REMEMBERED", 2)
    assert facts_of(paths) == facts_of(paths)
    assert len(facts._memory) == 0
    assert len(reads) == 3


def _widths(paths: list[Path]) -> list[int]:
    return [fact.width for fact in facts_of(paths)]


@pytest.mark.slow
def test_two_processes_may_ask_at_once(paths: list[Path]) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(_widths, [paths] * 6)) == [[5, 6, 7]] * 6
