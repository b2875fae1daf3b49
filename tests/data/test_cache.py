"""The cache folder: an entry is built once, whole or not at all, whoever else is at it and whatever kills them."""

import contextlib
import multiprocessing as mp
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import FileLock

from imgcls.data import cache

FORK = mp.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def writing(name: str, content: bytes) -> Callable[[Path], None]:
    """A builder of an entry with one file."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return build


def put(key: str, num_bytes: int = 10, *, kind: str = "store", used: float | None = None) -> Path:
    """An entry with one file, last used at a given second."""
    made = cache.entry(kind, key, writing("x", b"x" * num_bytes))
    if used is not None:
        os.utime(made, (used, used))
    return made


def never(_folder: Path) -> None:
    raise AssertionError("it is there already")


def test_the_folder_is_the_one_that_is_set_or_in_the_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_dir() == folder
    monkeypatch.setenv("IMGCLS_CACHE", "")
    assert cache.cache_dir() == Path.home() / ".cache" / "imgcls"


def test_an_entry_is_built_once_and_then_found(folder: Path) -> None:
    made = put("a")
    assert made == folder / "store" / "a"
    assert (made / "x").read_bytes() == b"x" * 10
    assert cache.entry("store", "a", never) == made


def test_finding_an_entry_says_that_it_was_used() -> None:
    put("a", used=1000)
    cache.entry("store", "a", never)
    assert cache.entries()[0].used > 1_000_000


def test_a_build_that_fails_leaves_nothing_of_it(folder: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("store", "a", fail)
    assert sorted(path.name for path in (folder / "store").iterdir()) == [cache.TAG, "a.lock"]
    put("a")


def test_an_entry_that_is_not_whole_is_built_anew() -> None:
    (put("a") / "x").unlink()
    made = cache.entry("store", "a", writing("x", b"new"), whole=lambda f: (f / "x").exists())
    assert (made / "x").read_text() == "new"


def test_the_entries_are_listed_with_sizes_and_words_the_oldest_first(folder: Path) -> None:
    put("new", 20, used=3000)
    put("old", 30, kind="parquet", used=2000)
    cache.entry("store", "told", writing("x", b"x"), about="all of it")
    (folder / "store" / "half.building").mkdir()
    (folder / "store" / "gone.1.doomed").mkdir()
    found = [(item.kind, item.key, item.num_bytes, item.about) for item in cache.entries()]
    assert found == [("parquet", "old", 30, ""), ("store", "new", 20, ""), ("store", "told", 10, "all of it")]
    assert [item.key for item in cache.entries("parquet")] == ["old"]


def test_there_may_be_no_folder_yet() -> None:
    assert cache.entries() == []
    assert cache.evict(None, keep_bytes=0) == []
    assert cache.sweep() == 0


def test_what_others_keep_in_folders_of_these_names_is_no_entry(folder: Path) -> None:
    (folder / "store" / "my shop").mkdir(parents=True)
    (folder / "store" / "mine.doomed").mkdir()
    assert cache.entries() == []
    assert cache.sweep() == 0
    assert (folder / "store" / "mine.doomed").is_dir()


def test_the_least_recently_used_go_until_the_rest_fits() -> None:
    for number, key in enumerate(["a", "b", "c"]):
        put(key, 10, used=1000 + number)
    put("other", 1000, kind="parquet", used=1)
    assert cache.evict("store", keep_bytes=30) == []
    assert [item.key for item in cache.evict("store", keep_bytes=15)] == ["a", "b"]
    assert {item.key for item in cache.entries()} == {"c", "other"}
    assert [item.key for item in cache.evict(None, keep_bytes=15)] == ["other"]


def test_one_may_be_spared_though_it_is_the_oldest() -> None:
    put("a", used=1)
    put("b", used=2)
    assert [item.key for item in cache.evict("store", keep_bytes=0, spare="a")] == ["b"]
    assert [item.key for item in cache.entries()] == ["a"]


def test_what_killed_processes_left_is_swept_but_not_what_is_in_work(folder: Path) -> None:
    put("whole")
    for name in ("left.building", "worked.building", "gone.12.doomed"):
        (folder / "store" / name).mkdir()
        (folder / "store" / name / "x").write_bytes(b"x" * 7)
    with FileLock(folder / "store" / "worked.lock"):
        assert cache.sweep() == 14
    kept = {path.name for path in (folder / "store").iterdir() if path.is_dir()}
    assert kept == {"whole", "worked.building"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error_unless_the_entry_is_there(folder: Path) -> None:
    put("a")
    (folder / "store").chmod(0o500)
    assert cache.entry("store", "a", never).name == "a"
    with pytest.raises(PermissionError):
        put("b")
    (folder / "store").chmod(0o700)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0.0 KiB"), (300, "0.3 KiB"), (41 * 2**20, "41.0 MiB"), (3.25 * 2**30, "3.2 GiB")]
)
def test_sizes_read_well(num_bytes: float, text: str) -> None:
    assert cache.size_text(num_bytes) == text


def _build_slowly(began: Event, go_on: Event) -> None:
    def build(folder: Path) -> None:
        (folder / "x").write_text("half")
        began.set()
        go_on.wait(20)
        (folder / "x").write_text("whole")

    cache.entry("store", "a", build)


def test_a_second_process_waits_for_the_first_and_takes_what_it_made() -> None:
    began, go_on, waited = FORK.Event(), FORK.Event(), []
    first = FORK.Process(target=_build_slowly, args=(began, go_on))
    first.start()
    assert began.wait(20)

    def on_wait() -> None:
        waited.append(True)
        go_on.set()

    made = cache.entry("store", "a", never, on_wait=on_wait)
    first.join(20)
    assert (first.exitcode, waited, (made / "x").read_text()) == (0, [True], "whole")


def test_where_the_first_is_killed_the_second_builds_anew(folder: Path) -> None:
    began, go_on = FORK.Event(), FORK.Event()
    first = FORK.Process(target=_build_slowly, args=(began, go_on))
    first.start()
    assert began.wait(20)
    assert first.pid is not None
    pid = first.pid
    made = cache.entry(
        "store", "a", writing("y", b"mine"),
        on_wait=lambda: os.kill(pid, signal.SIGKILL),
    )  # fmt: skip
    first.join(20)
    assert [path.name for path in made.iterdir()] == ["y"]
    assert not (folder / "store" / "a.building").exists()


def _use_often(key: str, until: float) -> None:
    while time.time() < until:
        made = cache.entry("store", key, writing("x", b"x" * 10))
        with contextlib.suppress(FileNotFoundError):  # evicted at this moment
            assert (made / "x").stat().st_size == 10


def test_processes_that_build_and_evict_at_once_never_see_half_an_entry() -> None:
    until = time.time() + 1
    users = [FORK.Process(target=_use_often, args=(key, until)) for key in ("a", "a", "b")]
    for user in users:
        user.start()
    while time.time() < until:
        cache.evict("store", keep_bytes=0)
        cache.sweep()
    for user in users:
        user.join(20)
    assert [user.exitcode for user in users] == [0, 0, 0]


def test_an_entry_that_is_evicted_stays_open_to_those_who_have_it() -> None:
    with (put("a") / "x").open("rb") as file:
        cache.evict(None, keep_bytes=0)
        assert file.read() == b"x" * 10
    assert cache.entries() == []
    shutil.rmtree(cache.cache_dir())
