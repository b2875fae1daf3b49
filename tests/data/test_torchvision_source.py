"""The torchvision source: small data sets in the original formats, read by torchvision's own code."""

import bz2
import gzip
import hashlib
import json
import pickle
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from imgcls import network
from imgcls.data.images import open_images
from imgcls.data.source import scan
from imgcls.data.sources.torchvision import TorchvisionConfig
from imgcls.data.sources.torchvision_known import KNOWN
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.recipe import resolve
from imgcls.tables import Manifest

Pixels = npt.NDArray[np.uint8]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: Patch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        assert socket.getdefaulttimeout() == network.TIMEOUT_S, "a wait on the network without a bound"
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_images(paths: Iterable[Path]) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(12, 10, 3, seed=number)).save(path)


def read(root: Path, name: str, *, download: bool = False) -> Manifest:
    return scan(TorchvisionConfig(name=name, cache_dir=str(root), download=download))


def cifar10(root: Path, monkeypatch: Patch, *, images: int = 40) -> tuple[Pixels, list[int]]:
    """Two training batches and a test batch, each with every class; gives the training pixels and labels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"class {k}" for k in range(10)]
    pixels, labels = noise(3 * images, 3, 32, 32), [k % 10 for k in range(3 * images)]
    for k, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        part = slice(k * images, (k + 1) * images)
        batch = {"data": pixels[part].reshape(images, -1), "labels": labels[part]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    sums = {path.name: md5(path) for path in folder.iterdir()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[f"data_batch_{k}", sums[f"data_batch_{k}"]] for k in (1, 2)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    return pixels[: 2 * images].transpose(0, 2, 3, 1), labels[: 2 * images]


def idx(array: npt.NDArray[Any], kind: int = 8) -> bytes:
    """The array in MNIST's own format; kind 8 is uint8, 12 int32."""
    head = bytes([0, 0, kind, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(">i4" if kind == 12 else np.uint8).tobytes()


def mnist(root: Path, monkeypatch: Patch, *, num_train: int = 30, num_test: int = 10) -> Pixels:
    """The four .gz files as they are downloaded; gives the test pixels."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    pixels = noise(num_test, 28, 28, seed=1)
    for part, images in (("train", noise(num_train, 28, 28)), ("t10k", pixels)):
        labels = np.arange(len(images), dtype=np.uint8) % 10
        for name, array in ((f"{part}-images-idx3-ubyte.gz", images), (f"{part}-labels-idx1-ubyte.gz", labels)):
            (raw / name).write_bytes(gzip.compress(idx(array)))
            resources.append((name, md5(raw / name)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return pixels


def svhn(root: Path, monkeypatch: Patch) -> Pixels:
    """Both .mat files, with the digit 0 labelled 10; gives the test pixels."""
    root.mkdir(parents=True)
    splits = {}
    for number, (part, images) in enumerate((("train", 30), ("test", 20))):
        pixels = noise(images, 32, 32, 3, seed=number)
        path = root / f"{part}_32x32.mat"
        savemat(path, {"X": pixels.transpose(1, 2, 3, 0), "y": (np.arange(images) % 10 + 1)[:, None].astype(np.uint8)})
        splits[part] = [f"http://nowhere/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return pixels


def flowers(root: Path, monkeypatch: Patch) -> None:
    """102 classes: the images 1..102 for train, 103..204 for val, 205..306 for test."""
    folder = root / "flowers-102"
    write_images(folder / "jpg" / f"image_{k:05d}.jpg" for k in range(1, 307))
    savemat(folder / "imagelabels.mat", {"labels": np.array([k % 102 + 1 for k in range(306)])})
    ids = np.arange(1, 307).reshape(3, 102)
    savemat(folder / "setid.mat", {"trnid": ids[0], "valid": ids[1], "tstid": ids[2]})
    files = {key: (name, md5(folder / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", {"image": ("102flowers.tgz", "0" * 32), **files})


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(("Abyssinian", "great_pyrenees", "pug"), 1):
        lists["trainval"] += [f"{breed}_{k} {label} 1 1" for k in range(4)]
        lists["test"] += [f"{breed}_{k} {label} 1 1" for k in range(4, 6)]
    write_images(folder / "images" / f"{line.split()[0]}.jpg" for lines in lists.values() for line in lines)
    (folder / "annotations").mkdir()
    for name, lines in lists.items():
        (folder / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def food(root: Path) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for part, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        listed = {name: [f"{name}/{k}" for k in numbers] for name in ("waffles", "apple_pie")}
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))
        write_images(folder / "images" / f"{line}.jpg" for lines in listed.values() for line in lines)


def textures(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{name}/{name}_{number}{k}.jpg" for name in ("banded", "woven") for k in range(2)]
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")
        write_images(folder / "images" / line for line in lines)


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA300B4 F\n")
    for number, part in enumerate(("train", "val", "test")):
        names = {f"{number}{k}": ("707-320", "A300B4 F")[k % 2] for k in range(4)}
        (folder / f"images_variant_{part}.txt").write_text("".join(f"{k} {v}\n" for k, v in names.items()))
        write_images(folder / "images" / f"{name}.jpg" for name in names)


def signs(root: Path) -> None:
    folder = root / "gtsrb"
    write_images(folder / "GTSRB" / "Training" / f"{k:05d}" / f"{n}.ppm" for k in range(43) for n in range(2))
    write_images(folder / "GTSRB" / "Final_Test" / "Images" / f"{k:05d}.ppm" for k in range(43))
    lines = [f"{k:05d}.ppm;{k}" for k in range(43)]
    (folder / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *lines]) + "\n")


def caltech(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    names = ("BACKGROUND_Google", "Faces", "airplanes")
    write_images(folder / name / f"image_{k:04d}.jpg" for name in names for k in (1, 2, 3, 4))


def inaturalist(root: Path) -> None:
    names = [f"{k:05d}_Animalia_b_c_d_e_f_{kind}" for k, kind in enumerate(("cat", "dog"))]
    write_images(root / "2021_train" / name / f"{k}.jpg" for name in names for k in range(3))
    write_images(root / "2021_valid" / name / "9.jpg" for name in names)


def imagenette(root: Path) -> None:
    folder = root / "imagenette2-160"
    wnids = ("n01440764", "n02102040")
    write_images(folder / part / wnid / f"{k}.jpeg" for part in ("train", "val") for wnid in wnids for k in (1, 2))


def imagenet(root: Path) -> None:
    root.mkdir()
    names = {"n02012849": ("crane",), "n03126707": ("crane",), "n02123045": ("tabby", "tabby cat")}
    torch.save((names, []), root / "meta.bin")
    write_images(root / part / wnid / f"{wnid}_{part}.JPEG" for part in ("train", "val") for wnid in names)


def cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi A4", "BMW X5"], dtype=object)})
    for part, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(f"{k}.jpg", k % 2 + 1) for k in range(4)], dtype=[("fname", object), ("class", np.uint8)])
        savemat(folder / path, {"annotations": rows})
        write_images(folder / f"cars_{part}" / f"{k}.jpg" for k in range(4))


def scenes(root: Path) -> None:
    folder = root / "SUN397"
    write_images(
        folder / letter / name / f"sun_{k}.jpg" for letter, name in (("a", "abbey"), ("b", "bar")) for k in (1, 2)
    )
    (folder / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")


def countries(root: Path) -> None:
    parts = ("train", "valid", "test")
    write_images(root / "country211" / part / name / "1.jpg" for part in parts for name in ("AD", "CH"))


def sentences(root: Path) -> None:
    parts = ("train", "valid", "test")
    write_images(root / "rendered-sst2" / part / name / "1.png" for part in parts for name in ("negative", "positive"))


def caltech256(root: Path) -> None:
    folder = root / "caltech256" / "256_ObjectCategories"
    write_images(
        folder / f"{c:03d}.{name}" / f"{c:03d}_{k:04d}.jpg" for c, name in ((1, "ak47"), (2, "bear")) for k in (1, 2)
    )


FILE_SETS: dict[str, tuple[Callable[[Path], None], dict[str, int], Sequence[str]]] = {
    "Caltech101": (caltech, {"train": 0, "val": 0, "test": 0}, ("Faces", "airplanes")),
    "Caltech256": (caltech256, {"train": 0, "val": 0, "test": 0}, ("001.ak47", "002.bear")),
    "Country211": (countries, {"train": 2, "val": 2, "test": 2}, ("AD", "CH")),
    "DTD": (textures, {"train": 4, "val": 4, "test": 4}, ("banded", "woven")),
    "FGVCAircraft": (aircraft, {"train": 4, "val": 4, "test": 4}, ("707-320", "A300B4 F")),
    "Food101": (food, {"train": 6, "val": 0, "test": 2}, ("apple_pie", "waffles")),
    "GTSRB": (signs, {"train": 86, "val": 0, "test": 43}, tuple(f"{k:02d}" for k in range(43))),
    "INaturalist": (
        inaturalist,
        {"train": 6, "val": 2, "test": 0},
        ("00000_Animalia_b_c_d_e_f_cat", "00001_Animalia_b_c_d_e_f_dog"),
    ),
    "ImageNet": (
        imagenet,
        {"train": 3, "val": 3, "test": 0},
        ("crane (n02012849)", "tabby, tabby cat", "crane (n03126707)"),
    ),
    "Imagenette-160px": (
        imagenette,
        {"train": 4, "val": 4, "test": 0},
        ("tench, Tinca tinca", "English springer, English springer spaniel"),
    ),
    "OxfordIIITPet": (pets, {"train": 12, "val": 0, "test": 6}, ("Abyssinian", "Great Pyrenees", "Pug")),
    "RenderedSST2": (sentences, {"train": 2, "val": 2, "test": 2}, ("negative", "positive")),
    "SUN397": (scenes, {"train": 0, "val": 0, "test": 0}, ("abbey", "bar")),
    "StanfordCars": (cars, {"train": 4, "val": 0, "test": 4}, ("Audi A4", "BMW X5")),
}


def test_cifar10_is_one_array_with_its_test_images_held_out(tmp_path: Path, monkeypatch: Patch) -> None:
    pixels, labels = cifar10(tmp_path / "tv", monkeypatch)
    manifest = read(tmp_path / "tv", "CIFAR10")
    assert manifest.images is not None
    assert manifest.images.shape == (120, 32, 32, 3)
    assert manifest.counts() == {"train": 80, "val": 0, "test": 40}
    train = manifest.part("train")
    assert np.array_equal(manifest.images[train.frame["row"]], pixels)
    assert train.labels.tolist() == labels
    assert manifest.classes == tuple(f"class {k}" for k in range(10))
    assert manifest.ids == sorted(manifest.ids)
    assert manifest.frame["row"].tolist() == list(range(120))


def test_validation_images_are_taken_from_train_and_the_official_test_stays(tmp_path: Path, monkeypatch: Patch) -> None:
    cifar10(tmp_path / "tv", monkeypatch)
    config = TorchvisionConfig(name="CIFAR10", cache_dir=str(tmp_path / "tv"), val_fraction=0.25)
    manifest = scan(config)
    done = split(manifest, config)
    assert done.counts() == {"train": 60, "val": 20, "test": 40}
    assert done.part("test").ids == manifest.part("test").ids


def test_mnist_archives_put_by_hand_are_unpacked_without_a_network(tmp_path: Path, monkeypatch: Patch) -> None:
    pixels = mnist(tmp_path / "tv", monkeypatch)
    manifest = read(tmp_path / "tv", "MNIST", download=True)
    assert manifest.images is not None
    assert manifest.counts() == {"train": 30, "val": 0, "test": 10}
    assert np.array_equal(manifest.images[:10], pixels)
    assert manifest.classes[:2] == ("0 - zero", "1 - one")
    assert manifest.ids[:2] == ["test/00", "test/01"]
    assert socket.getdefaulttimeout() is None


def test_the_zero_of_svhn_is_class_0_and_its_pixels_stand_upright(tmp_path: Path, monkeypatch: Patch) -> None:
    pixels = svhn(tmp_path / "tv", monkeypatch)
    manifest = read(tmp_path / "tv", "SVHN")
    assert manifest.images is not None
    assert np.array_equal(manifest.images[:20], pixels)
    assert manifest.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert manifest.classes == tuple("0123456789")


def test_emnist_is_upright_and_its_letters_start_at_0(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = noise(26, 28, 28)
    for part in ("train", "test"):
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(1, 27)))
    manifest = read(tmp_path, "EMNIST-letters")
    assert manifest.images is not None
    assert np.array_equal(manifest.images[:26], pixels.transpose(0, 2, 1))
    assert manifest.labels[:3].tolist() == [0, 1, 2]
    assert "".join(manifest.classes) == "abcdefghijklmnopqrstuvwxyz"


def test_qmnist_labels_are_the_digits_of_its_wider_table(tmp_path: Path) -> None:
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        (raw / f"qmnist-{part}-images-idx3-ubyte").write_bytes(idx(noise(10, 28, 28)))
        (raw / f"qmnist-{part}-labels-idx2-int").write_bytes(idx(np.arange(80).reshape(10, 8) // 8, 12))
    manifest = read(tmp_path, "QMNIST")
    assert manifest.labels.tolist() == [*range(10), *range(10)]


def test_stl10_stands_upright_and_has_names_also_without_its_file_of_names(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = noise(10, 96, 96, 3)
    sums = []
    for name in ("train", "test"):
        (folder / f"{name}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes(range(1, 11)))
        sums.append([[f"{name}_{part}.bin", md5(folder / f"{name}_{part}.bin")] for part in "Xy"])
    monkeypatch.setattr(datasets.STL10, "train_list", sums[0])
    monkeypatch.setattr(datasets.STL10, "test_list", sums[1])
    manifest = read(tmp_path, "STL10")
    assert manifest.images is not None
    assert np.array_equal(manifest.images[:10], pixels)
    assert manifest.labels.tolist() == [*range(10), *range(10)]
    assert manifest.classes[:2] == ("airplane", "bird")


def test_usps_and_semeion_are_read_from_their_text_files(tmp_path: Path, monkeypatch: Patch) -> None:
    line = " ".join(f"{k}:-1" for k in range(1, 257))
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress("".join(f"{k} {line}\n" for k in range(1, 11)).encode()))
    assert read(tmp_path, "USPS").counts() == {"train": 10, "val": 0, "test": 10}
    rows = [" ".join(["1.0"] * 256 + [str(int(k == label)) for k in range(10)]) for label in range(10)]
    (tmp_path / "semeion.data").write_text("\n".join(rows))
    monkeypatch.setattr(datasets.SEMEION, "md5_checksum", md5(tmp_path / "semeion.data"))
    manifest = read(tmp_path, "SEMEION")
    assert manifest.labels.tolist() == list(range(10))
    assert manifest.ids[0] == "all/00"


def test_fer2013_is_read_from_its_table_and_refused_without_test_labels(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = tmp_path / "fer2013"
    folder.mkdir()
    pixels = " ".join(["7"] * 48 * 48)
    uses = ("Training", "PublicTest", "PrivateTest")
    lines = [f"{label},{pixels},{use}" for use in uses for label in range(7)]
    (folder / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]))
    (folder / "train.csv").write_text("\n".join(["emotion,pixels", f"1,{pixels}"]))
    (folder / "test.csv").write_text("\n".join(["pixels", pixels]))
    names = {"fer": "fer2013.csv", "icml": "icml_face_data.csv", "train": "train.csv", "test": "test.csv"}
    sums = {k: (name, md5(folder / name) if (folder / name).exists() else "") for k, name in names.items()}
    monkeypatch.setattr(datasets.FER2013, "_RESOURCES", sums)
    assert read(tmp_path, "FER2013").counts() == {"train": 7, "val": 0, "test": 14}
    (folder / "fer2013.csv").unlink()
    with pytest.raises(UserError, match="the data set FER2013 cannot be read"):
        read(tmp_path, "FER2013")


def test_flowers_have_their_three_official_splits(tmp_path: Path, monkeypatch: Patch) -> None:
    flowers(tmp_path / "tv", monkeypatch)
    manifest = read(tmp_path / "tv", "Flowers102")
    assert manifest.counts() == {"train": 102, "val": 102, "test": 102}
    assert manifest.part("val").ids[0] == "jpg/image_00103.jpg"
    assert manifest.labels[:2].tolist() == [0, 1]
    assert manifest.classes[0] == "pink primrose"


@pytest.mark.parametrize("name", FILE_SETS)
def test_image_files_keep_their_official_split_and_class_names(name: str, tmp_path: Path) -> None:
    make, counts, classes = FILE_SETS[name]
    make(tmp_path / "tv")
    manifest = read(tmp_path / "tv", name)
    assert manifest.counts() == counts
    assert manifest.classes == tuple(classes)
    assert set(manifest.labels) == set(range(len(classes)))
    assert manifest.ids == sorted(manifest.ids)
    assert len(open_images(manifest, channels=3, short_side=8, budget=2**24)) == len(manifest)
    for path, label in zip(manifest.frame["path"], manifest.labels, strict=True):
        if name in ("Food101", "DTD", "Caltech101", "INaturalist"):
            assert Path(path).parent.name == classes[label]


def test_the_digest_does_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    pets(tmp_path / "a")
    pets(tmp_path / "b" / "c")
    assert read(tmp_path / "a", "OxfordIIITPet").digest == read(tmp_path / "b" / "c", "OxfordIIITPet").digest


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_without_the_files_the_error_says_which_are_expected_where(name: str, download: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "tv", name, download=download)
    message = str(caught.value)
    assert message.startswith(f"the data set {name} cannot be read from {tmp_path / 'tv'}: ")
    assert all(file in message for file in KNOWN[name].files)
    assert "download=True" not in message
    assert ("no network here" in message) == (download and KNOWN[name].downloads)


def test_the_class_of_every_name_is_torchvisions() -> None:
    assert [name for name, known in KNOWN.items() if known.cls not in datasets.__all__] == []


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: Patch) -> None:
    cifar10(tmp_path / "tv", monkeypatch)
    batch = tmp_path / "tv" / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:1000])
    for download in (False, True):
        with pytest.raises(UserError, match=rf"Found damaged \(wrong MD5\): {batch}; delete and replace"):
            read(tmp_path / "tv", "CIFAR10", download=download)


def test_a_truncated_file_without_a_checksum_is_an_error_too(tmp_path: Path, monkeypatch: Patch) -> None:
    mnist(tmp_path / "tv", monkeypatch)
    read(tmp_path / "tv", "MNIST", download=True)
    unpacked = tmp_path / "tv" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:500])
    with pytest.raises(UserError, match="the data set MNIST cannot be read"):
        read(tmp_path / "tv", "MNIST", download=True)


def test_an_image_that_is_listed_but_missing_is_named(tmp_path: Path) -> None:
    pets(tmp_path / "tv")
    gone = tmp_path / "tv" / "oxford-iiit-pet" / "images" / "pug_3.jpg"
    gone.unlink()
    with pytest.raises(UserError, match=f"1 of 18 images cannot be read, the first is {gone}"):
        read(tmp_path / "tv", "OxfordIIITPet")


def test_a_folder_from_an_interrupted_unpacking_is_not_taken_for_whole(tmp_path: Path, monkeypatch: Patch) -> None:
    def unpack(self: Any) -> None:
        write_images([Path(self._data_folder) / "Forest" / "1.jpg"])
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.EuroSAT, "download", unpack)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "tv", "EuroSAT", download=True)
    with pytest.raises(UserError, match="2750 is incomplete: an earlier download of EuroSAT stopped while unpacking"):
        read(tmp_path / "tv", "EuroSAT", download=True)


def test_a_failed_download_of_one_part_does_not_condemn_the_part_that_is_there(tmp_path: Path) -> None:
    inaturalist(tmp_path / "tv")
    (tmp_path / "tv" / "2021_valid").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no network here"):
        read(tmp_path / "tv", "INaturalist", download=True)
    (tmp_path / "elsewhere").rename(tmp_path / "tv" / "2021_valid")
    assert len(read(tmp_path / "tv", "INaturalist", download=True)) == 8


def test_a_cache_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "tv").write_text("")
    with pytest.raises(UserError, match="cannot be read from"):
        read(tmp_path / "tv", "MNIST", download=True)


def test_the_cache_folder_is_that_of_the_environment(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "mine"))
    pets(tmp_path / "mine" / "torchvision" / "OxfordIIITPet")
    assert len(scan(TorchvisionConfig(name="OxfordIIITPet"))) == 18


def test_a_relative_cache_folder_becomes_absolute(tmp_path: Path) -> None:
    assert TorchvisionConfig(name="MNIST", cache_dir="tv").cache_dir == str(tmp_path / "tv")


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"data\.name: found 'cifar-10', .*Did you mean 'CIFAR10'\?$"):
        resolve({"data": {"source": "torchvision", "name": "cifar-10"}})
