"""What is told and resolved before a run: notices, what was left out, and the split of another run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.jobs import reading
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.recipe import resolve

RUN = "0123456789abcdef" * 2
SMALL = {
    "model.family": "plaincnn",
    "model.num_blocks": 1,
    "model.convs_per_block": 1,
    "model.channels": 4,
    "augment.image_size": 8,
}


@pytest.fixture
def root(make_folder: Callable[..., Path]) -> str:
    """Three classes of eight images."""
    return str(make_folder())


def prepared(root: str, **fields: Any) -> Prepared:
    overrides = {**SMALL, "data.root": root, **{f"data.{name}": value for name, value in fields.items()}}
    return prepare(resolve(None, overrides), Console())


def write_split(result: Prepared, path: Path) -> Path:
    result.manifest.frame[["id", "split"]].to_csv(path, index=False)
    return path


def test_the_split_of_a_run_is_looked_up_in_the_tracking_store(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(root, split_seed=1)
    asked: list[tuple[str, str]] = []

    @contextmanager
    def artifact(run_id: str, path: str) -> Iterator[Path]:
        asked.append((run_id, path))
        local = write_split(first, Path("of-run.csv"))
        yield local
        local.unlink()

    monkeypatch.setattr(reading, "artifact", artifact)
    second = prepared(root, split_from=f"runs:/{RUN}", split_seed=2)
    assert asked == [(RUN, "tables/split.csv")]
    assert list(second.manifest.frame["split"]) == list(first.manifest.frame["split"])
    assert second.recipe.data.split_from == RUN


def test_a_run_that_is_not_there_is_an_error_of_the_field(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def artifact(run_id: str, _path: str) -> Iterator[Path]:
        raise UserError(f"there is no {run_id}.")
        yield

    monkeypatch.setattr(reading, "artifact", artifact)
    with pytest.raises(UserError, match=rf"^data\.split_from: there is no {RUN}\.$"):
        prepared(root, split_from=RUN)


def test_the_split_of_a_file_is_taken_and_what_is_told_names_the_file(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_split(prepared(root, split_seed=1), Path("split.csv").absolute())
    with path.open("a") as file:
        file.write("class9/1.png,test\n")
    result = prepared(root, split_from="split.csv")
    out = capsys.readouterr().out
    assert "note: 1 of 25 rows of data.split_from are of no image here: class9/1.png\n" in out
    assert "skipped" not in out
    assert [item.path for item in result.manifest.skipped] == ["class9/1.png"]
    path.write_text("id,split\nclass0/0.png,train\n")
    with pytest.raises(UserError, match=rf"data\.split_from {path} has no split for 23 of 24 images"):
        prepared(root, split_from="split.csv")


def test_left_out_classes_are_counted_in_images(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(root, "note.txt").write_text("x")
    result = prepared(root, classes=["class2", "class0"])
    assert result.manifest.classes == ("class0", "class2")
    assert (
        "skipped 9 files: note.txt (not an image), class class1 (8 images left out by data.classes)\n"
        in capsys.readouterr().out
    )


def test_what_was_decided_about_the_split_is_told_in_a_line(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2, 8):
        Path(root, "class1", f"{number}.png").unlink()
    prepared(root, tiny_classes="train")
    assert "note: tiny classes, 1 in all, have too few different images (class1: 2): " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("optim.optimizer", "muon", "this network has none"), ("train.micro_batch", 1, "needs two images at a time")],
)
def test_settings_that_do_not_suit_the_network_are_an_error_before_a_run(
    root: str, field: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(resolve(None, {**SMALL, "data.root": root, field: value}), Console())


def test_shared_batch_normalisation_in_one_process_is_told(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(resolve(None, {**SMALL, "data.root": root, "train.sync_batch_norm": True}), Console())
    assert "note: train.sync_batch_norm changes nothing in one process" in capsys.readouterr().out
