"""The verb `data cache`: the table, and what is removed and what never is."""

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from imgcls.cli import cli
from imgcls.data import cache
from imgcls.errors import UserError
from imgcls.jobs import data_cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(kind: str, key: str, num_bytes: int, minute: int, about: str = "") -> None:
    def build(folder: Path) -> None:
        (folder / "x").write_bytes(bytes(num_bytes))

    set_time(cache.entry(kind, key, build, about=about), minute)


def set_time(path: Path, minute: int) -> None:
    at = time.mktime((2026, 1, 2, 3, minute, 0, 0, 0, -1))
    os.utime(path, (at, at))


@pytest.fixture
def filled(folder: Path) -> Path:
    put("store", "abc", 3 * 2**20, 5, "photos: 12 images, 3 channels, short side up to 80 px")
    put("parquet", "def", 1024, 6)
    (folder / "facts.db").write_bytes(bytes(2048))
    set_time(folder / "facts.db", 7)
    (folder / "torchvision" / "MNIST").mkdir(parents=True)
    (folder / "torchvision" / "MNIST" / "x.gz").write_bytes(bytes(512))
    set_time(folder / "torchvision" / "MNIST", 4)
    (folder / "weights").mkdir()
    (folder / "weights" / "resnet18-f37072fd.pth").write_bytes(bytes(1024))
    set_time(folder / "weights" / "resnet18-f37072fd.pth", 3)
    (folder / "mine.txt").write_text("nobody's")
    return folder


def kinds() -> list[str]:
    return [line.split()[0] for line in data_cache.run().splitlines()[1:-1]]


def test_the_table_says_what_there_is_how_large_and_when_it_was_last_used(filled: Path) -> None:
    result = CliRunner().invoke(cli, ["data", "cache"], catch_exceptions=False)
    width = len("photos: 12 images, 3 channels, short side up to 80 px")
    size = (3 * 2**20 + width + 1024 + 2048 + 512 + 1024) / 2**20
    total = max(width, len(str(filled)))
    assert result.output.splitlines() == [
        f"kind         {'what':<{total}}     size  last used",
        f"facts        {'what is known of image files by their headers':<{total}}  2.0 KiB  2026-01-02 03:07",
        f"parquet      {'def':<{total}}  1.0 KiB  2026-01-02 03:06",
        f"store        {'photos: 12 images, 3 channels, short side up to 80 px':<{total}}  3.0 MiB  2026-01-02 03:05",
        f"torchvision  {'MNIST: files as downloaded':<{total}}  0.5 KiB  2026-01-02 03:04",
        f"weights      {'resnet18-f37072fd.pth: as downloaded':<{total}}  1.0 KiB  2026-01-02 03:03",
        f"total        {filled!s:<{total}}  {size:.1f} MiB",
    ]


def test_there_may_be_nothing_yet(folder: Path) -> None:
    for arguments in ([], ["--clear"], ["--clear", "store"], ["--keep", "1"]):
        result = CliRunner().invoke(cli, ["data", "cache", *arguments], catch_exceptions=False)
        assert (result.exit_code, result.output) == (0, f"{folder} holds nothing\n")
    assert not folder.exists()


def test_clear_leaves_downloads_and_what_is_not_ours(filled: Path) -> None:
    result = CliRunner().invoke(cli, ["data", "cache", "--clear"], catch_exceptions=False)
    assert result.output.splitlines()[0] == "removed 3.0 MiB that can be made again"
    assert kinds() == ["torchvision", "weights"]
    assert (filled / "mine.txt").exists()


@pytest.mark.parametrize("kind", ["store", "parquet", "facts", "torchvision", "weights"])
def test_one_kind_can_be_cleared(filled: Path, kind: str) -> None:
    before = kinds()
    result = CliRunner().invoke(cli, ["data", "cache", "--clear", kind], catch_exceptions=False)
    assert result.output.startswith("removed ")
    assert f"of {kind}\n" in result.output
    assert kinds() == [name for name in before if name != kind]
    assert (filled / "mine.txt").exists()


@pytest.mark.usefixtures("filled")
def test_features_are_listed_and_cleared_as_a_kind_of_their_own() -> None:
    put("features", "0f", 2048, 8, "resnet18 up to layer4, features of train images of photos, view 1")
    told = data_cache.run().splitlines()[1].split(maxsplit=1)
    assert (told[0], told[1][:22]) == ("features", "resnet18 up to layer4,")
    data_cache.run(clear="features")
    assert "features" not in kinds()
    assert "store" in kinds()


@pytest.mark.usefixtures("filled")
def test_a_kind_that_there_is_not_is_an_error_that_lists_them() -> None:
    with pytest.raises(UserError, match=r"unknown kind 'stor'; known: .*store, torchvision, weights\. Did you mean"):
        data_cache.run(clear="stor")
    assert len(kinds()) == 5


@pytest.mark.usefixtures("filled")
def test_keep_removes_what_was_used_least_recently() -> None:
    put("store", "new", 2**20, 9)
    result = CliRunner().invoke(cli, ["data", "cache", "--keep", "0.002"], catch_exceptions=False)
    assert result.output.splitlines()[0] == "removed 3.0 MiB used least recently"
    assert kinds() == ["store", "facts", "parquet", "torchvision", "weights"]
    assert CliRunner().invoke(cli, ["data", "cache", "--keep", "-1"]).exit_code == 2
    data_cache.run(keep_gib=0)
    assert kinds() == ["facts", "torchvision", "weights"]


def test_what_killed_processes_left_is_removed(filled: Path) -> None:
    (filled / "store" / "xyz.building").mkdir()
    (filled / "store" / "xyz.building" / "x").write_bytes(bytes(4096))
    assert data_cache.run().splitlines()[0] == "removed 4.0 KiB left by killed processes"
    assert not (filled / "store" / "xyz.building").exists()
