"""What a check finds, and that it cries no wolf."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.data.check import check, drop_unreadable, pixels_of
from imgcls.data.images import DecodedImages
from imgcls.data.report import FEW_IMAGES, KINDS, Report
from imgcls.data.source import scan
from imgcls.data.sources.digits import DigitsConfig
from imgcls.data.sources.folder import FolderConfig
from imgcls.errors import UserError
from imgcls.tables import Encoded, Manifest

MakeFolder = Callable[..., Path]


@pytest.fixture
def root(make_folder: MakeFolder) -> Path:
    """Two classes of ten images with nothing wrong."""
    return make_folder(classes=2, images=FEW_IMAGES, size=(40, 30))


def checked(root: Path, depth: Any = "quick") -> Report:
    return check(scan(FolderConfig(root=str(root))), depth=depth)


def found(report: Report) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.items for finding in report.findings}


def noise(size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 99) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def by_splits(root: Path) -> Path:
    """The folder's images under train/, and further ones under val/."""
    target = root.with_name("dealt")
    root.rename(root.with_name("train"))
    target.mkdir()
    root.with_name("train").rename(target / "train")
    for label in range(2):
        (target / "val" / f"class{label}").mkdir(parents=True)
        noise(seed=200 + label).save(target / "val" / f"class{label}" / "v.png")
    return target


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_of_good_images_there_is_nothing_to_say(root: Path, depth: str) -> None:
    report = checked(root, depth)
    assert found(report) == {}
    assert (report.unreadable, report.copies, report.imbalance) == ({}, [], 1.0)
    assert report.sizes.tolist() == [[40, 30]] * 20
    assert report.class_counts[""].tolist() == [10, 10]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


@pytest.mark.parametrize(
    ("kind", "name", "image", "options"),
    [
        ("wrong_ending", "x.png", noise(), {"format": "JPEG"}),
        ("animated", "x.webp", noise(), {"save_all": True, "append_images": [noise(seed=5)]}),
        ("cmyk", "x.jpg", noise(mode="CMYK"), {}),
        ("palette", "x.png", noise(mode="P"), {}),
        ("wide", "x.png", Image.fromarray(np.arange(0, 60_000, 50, dtype=np.uint16).reshape(30, 40)), {}),
        ("alpha", "x.png", noise(mode="RGBA"), {}),
        ("rotated", "x.jpg", noise(), {"exif": turned()}),
        ("elongated", "x.png", noise((400, 60)), {}),
        ("small", "x.png", noise((8, 7)), {}),
    ],
)
def test_an_odd_image_is_a_note(kind: str, name: str, image: Image.Image, options: dict[str, Any], root: Path) -> None:
    image.save(root / "class0" / name, **options)
    for depth in ("quick", "full"):
        report = checked(root, depth)
        assert found(report) == {kind: (f"class0/{name}",)}
        assert [finding.severity for finding in report.findings] == ["note"]


def test_a_rotated_image_counts_as_it_is_seen(root: Path) -> None:
    noise((50, 30)).save(root / "class0" / "0.png", exif=turned())
    assert checked(root).sizes[0].tolist() == [30, 50]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"words", "it is no image of a known format (it begins with b'words')")],
)
def test_what_is_no_image_is_an_error_with_its_reason(content: bytes, reason: str, root: Path) -> None:
    (root / "class1" / "3.png").write_bytes(content)
    report = checked(root)
    assert found(report)["unreadable"] == (f"class1/3.png: {reason}",)
    assert report.unreadable == {13: reason}
    assert next(iter(report.findings)).severity == "error"
    assert checked(root, "full").unreadable == {13: reason}


def test_empty_files_are_no_copies_of_each_other(root: Path) -> None:
    for name in ("1.png", "2.png"):
        (root / "class0" / name).write_bytes(b"")
    assert "duplicates" not in found(checked(root))


def test_a_file_that_was_cut_off_is_suspected_by_its_header_and_convicted_by_decoding(root: Path) -> None:
    path = root / "class0" / "4.png"
    path.write_bytes(path.read_bytes()[:-500])
    assert found(checked(root)) == {"cut_off": ("class0/4.png",)}
    full = checked(root, "full")
    assert list(found(full)) == ["unreadable"]
    assert "truncated" in full.unreadable[4]


def test_pixels_damaged_in_the_middle_are_found_by_decoding_only(root: Path) -> None:
    path = root / "class0" / "4.png"
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    assert found(checked(root)) == {}
    assert list(checked(root, "full").unreadable) == [4]


