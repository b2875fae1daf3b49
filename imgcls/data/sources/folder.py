"""A folder of images, or an archive of one: root/<class>/..., or root/{train,val,test}/<class>/... with its splits."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from imgcls.data.source import SOURCES, DataConfig, ScanProgress, Source, silent
from imgcls.data.sources.archive import ENDINGS, unpacked
from imgcls.data.sources.archive_members import is_archive, looks_like
from imgcls.data.sources.files import (
    EXTENSIONS,
    SPLIT_NAMES,
    absolute,
    check_names,
    contents,
    is_hidden,
    printable,
    some,
)
from imgcls.errors import UserError
from imgcls.tables import Manifest, Skipped


class FolderConfig(DataConfig):
    """The fields of `source: folder`."""

    source: Literal["folder"] = "folder"
    """A folder with one sub-folder a class, or with train/val/test folders that hold them."""
    root: str = Field(min_length=1)
    """The folder, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz of it, which is unpacked once into the cache. A
    relative path is taken from the current directory (under `mlflow run`: the project's)."""
    max_archive_gb: float = Field(50, gt=0)
    """GiB that an archive may take unpacked. An archive that was made to fill disks is refused before it does so."""
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
        """The folder or archive."""
        return self.root


def scan_folder(config: FolderConfig, progress: ScanProgress) -> Manifest:
    """Find the images below the root. Hidden and non-image files are skipped and listed in the manifest.

    An archive gives the ids, classes, splits and digest of the folder that was packed.

    Raises:
        UserError: the root is missing, is neither folder nor archive, cannot be read, holds no images, has a class
            folder without images, has classes in val or test that train lacks, or file names that are not UTF-8. An
            archive that cannot be unpacked.
    """
    with _opened(Path(config.root), config.max_archive_gb, progress) as (root, skipped):
        return _scan_below(root, skipped, config.group_pattern, progress)


def _scan_below(root: Path, skipped: list[Skipped], group_pattern: str | None, progress: ScanProgress) -> Manifest:
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
        for (path, name, split), content in zip(files, contents(paths, progress), strict=True)
    ]
    if group_pattern is not None:
        groups = _groups([str(row["id"]) for row in rows], group_pattern)
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


@contextmanager
def _opened(root: Path, max_archive_gb: float, progress: ScanProgress) -> Iterator[tuple[Path, list[Skipped]]]:
    """(the folder with the images, what is passed over already) of a folder or an archive."""
    _check_root(root)
    if root.is_dir():
        yield root, []
        return
    found = unpacked(root, max_gb=max_archive_gb, progress=progress)
    try:
        yield found.folder, list(found.skipped)
    except UserError as error:  # a user knows the archive, not its place in the cache
        raise UserError(str(error).replace(str(found.base), str(root))) from error


def _check_root(root: Path) -> None:
    try:
        exists = root.exists()
    except OSError as error:  # a name that is too long
        raise UserError(f"data.root cannot be read: {error.strerror}, found {str(root)[:200]!r}.") from error
    if not exists:
        raise UserError(
            f"data.root {root} does not exist; expected a folder with one sub-folder a class, or an archive of it. "
            "Give an existing folder, best as an absolute path: a relative one is taken from the current directory, "
            "which under `mlflow run` is the project's."
        )
    wanted = os.R_OK | (os.X_OK if root.is_dir() else 0)
    if not os.access(root, wanted, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"data.root {root} cannot be read: permission denied. Change its permissions.")
    if not root.is_dir():
        _check_archive(root)


