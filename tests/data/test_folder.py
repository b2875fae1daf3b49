"""The folder source: what it finds, what it passes over, what it refuses."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.data.images import open_images
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig, scan_unlabelled
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.tables import Manifest
from tests.conftest import put, skipped


def scanned(root: Path) -> Manifest:
    return scan(FolderConfig(root=str(root)))


def test_every_sub_folder_is_a_class_and_nested_folders_belong_to_it(tmp_path: Path) -> None:
    manifest = scanned(put(tmp_path / "r", "dog/1.png", "cat/2.png", "cat/deep/er/3.png"))
    assert manifest.classes == ("cat", "dog")
    assert manifest.ids == ["cat/2.png", "cat/deep/er/3.png", "dog/1.png"]
    assert manifest.labels.tolist() == [0, 0, 1]
    assert set(manifest.frame["split"]) == {""}
    assert manifest.skipped == ()


def test_the_content_is_the_hash_of_the_file_and_the_path_is_absolute(tmp_path: Path) -> None:
    put(tmp_path / "r", "a/1.png", "b/1.png")
    manifest = scan(FolderConfig(root="r"))
    path = Path(manifest.frame["path"][0])
    assert path == tmp_path / "r/a/1.png"
    assert manifest.frame["content"][0] == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_the_digest_is_the_same_wherever_the_folder_lies(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    first = make_folder()
    second = tmp_path / "else where"
    shutil.copytree(first, second)
    (second / "class0/0.png").rename(second / "class0/renamed.png")
    assert scanned(first).digest == scanned(second).digest


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("Training", "VALIDATION", "testing"), ("train", "val", "test")),
        (("train", "valid"), ("train", "val")),
        (("train", "test"), ("train", "test")),
    ],
)
def test_split_folders_give_the_splits(tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...]) -> None:
    root = put(tmp_path / "r", *(f"{folder}/{name}/1.png" for folder in folders for name in ("a", "b")))
    manifest = scanned(root)
    assert manifest.classes == ("a", "b")
    assert manifest.counts() == {split: 2 * (split in splits) for split in ("train", "val", "test")}
    by_id = dict(zip(manifest.ids, manifest.frame["split"], strict=True))
    assert by_id[f"{folders[1]}/a/1.png"] == splits[1]


def test_folders_called_train_among_others_are_classes(tmp_path: Path) -> None:
    assert scanned(put(tmp_path / "r", "train/1.png", "car/1.png")).classes == ("car", "train")


def test_what_an_apple_archive_leaves_does_not_hide_the_splits(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "train/a/1.png", "train/b/1.png", "val/a/2.png", "__MACOSX/train/a/1.png", ".x/a.png")
    manifest = scanned(root)
    assert manifest.classes == ("a", "b")
    assert manifest.counts() == {"train": 2, "val": 1, "test": 0}


def test_two_folders_for_one_split_are_an_error(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "train/a/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(UserError, match="two folders for the split val"):
        scanned(root)


def test_a_class_that_train_lacks_is_an_error(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "train/a/1.png", "train/b/1.png", "val/c/1.png")
    with pytest.raises(UserError, match="the classes c are in val or test but not in train"):
        scanned(root)


def test_stray_and_hidden_files_are_passed_over_and_listed(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/1.png", "b/1.png", "loose.jpg", "a/.hidden.png", ".git/x.png", "b/.cache/y.png")
    (root / "readme.txt").write_text("x")
    (root / "a/Thumbs.db").write_text("x")
    (root / "a/png").write_text("x")
    manifest = scanned(root)
    assert manifest.ids == ["a/1.png", "b/1.png"]
    assert skipped(manifest) == {
        "loose.jpg": "image outside a class folder",
        "readme.txt": "not an image",
        ".git": "hidden",
        "a/.hidden.png": "hidden",
        "a/Thumbs.db": "not an image",
        "a/png": "not an image",
        "b/.cache": "hidden",
    }


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "Png", "webp", "bmp", "tif", "TIFF"])
def test_the_endings_of_images_are_known_in_any_case(tmp_path: Path, ending: str) -> None:
    assert len(scanned(put(tmp_path / "r", f"a/1.{ending}", f"b/1.{ending}"))) == 2


def test_a_class_folder_without_images_is_an_error(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/1.png")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*/r/empty holds no images; expected files ending in \.bmp"):
        scanned(root)


def test_a_missing_root_is_an_error_that_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data.root {tmp_path}/nowhere does not exist"):
        scan(FolderConfig(root="nowhere"))


def test_a_root_whose_name_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root cannot be read"):
        scanned(tmp_path / ("x" * 300))


def test_a_file_as_root_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "image.png")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        scanned(tmp_path / "image.png")


def test_an_empty_root_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(UserError, match="holds no images: expected sub-folders, one a class"):
        scanned(tmp_path / "r")


def test_a_root_without_class_folders_says_what_it_holds(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "1.png", "2.png")
    with pytest.raises(UserError, match=r"Found instead: 1.png \(image outside a class folder\), 2.png"):
        scanned(root)


def test_links_that_run_in_a_circle_do_not_make_the_walk_endless(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/1.png", "b/1.png")
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (root / "b/self").symlink_to(root / "b", target_is_directory=True)
    manifest = scanned(root)
    assert manifest.ids == ["a/1.png", "b/1.png"]
    assert skipped(manifest) == {"a/up": "a link to a folder", "b/self": "a link to a folder"}


def test_a_root_that_is_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"does not exist|cannot be read"):
        scanned(tmp_path / "loop")


def test_a_class_folder_and_an_image_may_be_links(tmp_path: Path) -> None:
    put(tmp_path / "store", "cats/1.png", "2.png")
    root = put(tmp_path / "r", "dog/1.png")
    (root / "cat").symlink_to(tmp_path / "store/cats", target_is_directory=True)
    (root / "dog/2.png").symlink_to(tmp_path / "store/2.png")
    assert scanned(root).ids == ["cat/1.png", "dog/1.png", "dog/2.png"]


def test_a_link_to_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/1.png")
    (root / "a/gone.png").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"cannot read the image .*/a/gone.png: No such file"):
        scanned(root)


def test_names_with_any_letters_are_kept(tmp_path: Path) -> None:
    names = ["-rf/--help.png", "été à la mer/a b.png", "日本/犬.png", 'it\'s "quoted"/$HOME;#%.png', "x\ny/1.png"]
    manifest = scanned(put(tmp_path / "r ü", *names))
    assert manifest.ids == sorted(names)
    assert manifest.classes == tuple(sorted(name.split("/")[0] for name in names))


@pytest.mark.parametrize("name", [b"a\xfc/1.png", b"a/\xfc.png"])
def test_names_that_are_not_utf_8_are_an_error_that_spells_them(tmp_path: Path, name: bytes) -> None:
    root = put(tmp_path / "r", "a/0.png", "b/0.png")
    target = root / os.fsdecode(name)
    target.parent.mkdir(exist_ok=True)
    shutil.copy(root / "a/0.png", target)
    with pytest.raises(UserError, match=r"a\\xfc/1.png are not UTF-8|a/\\xfc.png are not UTF-8"):
        scanned(root)


def test_a_folder_beside_the_splits_is_an_error_that_names_both(tmp_path: Path) -> None:
    put(tmp_path / "r", "train/a/1.png", "train/b/2.png", "val/a/3.png", "unlabeled/4.png")
    with pytest.raises(UserError, match=r"like splits \(train, val\) beside others \(unlabeled\)"):
        scanned(tmp_path / "r")


def test_a_train_folder_alone_holds_the_classes(tmp_path: Path) -> None:
    put(tmp_path / "r", "train/a/1.png", "train/b/2.png")
    manifest = scanned(tmp_path / "r")
    assert manifest.classes == ("a", "b")
    assert set(manifest.frame["split"]) == {"train"}


def test_a_class_folder_that_links_to_the_root_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "r", "a/1.png", "b/2.png")
    (tmp_path / "r" / "loop").symlink_to(tmp_path / "r", target_is_directory=True)
    manifest = scanned(tmp_path / "r")
    assert manifest.classes == ("a", "b")
    assert skipped(manifest) == {"loop": "a link to a folder above"}


# --- groups


def test_a_group_is_what_the_pattern_captures_in_the_path_below_the_root(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/01.png", "a/02.png", "b/01.png", "b/x/02.png")
    manifest = scan(FolderConfig(root=str(root), group_pattern=r"([^/]+)\.png$"))
    assert dict(zip(manifest.ids, manifest.frame["group"], strict=True)) == {
        "a/01.png": "01", "a/02.png": "02", "b/01.png": "01", "b/x/02.png": "02",
    }  # fmt: skip
    assert set(scanned(root).frame["group"]) == {""}


def test_a_capture_called_group_goes_before_the_first(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/scan1_p7.png", "b/scan2_p7.png")
    manifest = scan(FolderConfig(root=str(root), group_pattern=r"scan(\d)_(?P<group>p\d)"))
    assert list(manifest.frame["group"]) == ["p7", "p7"]


@pytest.mark.parametrize("pattern", [r"(scan\d)", r"a/(x)?"])
def test_an_image_without_a_group_is_an_error_that_names_it(tmp_path: Path, pattern: str) -> None:
    root = put(tmp_path / "r", "a/scan1.png", "b/other.png")
    with pytest.raises(UserError, match=r"captures nothing in \d of 2 paths \(.*b/other\.png\)"):
        scan(FolderConfig(root=str(root), group_pattern=pattern))


@pytest.mark.parametrize(("pattern", "message"), [("(a", "regular expression"), ("a.png", "a capture")])
def test_a_pattern_that_is_none_or_captures_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderConfig(root="x", group_pattern=pattern)


def test_drawers_of_characters_are_never_on_two_sides(tmp_path: Path) -> None:
    root = put(tmp_path / "r", *(f"alphabet-{c}/{drawer:02d}.png" for c in range(6) for drawer in range(10)))
    config = FolderConfig(root=str(root), group_pattern=r"([^/]+)\.png$")
    result = split(scan(config), config)
    assert (result.frame.groupby("group")["split"].nunique() == 1).all()
    assert set(result.part("train").labels.tolist()) == set(range(6))


def test_a_name_that_is_no_utf_8_and_is_passed_over_can_be_printed(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/1.png", "b/1.png")
    (root / os.fsdecode(b"a/\xfc.txt")).write_text("x")
    assert skipped(scanned(root)) == {"a/\\xfc.txt": "not an image"}


# --- without labels


def test_an_unlabelled_folder_gives_all_its_images_in_any_depth(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "2.png", "1.png", "a/b/3.png", ".x/4.png")
    (root / "readme.txt").write_text("x")
    manifest = scan_unlabelled(root, classes=["cat", "dog"])
    assert manifest.ids == ["1.png", "2.png", "a/b/3.png"]
    assert manifest.labels.tolist() == [-1, -1, -1]
    assert manifest.classes == ("cat", "dog")
    assert skipped(manifest) == {"readme.txt": "not an image", ".x": "hidden"}
    assert len(open_images(manifest, channels=3, short_side=4, budget=10**8)) == 3
    assert len(manifest.digest) == 32


def test_an_unlabelled_archive_gives_the_ids_of_the_folder(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "2.png", "1.png", "a/b/3.png")
    packed = scan_unlabelled(Path(shutil.make_archive(str(tmp_path / "p"), "zip", root)))
    assert packed.ids == ["1.png", "2.png", "a/b/3.png"]
    assert packed.digest == scan_unlabelled(root).digest


def test_unlabelled_files_keep_the_names_they_were_given_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "d/2.png", "d/1.png")
    (tmp_path / "d/2.png").rename(tmp_path / "d/upload")
    monkeypatch.chdir(tmp_path)
    manifest = scan_unlabelled([Path("d/upload"), Path("d/1.png")])
    assert (manifest.ids, manifest.classes) == (["d/1.png", "d/upload"], ())
    assert list(manifest.frame["path"]) == [str(tmp_path / name) for name in manifest.ids]
    assert scan_unlabelled(Path("d/1.png")).ids == ["1.png"]


def test_unlabelled_images_that_cannot_be_used_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/x.txt").write_text("x")
    for given, expected in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "r", r"r holds no images; expected files ending in .*in any depth. Found instead: x.txt"),
        (tmp_path / "r/x.txt", "is a file; expected a folder"),
        ([tmp_path / "gone.png"], "cannot read the image .*gone.png: No such file"),
        ([Path("a.png"), Path("a.png")], "the image a.png is given twice"),
        ([], "no image is given"),
    ):
        with pytest.raises(UserError, match=expected):
            scan_unlabelled(given)
