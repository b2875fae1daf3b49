"""What `explain` refuses before it has a run, images and places for its figure, and `export` places for its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.jobs import explain as job
from imgcls.jobs.console import Console
from imgcls.jobs.explain import run_explain
from imgcls.jobs.export import run_export
from imgcls.jobs.signals import Signals
from tests.inference.test_classifier import classifier, noise, png


@pytest.fixture(autouse=True)
def _no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_args: Any) -> None:
        raise AssertionError("a run was made")

    monkeypatch.setattr(job, "_start", start)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(png(noise(20, 20)))
    return tmp_path / "photo.png"


def refusal(tmp_path: Path, images: Sequence[Path], output: Path | None = None) -> str:
    classifier().save(tmp_path / "model")
    names = [str(image) for image in images]
    with Signals() as signals, pytest.raises(UserError) as caught:
        run_explain(names, Console(quiet=True), signals, model=str(tmp_path / "model"), output=output)
    return str(caught.value)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, photo: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(photo.read_bytes()[:100])
    assert refusal(tmp_path, [photo, torn]) == (
        f"cannot read the image {torn}: it cannot be decoded (OSError: image file is truncated). "
        "Give another image, or mend this one."
    )


@pytest.mark.parametrize("name", ["maps.jpg", "maps", "maps.png.txt"])
def test_an_output_that_is_no_png_is_refused_before_the_images_are_read(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, [tmp_path / "nowhere.png"], tmp_path / name)
    assert message == f"found the output {name!r}; expected a file ending in .png (--output)."


def test_an_output_that_is_one_of_the_images_is_refused(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "link.png").symlink_to(photo)
    before = photo.read_bytes()
    for output in (photo, Path("photo.png"), tmp_path / "link.png"):
        assert refusal(tmp_path, [photo], output) == (
            f"the output {output} is one of the images; give another file (--output)."
        )
    assert photo.read_bytes() == before


def test_an_output_that_cannot_be_written_is_an_error_that_says_why(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for output, why in ((tmp_path / "file/maps.png", "Not a directory"), (tmp_path / "folder.png", "Is a directory")):
        message = refusal(tmp_path, [photo], output)
        assert message.startswith(f"the output {output} cannot be written: {why}. Give another file (--output)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png", "model", "photo.png"]


def test_an_error_while_it_is_written_leaves_what_was_there_before(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new/maps.png"
    output.parent.mkdir()
    output.write_text("before")

    def torn(_figure: plots.Figure, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save", torn)
    assert "cannot be written: No space left on device" in refusal(tmp_path, [photo], output)
    assert [(path.name, path.read_text()) for path in output.parent.iterdir()] == [("maps.png", "before")]


def test_an_export_to_a_place_that_cannot_be_written_is_an_error_that_says_why(tmp_path: Path) -> None:
    classifier().save(tmp_path / "model")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write .*file/deep/model\.pt2: .*Not a directory"):
        run_export(str(tmp_path / "model"), tmp_path / "file/deep/model.pt2", Console(quiet=True))