def test_copies_in_one_class_are_a_note(root: Path) -> None:
    shutil.copy(root / "class0/1.png", root / "class0/a.png")
    shutil.copy(root / "class0/1.png", root / "class0/b.png")
    report = checked(root)
    assert found(report) == {"duplicates": ("class0/a.png = class0/1.png", "class0/b.png = class0/1.png")}
    assert [[report.manifest.ids[row] for row in same] for same in report.copies] == [
        ["class0/1.png", "class0/a.png", "class0/b.png"]
    ]


def test_copies_under_two_labels_are_a_warning(root: Path) -> None:
    shutil.copy(root / "class0/1.png", root / "class1/a.png")
    report = checked(root)
    assert found(report)["contradictory"] == ("class0/1.png (class0) = class1/a.png (class1)",)
    assert [finding.severity for finding in report.findings] == ["warning", "note"]


def test_copies_in_two_given_splits_are_leakage(root: Path) -> None:
    dealt = by_splits(root)
    shutil.copy(dealt / "train/class0/1.png", dealt / "val/class0/a.png")
    report = checked(dealt)
    assert found(report)["leakage"] == ("train/class0/1.png (train) = val/class0/a.png (val)",)
    assert report.class_counts["train"].tolist() == [10, 10]
    assert report.class_counts["val"].tolist() == [2, 1]


def test_a_copy_without_a_split_beside_one_in_train_does_not_leak() -> None:
    rows = [
        {"id": str(k), "row": k, "label": 0, "split": split, "content": "same"} for k, split in enumerate(["", "train"])
    ]
    report = check(Manifest.build(rows, classes=["a"], images=np.zeros((2, 4, 4), np.uint8)))
    assert "leakage" not in found(report)


@pytest.mark.parametrize("variant", ["resized", "compressed"])
def test_pictures_that_look_alike_are_found_by_a_full_check(variant: str, root: Path) -> None:
    dealt = by_splits(root)
    coarse = Image.fromarray(np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = coarse.resize((160, 120), Image.Resampling.BICUBIC)
    smooth.save(dealt / "train/class0/p.png")
    if variant == "resized":
        smooth.resize((80, 60)).save(dealt / "val/class1/q.png")
    else:
        smooth.save(dealt / "val/class1/q.jpg", quality=40)
    assert not {"near_duplicates", "near_leakage"} & found(checked(dealt)).keys()
    report = checked(dealt, "full")
    [pair] = found(report)["near_duplicates"]
    assert pair == f"train/class0/p.png ~ val/class1/q.{'png' if variant == 'resized' else 'jpg'}"
    assert found(report)["near_contradictory"] == found(report)["near_leakage"] == (pair,)


def test_a_pair_stands_for_all_copies_of_its_images(root: Path) -> None:
    dealt = by_splits(root)
    coarse = Image.fromarray(np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = coarse.resize((160, 120), Image.Resampling.BICUBIC)
    smooth.save(dealt / "train/class0/p.png")
    smooth.resize((80, 60)).save(dealt / "train/class0/q.png")
    shutil.copy(dealt / "train/class0/q.png", dealt / "val/class0/q.png")
    assert found(checked(dealt, "full"))["near_leakage"] == ("train/class0/p.png ~ train/class0/q.png",)


def test_images_of_one_colour_are_found_by_a_full_check(root: Path) -> None:
    for level in (10, 200):
        Image.new("RGB", (40, 30), (level, level, level)).save(root / "class0" / f"flat{level}.png")
    report = checked(root, "full")
    assert found(report) == {"blank": ("class0/flat10.png", "class0/flat200.png")}


def test_small_classes_and_imbalance_are_warnings_the_smallest_first(make_folder: MakeFolder) -> None:
    root = make_folder(classes=3, images=30, size=(6, 5))
    for number in range(29):
        (root / "class2" / f"{number}.png").unlink()
    for number in range(25):
        (root / "class0" / f"{number}.png").unlink()
    report = checked(root)
    assert found(report) == {"few_images": ("class2", "class0"), "imbalance": ("class2",)}
    assert report.imbalance == 30


def test_classes_are_counted_in_training_where_there_are_splits(root: Path) -> None:
    assert "few_images" not in found(checked(by_splits(root)))


def test_findings_come_with_the_errors_first(root: Path) -> None:
    noise(mode="RGBA").save(root / "class0/x.png")
    shutil.copy(root / "class0/1.png", root / "class1/a.png")
    (root / "class0/2.png").write_bytes(b"")
    severities = [finding.severity for finding in checked(root).findings]
    assert severities == ["error", "warning", "note", "note"]


def test_the_channels_are_those_of_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    rows = [{"id": str(k), "row": k, "label": 0, "content": str(k)} for k in range(6)]
    manifest = Manifest.build(rows, classes=["a"], images=pixels)
    channels = check(manifest, depth="full").channels
    assert channels is not None
    assert np.allclose(channels.mean, (pixels / 255).mean((0, 1, 2)))
    assert np.allclose(channels.std, (pixels / 255).std((0, 1, 2)))
    grey = check(manifest, depth="full", channels=1).channels
    assert grey is not None
    assert grey.mean.shape == (1,)
    assert check(manifest).channels is None


def encoded_manifest(root: Path) -> Manifest:
    """The folder's files as one source that holds their bytes."""
    manifest = scan(FolderConfig(root=str(root)))
    files = [Path(path).read_bytes() for path in manifest.frame["path"]]
    encoded = Encoded(np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)]).astype(np.int64))
    columns = ("id", "label", "split", "content")
    values = zip(*(manifest.frame[column].tolist() for column in columns), strict=True)
    rows = [{**dict(zip(columns, row, strict=True)), "row": k} for k, row in enumerate(values)]
    return Manifest.build(rows, classes=manifest.classes, encoded=encoded)


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_encoded_bytes_are_checked_as_files_are(root: Path, depth: Any) -> None:
    noise(mode="RGBA").save(root / "class0/x.png")
    shutil.copy(root / "class0/1.png", root / "class1/a.png")
    (root / "class0/2.png").write_bytes(b"")
    inside, files = check(encoded_manifest(root), depth=depth), checked(root, depth)
    assert inside.findings == files.findings
    assert inside.facts == files.facts
    assert inside.unreadable == files.unreadable


