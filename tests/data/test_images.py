"""Opening images: in memory or from their files, with every unreadable one named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imgcls.data.images import DecodedImages, open_images
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest

MakeFolder = Callable[..., Path]


def opened_manifest(root: Path) -> Manifest:
    return scan(FolderConfig(root=str(root)))


def test_images_over_the_budget_are_decoded_on_the_fly_to_the_same_pixels(make_folder: MakeFolder) -> None:
    manifest = opened_manifest(make_folder(classes=2, images=4, size=(40, 30)))
    kept = open_images(manifest, channels=3, short_side=20, budget_mb=10)
    on_the_fly = open_images(manifest, channels=3, short_side=20, budget_mb=0)
    assert isinstance(kept, list)
    assert isinstance(on_the_fly, DecodedImages)
    assert len(kept) == len(on_the_fly) == 8
    for row in range(8):
        assert np.array_equal(kept[row], on_the_fly[row])
        assert kept[row].shape == (20, 27, 3)


def test_kept_images_need_their_files_no_more(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=2)
    manifest = opened_manifest(root)
    kept = open_images(manifest, channels=1, short_side=8, budget_mb=10)
    files = open_images(manifest, channels=1, short_side=8, budget_mb=0)
    (root / "class0/0.png").unlink()
    assert kept[0].shape == (8, 10, 1)
    with pytest.raises(UserError, match=r"cannot read the image .*class0/0\.png: No such file"):
        files[0]


@pytest.mark.parametrize("budget_mb", [0, 10])
def test_unreadable_images_are_named_with_their_reasons(make_folder: MakeFolder, budget_mb: int) -> None:
    root = make_folder(classes=2, images=4)
    (root / "class0/1.png").write_bytes(b"")
    (root / "class1/2.png").write_bytes((root / "class1/2.png").read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        open_images(opened_manifest(root), channels=3, short_side=8, budget_mb=budget_mb)
    first, second = str(caught.value).splitlines()
    assert first == f"cannot read the image {root}/class0/1.png: the file is empty. Mend or remove the file."
    assert second.startswith(f"cannot read the image {root}/class1/2.png: it cannot be decoded")


def test_of_many_unreadable_images_five_are_named_and_the_rest_counted(make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=4)
    for path in root.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(UserError) as caught:
        open_images(opened_manifest(root), channels=3, short_side=8, budget_mb=10)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "… and 3 more unreadable images."


@pytest.mark.parametrize("budget_mb", [0, 10])
def test_progress_is_told_after_every_image(make_folder: MakeFolder, budget_mb: int) -> None:
    told: list[tuple[int, int]] = []
    manifest = opened_manifest(make_folder(classes=2, images=40, size=(3, 3)))
    open_images(
        manifest,
        channels=3,
        short_side=8,
        budget_mb=budget_mb,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 80) for done in range(1, 81)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_source_that_holds_its_pixels_gives_the_rows_of_the_manifest(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    rows = [{"id": str(k), "row": k, "split": "val" if k > 2 else "train"} for k in range(5)]
    part = Manifest.build(rows, classes=["a"], images=pixels).part("val")
    images = open_images(part, channels=channels, short_side=100, budget_mb=0)
    assert len(images) == 2
    assert np.array_equal(images[1], pixels[4][:, :, None].repeat(channels, 2))
    assert open_images(part, channels=channels, short_side=4, budget_mb=0)[0].shape == (4, 4, channels)


def test_an_empty_part_has_no_images() -> None:
    assert len(open_images(Manifest.build([], classes=["a"]), channels=3, short_side=8, budget_mb=1)) == 0
