"""A folder of images: root/<class>/..., or root/{train,val,test}/<class>/... with its splits given."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from imgcls.data.source import SOURCES, DataConfig, Source
from imgcls.data.sources.files import EXTENSIONS, SPLIT_NAMES, absolute, check_names, contents, some
from imgcls.errors import UserError
from imgcls.tables import Manifest, Skipped


class FolderConfig(DataConfig):
    """The fields of `source: folder`."""

    source: Literal["folder"] = "folder"
    """A folder with one sub-folder a class, or with train/val/test folders that hold them."""
    root: str = Field(min_length=1)
    """The folder. A relative path is taken from the current directory (under `mlflow run`: the project's)."""

    group_pattern: str | None = None
    """What images belong together (a scene, a patient, a drawer), so that no group is on two sides of the split: a
    regular expression on the path below root, such as `([^/]+)\\.png$`, whose first capture, or the one named group, is
    the group. null: no groups."""

    @field_validator("group_pattern")
    @classmethod
    def _captures(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                captures = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"expected a regular expression, but: {error}") from error
            if not captures:
                raise ValueError("expected a capture, such as the parentheses in ([^/]+)\\.png$")
        return pattern

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        return absolute(root)

    @property
    def origin(self) -> str:
        """The folder."""
        return self.root


def scan_folder(config: FolderConfig) -> Manifest:
    """Find the images below the root. Hidden and non-image files are skipped and listed in the manifest.

    Raises:
        UserError: the root is missing, is no folder, cannot be read, holds no images, has a class folder
            without images, has classes in val or test that train lacks, or file names that are not UTF-8.
    """
    root = Path(config.root)
    _check_root(root)
    skipped: list[Skipped] = []
    splits = _split_folders(root)
    files: list[tuple[Path, str, str]] = []
    for split, folder in splits:
        files += [(path, name, split) for path, name in _classes_below(folder, root, skipped)]
    if not files:
        raise UserError(
            f"data.root {root} holds no images: expected sub-folders, one a class, with "
            f"files ending in {', '.join(sorted(EXTENSIONS))}.{_what_was_skipped(skipped)}"
        )
    paths = [path for path, _, _ in files]
    check_names(paths)
    train = {name for _, name, split in files if split in ("", "train")}
    strangers = sorted({name for _, name, _ in files} - train)
    if strangers:
        raise UserError(
            f"data.root {root}: the classes {some(strangers)} are in val or test but not in train; a class "
            "needs training images. Add some, or remove the class folders."
        )
    classes = sorted(train)
    index = {name: k for k, name in enumerate(classes)}
    rows = [
        {
            "id": path.relative_to(root).as_posix(),
            "path": str(path),
            "label": index[name],
            "split": split,
            "content": content,
        }
        for (path, name, split), content in zip(files, contents(paths), strict=True)
    ]
    if config.group_pattern is not None:
        groups = _groups([str(row["id"]) for row in rows], config.group_pattern)
        rows = [{**row, "group": group} for row, group in zip(rows, groups, strict=True)]
    rows.sort(key=lambda row: str(row["id"]))
    return Manifest.build(rows, classes=classes, skipped=skipped)


def _groups(ids: Sequence[str], pattern: str) -> list[str]:
    """What the pattern captures in each path."""
    compiled = re.compile(pattern)
    capture = "group" if "group" in compiled.groupindex else 1
    groups = [found[capture] if (found := compiled.search(name)) else None for name in ids]
    without = [name for name, group in zip(ids, groups, strict=True) if not group]
    if without:
        raise UserError(
            f"data.group_pattern {pattern!r} captures nothing in {len(without):,} of {len(ids):,} paths "
            f"({some(without)}); expected a group for every image. Mend the pattern."
        )
    return [str(group) for group in groups]


def _check_root(root: Path) -> None:
    try:
        exists = root.exists()
    except OSError as error:  # a name that is too long
        raise UserError(f"data.root cannot be read: {error.strerror}, found {str(root)[:200]!r}.") from error
    if not exists:
        raise UserError(
            f"data.root {root} does not exist; expected a folder with one sub-folder a class. Give an existing "
            "folder, best as an absolute path: a relative one is taken from the current directory, which under "
            "`mlflow run` is the project's."
        )
    if not root.is_dir():
        raise UserError(f"data.root {root} is a file; expected a folder with one sub-folder a class.")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"data.root {root} cannot be read: permission denied. Change its permissions.")


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """[(split, folder)] where the sub-folders are named like splits, else [("", root)]."""
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not _is_hidden(entry.name)]
    splits = [(SPLIT_NAMES.get(entry.name.casefold(), ""), entry) for entry in folders]
    named = [split for split, _ in splits]
    others = [entry.name for split, entry in splits if not split]
    if "train" not in named or (others and not {"val", "test"} & set(named)):
        return [("", root)]
    if others:
        like = [entry.name for split, entry in splits if split]
        raise UserError(
            f"data.root {root} has folders named like splits ({some(like)}) "
            f"beside others ({some(others)}); expected either one folder a class, or train, val and test alone. Move "
            "or rename the others."
        )
    twice = {split for split in named if named.count(split) > 1}
    if twice:
        raise UserError(f"data.root {root} has two folders for the split {some(sorted(twice))}; keep one.")
    return splits


def _classes_below(folder: Path, root: Path, skipped: list[Skipped]) -> Iterator[tuple[Path, str]]:
    """(image, class name) of every image in the class folders below."""
    for entry in sorted(folder.iterdir()):
        if _is_hidden(entry.name):
            skipped.append(Skipped(entry.relative_to(root).as_posix(), "hidden"))
        elif not entry.is_dir():
            image = entry.suffix.casefold() in EXTENSIONS
            reason = "image outside a class folder" if image else "not an image"
            skipped.append(Skipped(entry.relative_to(root).as_posix(), reason))
        elif entry.is_symlink() and root.resolve().is_relative_to(entry.resolve()):
            skipped.append(Skipped(entry.relative_to(root).as_posix(), "a link to a folder above"))
        else:
            found = list(_images_below(entry, root, skipped))
            if not found:
                raise UserError(
                    f"the class folder {entry} holds no images; expected files ending in "
                    f"{', '.join(sorted(EXTENSIONS))}. Add images or remove the folder."
                )
            yield from ((path, entry.name) for path in found)


def _images_below(folder: Path, root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def cannot_list(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}. Change its permissions or remove it.")

    # Links to folders are not followed, so a link to a parent cannot make the walk endless.
    for here, folders, names in os.walk(folder, onerror=cannot_list):
        for name in sorted(folders):
            path = Path(here, name)
            if _is_hidden(name):
                skipped.append(Skipped(path.relative_to(root).as_posix(), "hidden"))
            elif path.is_symlink():
                skipped.append(Skipped(path.relative_to(root).as_posix(), "a link to a folder"))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            path = Path(here, name)
            if _is_hidden(name):
                skipped.append(Skipped(path.relative_to(root).as_posix(), "hidden"))
            elif path.suffix.casefold() not in EXTENSIONS:
                skipped.append(Skipped(path.relative_to(root).as_posix(), "not an image"))
            else:
                yield path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _what_was_skipped(skipped: list[Skipped]) -> str:
    if not skipped:
        return ""
    return f" Found instead: {some([f'{item.path} ({item.reason})' for item in skipped])}."


SOURCES.register("folder")(Source(FolderConfig, scan_folder))