def _check_archive(root: Path) -> None:
    expected = f"expected a folder with one sub-folder a class, or an archive of it ({', '.join(ENDINGS)})"
    if not root.is_file():
        raise UserError(f"data.root {root} is neither a folder nor a file; {expected}.")
    try:
        if is_archive(root):
            return
        kind = looks_like(root)
    except OSError as error:
        raise UserError(f"data.root {root} cannot be read: {error.strerror}. Change its permissions.") from error
    if kind:
        raise UserError(
            f"data.root {root} is a file that begins like {kind}, but is no whole archive; {expected}. Copy or "
            "download it again."
        )
    raise UserError(f"data.root {root} is a file; {expected}.")


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """[(split, folder)] where the sub-folders are named like splits, else [("", root)]."""
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_hidden(entry.name)]
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
        if is_hidden(entry.name):
            skipped.append(Skipped(_name(entry, root), "hidden"))
        elif not entry.is_dir():
            image = entry.suffix.casefold() in EXTENSIONS
            reason = "image outside a class folder" if image else "not an image"
            skipped.append(Skipped(_name(entry, root), reason))
        elif entry.is_symlink() and root.resolve().is_relative_to(entry.resolve()):
            skipped.append(Skipped(_name(entry, root), "a link to a folder above"))
        else:
            found = list(images_below(entry, root, skipped))
            if not found:
                raise UserError(
                    f"the class folder {entry} holds no images; expected files ending in "
                    f"{', '.join(sorted(EXTENSIONS))}. Add images or remove the folder."
                )
            yield from ((path, entry.name) for path in found)


def images_below(folder: Path, root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """The images of a folder in any depth, folder by folder; links to folders are not followed.

    Args:
        folder: where to look.
        root: the folder that the names of what is passed over start from.
        skipped: gets what is passed over: hidden files, those that are no images, links to folders.

    Raises:
        UserError: a folder cannot be read.
    """

    def cannot_list(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}. Change its permissions or remove it.")

    # Links to folders are not followed, so a link to a parent cannot make the walk endless.
    for here, folders, names in os.walk(folder, onerror=cannot_list):
        for name in sorted(folders):
            path = Path(here, name)
            if is_hidden(name):
                skipped.append(Skipped(_name(path, root), "hidden"))
            elif path.is_symlink():
                skipped.append(Skipped(_name(path, root), "a link to a folder"))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            path = Path(here, name)
            if is_hidden(name):
                skipped.append(Skipped(_name(path, root), "hidden"))
            elif path.suffix.casefold() not in EXTENSIONS:
                skipped.append(Skipped(_name(path, root), "not an image"))
            else:
                yield path


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _what_was_skipped(skipped: list[Skipped]) -> str:
    if not skipped:
        return ""
    return f" Found instead: {some([f'{item.path} ({item.reason})' for item in skipped])}."


def scan_unlabelled(
    root: Path | Sequence[Path],
    *,
    classes: Sequence[str] = (),
    max_archive_gb: float = 50,
    progress: ScanProgress = silent,
) -> Manifest:
    """Images without labels, to be predicted: those of a folder in any depth, of an archive, or single files.

    Hidden and non-image files below a folder are skipped and listed; files that are named themselves are not judged by
    their endings.

    Args:
        root: a folder, an archive of one, an image, or several images.
        classes: the class names of the model that is to predict.
        max_archive_gb: GiB that an archive may take when it is unpacked.
        progress: told how far it is.

    Raises:
        UserError: the root or a file is missing or cannot be read, no image is there, a file is given twice, names
            that are not UTF-8, or an archive that cannot be unpacked.
    """
    if not isinstance(root, Path):
        return _unlabelled([(str(path), path) for path in root], classes, [], progress)
    if root.suffix.casefold() in EXTENSIONS and root.is_file():
        return _unlabelled([(root.name, root)], classes, [], progress)
    with _opened(Path(absolute(str(root))), max_archive_gb, progress) as (folder, skipped):
        found = [(path.relative_to(folder).as_posix(), path) for path in images_below(folder, folder, skipped)]
        if not found:
            raise UserError(
                f"{folder} holds no images; expected files ending in {', '.join(sorted(EXTENSIONS))}, in any depth."
                f"{_what_was_skipped(skipped)}"
            )
        return _unlabelled(found, classes, skipped, progress)


def _unlabelled(
    images: Sequence[tuple[str, Path]], classes: Sequence[str], skipped: Sequence[Skipped], progress: ScanProgress
) -> Manifest:
    names = [name for name, _ in images]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice or not images:
        raise UserError(f"the image {some(twice)} is given twice; expected once." if twice else "no image is given.")
    paths = [path.absolute() for _, path in images]
    check_names(paths)
    rows = [
        {"id": name, "path": str(path), "content": content}
        for name, path, content in zip(names, paths, contents(paths, progress), strict=True)
    ]
    return Manifest.build(sorted(rows, key=lambda row: row["id"]), classes=classes, skipped=skipped)


SOURCES.register("folder")(Source(FolderConfig, scan_folder))
