"""What every data source promises."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import imgcls.data  # noqa: F401  (registers the sources)
from imgcls.data.images import open_images
from imgcls.data.source import SOURCES, DataConfig, scan
from imgcls.data.sources.csv import CsvConfig
from imgcls.data.sources.digits import DigitsConfig
from imgcls.data.sources.folder import FolderConfig
from imgcls.data.sources.parquet import ParquetConfig
from imgcls.data.sources.torchvision import TorchvisionConfig
from imgcls.data.split import split
from imgcls.tables import MANIFEST_COLUMNS, SPLITS, Manifest

MakeFolder = Callable[..., Path]


def csv_config(make_folder: MakeFolder) -> CsvConfig:
    """A table beside a folder of images."""
    root = make_folder(classes=3, images=4)
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in root.rglob("*.png")]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]))
    return CsvConfig(table=str(root / "labels.csv"))


def archive_config(make_folder: MakeFolder) -> FolderConfig:
    """A folder of images, packed."""
    root = make_folder(classes=3, images=4)
    return FolderConfig(root=shutil.make_archive(str(root), "gztar", root.parent, root.name))


def parquet_config(make_folder: MakeFolder) -> ParquetConfig:
    """Two files as the hub lays them out."""
    root = make_folder(classes=3, images=4)
    paths = sorted(root.rglob("*.png"))
    names = sorted({path.parent.name for path in paths})
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    for number in range(2):
        part = paths[number::2]
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in part]
        table = pa.table({"image": images, "label": [names.index(path.parent.name) for path in part]})
        table = table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()})
        pq.write_table(table, root / f"all-0000{number}-of-00002.parquet")
    return ParquetConfig(parquet=str(root))


CONFIGS: dict[str, Callable[[MakeFolder], DataConfig]] = {
    "archive": archive_config,
    "csv": csv_config,
    "digits": lambda _: DigitsConfig(),
    "folder": lambda make_folder: FolderConfig(root=str(make_folder(classes=3, images=4))),
    "parquet": parquet_config,
    "torchvision": lambda make_folder: TorchvisionConfig(
        name="EuroSAT", cache_dir=str(make_folder(classes=3, images=4, name="cache/eurosat/2750").parents[1])
    ),
}


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest, make_folder: MakeFolder) -> DataConfig:
    return CONFIGS[request.param](make_folder)


@pytest.fixture
def manifest(config: DataConfig) -> Manifest:
    return scan(config)


def test_every_source_is_under_contract() -> None:
    assert sorted(CONFIGS.keys() - {"archive"}) == SOURCES.names()  # an archive is another root of `folder`


def test_the_config_is_that_of_the_registered_source(config: DataConfig) -> None:
    assert type(config) is SOURCES.get(config.source).config
    assert SOURCES.get(config.source).config.model_fields["source"].default == config.source


def test_rows_have_all_columns_and_are_sorted_by_unique_ids(manifest: Manifest) -> None:
    assert tuple(manifest.frame.columns) == MANIFEST_COLUMNS
    assert manifest.ids == sorted(set(manifest.ids))
    assert len(manifest) > 0


def test_labels_are_indices_into_the_classes_and_no_class_is_empty(manifest: Manifest) -> None:
    assert sorted(set(manifest.labels.tolist())) == list(range(len(manifest.classes)))
    assert len(set(manifest.classes)) == len(manifest.classes) >= 2


def test_every_image_has_a_content_hash_and_a_known_split(manifest: Manifest) -> None:
    assert all(manifest.frame["content"])
    assert set(manifest.frame["split"]) <= {*SPLITS, ""}


def test_an_image_is_either_a_row_of_what_the_source_holds_or_an_absolute_file(manifest: Manifest) -> None:
    held = manifest.encoded if manifest.images is None else manifest.images
    if held is None:
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in manifest.frame["path"])
        assert set(manifest.frame["row"]) == {-1}
    else:
        assert sorted(manifest.frame["row"]) == list(range(len(held)))
        assert set(manifest.frame["path"]) == {""}


def test_a_second_scan_gives_the_same_manifest(config: DataConfig, manifest: Manifest) -> None:
    again = scan(config)
    assert again.frame.equals(manifest.frame)
    assert (again.digest, again.classes) == (manifest.digest, manifest.classes)


def test_the_digest_fits_an_mlflow_dataset(manifest: Manifest) -> None:
    assert 0 < len(manifest.digest) <= 36


@pytest.mark.parametrize("channels", [1, 3])
def test_its_images_open_as_bytes_of_the_asked_channels(manifest: Manifest, channels: int) -> None:
    images = open_images(manifest, channels=channels, short_side=12, budget=2**24)
    assert len(images) == len(manifest)
    for index in (0, len(images) - 1):
        assert images[index].dtype == np.uint8
        assert images[index].ndim == 3
        assert images[index].shape[2] == channels
        assert min(images[index].shape[:2]) <= 12


def test_it_can_be_split(config: DataConfig, manifest: Manifest) -> None:
    assert all(split(manifest, config).counts().values())


def test_the_origin_is_what_the_user_gave_or_the_name_of_the_source(config: DataConfig) -> None:
    given = {name: value for name, value in config.model_dump().items() if name in ("root", "table", "parquet", "name")}
    assert config.origin == next(iter(given.values()), config.source)