def test_a_source_that_holds_its_pixels_is_checked_too() -> None:
    manifest = scan(DigitsConfig())
    quick, full = check(manifest), check(manifest, depth="full", channels=1)
    assert found(quick) == {}
    assert quick.sizes.tolist() == [[8, 8]] * 1797
    assert found(full) == {}
    assert full.near is not None


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_progress_is_told_to_the_end(depth: Any, root: Path) -> None:
    told: list[tuple[int, int]] = []
    check(encoded_manifest(root), depth=depth, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 20) for done in range(1, 21)]


def test_the_report_as_a_dictionary_is_json_and_names_every_image(root: Path) -> None:
    for number in range(8):
        shutil.copy(root / "class0/9.png", root / "class0" / f"copy{number}.png")
    (root / "class1/0.png").write_bytes(b"")
    report = checked(root, "full")
    data = json.loads(json.dumps(report.to_dict()))
    copies = next(finding for finding in data["findings"] if finding["kind"] == "duplicates")
    assert (copies["count"], len(copies["items"])) == (8, 8)
    assert [image["id"] for image in data["duplicates"][0]] == [
        "class0/9.png",
        *(f"class0/copy{k}.png" for k in range(8)),
    ]
    assert data["duplicates"][0][0] == {"id": "class0/9.png", "class": "class0", "split": ""}
    assert data["unreadable"] == [{"id": "class1/0.png", "reason": "the file is empty"}]
    assert data["classes"][0] == {"class": "class0", "undealt": 18}
    assert data["sizes"] == [[0, 0, 1], [40, 30, 27]]
    assert data["images"] == 28
    assert len(data["channels"]["mean"]) == 3


def test_every_kind_of_finding_can_be_counted(root: Path) -> None:
    report = checked(root)
    assert [report.count(kind) for kind in KINDS] == [0] * len(KINDS)


def test_a_finding_in_one_line_names_a_few(root: Path) -> None:
    for number in range(5):
        shutil.copy(root / "class0/9.png", root / "class0" / f"copy{number}.png")
    [finding] = checked(root).findings
    assert finding.line(2) == (
        "note: copies of an image, byte for byte: 5 "
        "(class0/copy0.png = class0/9.png, class0/copy1.png = class0/9.png, …)"
    )


def test_dropping_tells_the_reason_as_opening_does(root: Path) -> None:
    (root / "class1/0.png").write_bytes(b"words")
    manifest = scan(FolderConfig(root=str(root)))
    [skipped] = drop_unreadable(manifest).skipped
    with pytest.raises(UserError) as caught:
        DecodedImages(manifest, channels=3, short_side=32)[10]
    assert skipped.path == "class1/0.png"
    assert skipped.reason.startswith(str(caught.value)[:60])


def test_the_pixels_of_every_kind_of_manifest_are_the_same(root: Path) -> None:
    files, inside = scan(FolderConfig(root=str(root))), encoded_manifest(root)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(Path(path).read_bytes()))) for path in files.frame["path"]])
    rows = [{"id": str(k), "row": k, "label": 0} for k in range(len(pixels))]
    arrays = Manifest.build(rows, classes=["a"], images=pixels)
    for row in (0, 19):
        one, two, three = (pixels_of(m, row, channels=3, short_side=20) for m in (files, inside, arrays))
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)
        assert one.shape == (20, 27, 3)
