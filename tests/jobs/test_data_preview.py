"""The verb `data preview`: which images, with which randomness, and what it refuses before the work."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from imgcls.data.augment import training_pipeline
from imgcls.data.loading import Loader
from imgcls.data.source import scan
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.jobs import data_preview as job
from imgcls.jobs.console import Console
from imgcls.recipe import resolve
from tests.conftest import MakeFolder

Seen = dict[str, Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What was given to the figure last."""
    given: Seen = {}
    real = plots.augmentation_preview

    def preview(originals: Any, variants: Any, captions: Any, *, title: str) -> Any:
        given.update(originals=originals, variants=variants, captions=captions, title=title)
        return real(originals, variants, captions, title=title)

    monkeypatch.setattr(plots, "augmentation_preview", preview)
    return given


def run(recipe: str | None = None, out: str = "preview.png", **fields: Any) -> None:
    overrides = {name.replace("__", "."): value for name, value in fields.items()}
    job.run(resolve(recipe, overrides), Path(out), Console(quiet=True))


def labels(seen: Seen) -> list[str]:
    return [caption.split(":")[0] for caption in seen["captions"]]


def test_it_writes_a_picture_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    job.run(resolve("digits"), Path("new/folder/p.PNG"), Console())
    assert capsys.readouterr().out == f"wrote {Path.cwd()}/new/folder/p.PNG\n"
    with Image.open("new/folder/p.PNG") as image:
        assert image.format == "PNG"
        assert min(image.size) > 500


def test_it_makes_no_run_and_no_other_file() -> None:
    run("digits")
    assert [path.name for path in Path().iterdir()] == ["preview.png"]


def test_the_images_are_training_images_of_different_classes_in_the_order_of_the_classes(seen: Seen) -> None:
    run("digits")
    assert labels(seen) == sorted(set(labels(seen)))
    assert (len(seen["originals"]), {len(row) for row in seen["variants"]}) == (8, {6})
    manifest = split(scan(resolve("digits").recipe.data), resolve("digits").recipe.data)
    shown = {caption.split(": ")[1] for caption in seen["captions"]}
    assert shown <= set(manifest.part("train").ids)
    assert {original.shape for original in seen["originals"]} == {(8, 8, 1)}
    assert {image.shape for row in seen["variants"] for image in row} == {(16, 16, 1)}


def test_few_classes_and_few_images_are_shared_out(seen: Seen, make_folder: MakeFolder) -> None:
    run(data__root=str(make_folder(2, 12, name="two")), augment__image_size=16)
    assert labels(seen) == ["class0"] * 4 + ["class1"] * 4
    run(data__root=str(make_folder(2, 3, name="tiny")), augment__image_size=16)
    assert labels(seen) == ["class0", "class1"]


def test_the_seed_decides_which_images_and_which_variants(seen: Seen) -> None:
    run("digits")
    first = dict(seen)
    run("digits")
    assert seen["captions"] == first["captions"]
    np.testing.assert_array_equal(seen["variants"], first["variants"])
    run("digits", train__seed=1)
    assert seen["captions"] != first["captions"]


def test_the_variants_are_what_training_makes_of_such_a_batch_in_its_first_epochs(seen: Seen) -> None:
    run("digits", train__seed=3)
    recipe = resolve("digits").recipe
    pipeline = training_pipeline(recipe.augment, size=16, channels=1)
    loader = Loader(seen["originals"], np.zeros(8, np.int64), pipeline, batch_size=8, seed=3)
    for epoch in (1, 6):
        [batch] = loader.epoch(epoch)
        np.testing.assert_array_equal([row[epoch - 1] for row in seen["variants"]], batch.images.numpy())
    assert not np.array_equal(seen["variants"][0][0], seen["variants"][0][1])


def test_no_random_stream_of_a_training_is_touched() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    run("digits")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert after == before


def test_only_the_images_shown_are_decoded(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []
    real = ImageFile.ImageFile.load

    def load(image: ImageFile.ImageFile) -> Any:
        if not any(image is known for known in decoded):
            decoded.append(image)
        return real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    run(data__root=str(make_folder(3, 30)), augment__image_size="auto")
    assert len(decoded) == 8


def test_an_unreadable_image_is_an_error_or_left_out_as_in_training(
    seen: Seen, make_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(2, 6)
    for path in sorted(root.rglob("*.png"))[::2]:
        path.write_bytes(f"no image {path}".encode())
    with pytest.raises(UserError, match="cannot read the image"):
        run(data__root=str(root), augment__image_size=16, data__test_fraction=0.0)
    assert not Path("preview.png").exists()
    for size in (16, "auto"):
        fields = {"data.root": str(root), "data.test_fraction": 0.0, "data.on_bad_image": "skip"}
        job.run(resolve("folder", {**fields, "augment.image_size": size}), Path("preview.png"), Console())
        assert labels(seen) == ["class0"] * 2 + ["class1"] * 2
        said = "skipped 6 files, as training does, whose runs list them\n"
        assert capsys.readouterr().out == f"{said}wrote {Path.cwd()}/preview.png\n"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("preview.jpg", "found --out preview.jpg; expected the name of a PNG file, such as preview.png."),
        ("preview", "found --out preview; expected the name of a PNG file, such as preview.png."),
        ("a.png", "cannot write a.png: Is a directory (a.png). Give the name of a PNG file with --out."),
        ("file/b.png", "cannot write file/b.png: File exists (file). Give the name of a PNG file with --out."),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_data_are_read(
    out: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.png").mkdir()
    Path("file").write_text("")
    monkeypatch.setattr(job, "scan", lambda _config: pytest.fail("the data are read"))
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        run("digits", out)


def test_a_picture_that_is_there_stays_where_the_data_are_wrong() -> None:
    Path("preview.png").write_bytes(b"mine")
    with pytest.raises(UserError):
        run(data__root="nowhere")
    assert Path("preview.png").read_bytes() == b"mine"
    with pytest.raises(UserError):
        run(out="other.png", data__root="nowhere")
    assert not Path("other.png").exists()


def test_a_disk_that_fails_while_writing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_figure: Any, _path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(plots, "save", fail)
    with pytest.raises(UserError, match=r"^cannot write preview\.png: Input/output error\. Give"):
        run("digits")


def test_the_size_is_that_of_the_weights_which_are_not_downloaded(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(job, "draw", lambda recipe, _manifest, _out: drawn.append(recipe.augment.image_size))
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    sections = {
        "data": {"source": "folder", "root": str(make_folder())},
        "model": {"family": "resnet18", "weights": "default"},
    }
    job.run(resolve(sections), Path("preview.png"), Console(quiet=True))
    assert drawn == [224]
    assert not (tmp_path / "cache" / "weights").exists()
