"""A check's report on the terminal and as tables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.data.check import check
from imgcls.data.report import Report
from imgcls.jobs.data_tables import (
    as_text,
    classes_table,
    copies_table,
    findings_table,
    images_table,
    near_table,
)
from imgcls.tables import Manifest


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))


@pytest.fixture
def manifest() -> Manifest:
    """Twelve cats and twelve dogs; the first two dogs are the first cat again, to the byte and nearly."""
    pixels = [picture(k) for k in range(24)]
    pixels[12] = pixels[0]
    pixels[13] = (pixels[0] * 0.95).astype(np.uint8)
    rows = [
        {
            "id": f"{'cat' if k < 12 else 'dog'}/{k:02d}.png",
            "row": k,
            "label": int(k >= 12),
            "split": "test" if k in (11, 12) else "train",
            "content": "same" if k in (0, 12) else str(k),
        }
        for k in range(24)
    ]
    return Manifest.build(rows, classes=["cat", "dog"], images=np.stack(pixels))


@pytest.fixture
def report(manifest: Manifest) -> Report:
    return check(manifest, depth="full")


def test_the_text_tells_all_in_a_page(report: Report) -> None:
    text = as_text(report, "pets", width=91)
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in vars(report.channels).values())
    assert (
        text
        == f"""\
pets: a full check (every image decoded)

images     24, 92.2 kB
classes    2, each of 11 images in training
splits     train 22, test 2
sizes      all 40 x 32 px
channels   mean {mean}, standard deviation {std} (of 0 to 1)

warning    contents (the same bytes) under several labels: 1. At most one of the labels is
           right: remove the others.
             cat/00.png (cat) = dog/12.png (dog)

warning    contents (the same bytes) in several splits: 1. What is measured on such images
           is not how the model does on new ones: remove them from one side.
             cat/00.png (train) = dog/12.png (test)

warning    pairs that look alike under different labels: 1. Look at the figure of the
           pairs; mend the labels of those that are the same picture.
             cat/00.png ~ dog/13.png

warning    pairs that look alike in different splits: 1. Look at the figure of the pairs;
           remove those that are the same picture from one side, or give such images a
           common group.
             cat/00.png ~ dog/13.png

note       copies of an image, byte for byte: 1. Splits that are dealt here keep copies on
           one side; they count several times in training.
             dog/12.png = cat/00.png

note       pairs that look alike: 1. Copies that were resized, cropped or compressed anew,
           or shots of one scene. Give those a common group (data.group_column) to keep
           them on one side of the split.
             cat/00.png ~ dog/13.png

0 errors, 4 warnings, 2 notes"""
    )


def test_of_good_data_the_text_says_so(make_folder: Callable[..., Path]) -> None:
    from imgcls.data.source import scan
    from imgcls.data.sources.folder import FolderConfig

    report = check(scan(FolderConfig(root=str(make_folder(classes=2, images=10)))))
    lines = as_text(report, "photos").splitlines()
    assert lines[0] == "photos: a quick check (headers only; --full decodes and compares all images)"
    assert lines[2].endswith("20 PNG (20 RGB)")
    assert lines[3:] == [
        "classes    2, each of 10 images",
        "splits     none given; a training deals them",
        "sizes      all 20 x 16 px",
        "",
        "nothing found",
    ]


def test_different_sizes_are_told_by_their_spread(tmp_path: Path) -> None:
    from imgcls.data.source import scan
    from imgcls.data.sources.folder import FolderConfig

    for number, size in enumerate([(10, 30), (20, 31), (900, 800)]):
        (tmp_path / "r" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, size)).save(tmp_path / "r" / "a" / f"{number}.png")
    text = as_text(check(scan(FolderConfig(root=str(tmp_path / "r")))), "r", width=200)
    assert "width 10 … 20 … 900, height 30 … 31 … 800, shorter side 10 … 20 … 800 px (smallest, median, lar" in text


def test_many_examples_and_long_names_stay_in_the_width() -> None:
    rows = [{"id": f"{'x' * 150}/{k}.png", "row": k, "label": k % 2, "content": "same"} for k in range(40)]
    manifest = Manifest.build(rows, classes=["a", "b"], images=np.zeros((40, 20, 20), np.uint8))
    lines = as_text(check(manifest), "many", width=80).splitlines()
    assert max(map(len, lines)) == 80
    assert "             … and 36 more" in lines


def test_the_tables_name_every_image_class_and_pair(report: Report) -> None:
    images = images_table(report)
    assert list(images["id"]) == report.manifest.ids
    assert set(images["width"]) == {40}
    assert list(images["problem"]) == [""] * 24
    assert classes_table(report).to_dict("list") == {"class": ["cat", "dog"], "train": [11, 11], "test": [1, 1]}
    assert copies_table(report).drop(columns="content").to_dict("list") == {
        "number": [1, 1],
        "id": ["cat/00.png", "dog/12.png"],
        "class": ["cat", "dog"],
        "split": ["train", "test"],
    }
    [pair] = near_table(report).to_dict("records")
    assert (pair["id_a"], pair["id_b"], pair["class_a"], pair["class_b"]) == ("cat/00.png", "dog/13.png", "cat", "dog")
    assert 0.97 <= pair["correlation"] <= 1
    assert list(findings_table(report)["kind"])[:2] == ["contradictory", "leakage"]


def test_where_nothing_is_found_the_tables_have_their_columns(manifest: Manifest) -> None:
    report = check(manifest.without([12, 13], skipped=[]))
    assert len(copies_table(report)) == len(near_table(report)) == len(findings_table(report)) == 0
    assert list(copies_table(report).columns) == ["number", "id", "class", "split", "content"]
    assert list(findings_table(report).columns) == ["severity", "kind", "count", "title", "advice"]
