"""What imgcls knows of each of torchvision's data sets: its class, its official split, the files it comes as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """A data set of torchvision.

    Attributes:
        cls: its class in torchvision.datasets.
        splits: our split ("" where it has none) -> the constructor's arguments, in the order of the splits' names.
        files: what it is downloaded as, relative to torchvision's root.
        folder: where its files lie, relative to torchvision's root; ids of images are relative to it.
        scanned: a folder that unpacking makes and that torchvision takes as it finds it, without list or checksum.
        downloads: torchvision can download it.
    """

    cls: str
    splits: Mapping[str, Mapping[str, Any]]
    files: tuple[str, ...]
    folder: str = ""
    scanned: str = ""
    downloads: bool = True


NO_SPLIT: Mapping[str, Mapping[str, Any]] = {"": {}}
TRAIN_FLAG = {"test": {"train": False}, "train": {"train": True}}
TRAIN_TEST = {"test": {"split": "test"}, "train": {"split": "train"}}
TRAIN_VAL = {"train": {"split": "train"}, "val": {"split": "val"}}
TRAIN_VAL_TEST = {**TRAIN_TEST, "val": {"split": "val"}}
IDX = tuple(f"{part}.gz" for part in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                      "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))  # fmt: skip
QMNIST_FILES = tuple(
    f"QMNIST/raw/qmnist-{part}-{what}.gz"
    for part in ("train", "test")
    for what in ("images-idx3-ubyte", "labels-idx2-int")
)


def _mnist(cls: str) -> Known:
    return Known(cls, TRAIN_FLAG, tuple(f"{cls}/raw/{name}" for name in IDX), cls)


def _emnist(part: str) -> Known:
    splits = {split: {**flag, "split": part} for split, flag in TRAIN_FLAG.items()}
    return Known("EMNIST", splits, ("EMNIST/raw/gzip.zip",), "EMNIST")


def _imagenette(size: str, stem: str) -> Known:
    splits = {split: {**which, "size": size} for split, which in TRAIN_VAL.items()}
    return Known("Imagenette", splits, (f"{stem}.tgz",), stem, stem)


def _inaturalist(**versions: str) -> Known:
    splits = {split if split != "all" else "": {"version": version} for split, version in versions.items()}
    files = tuple(f"{version}.tgz" for version in versions.values())
    return Known("INaturalist", splits, files, scanned=next(iter(versions.values())))


KNOWN: Mapping[str, Known] = {
    "CIFAR10": Known("CIFAR10", TRAIN_FLAG, ("cifar-10-python.tar.gz",), "cifar-10-batches-py"),
    "CIFAR100": Known("CIFAR100", TRAIN_FLAG, ("cifar-100-python.tar.gz",), "cifar-100-python"),
    "Caltech101": Known(
        "Caltech101", NO_SPLIT, ("caltech101/caltech-101.zip",), "caltech101", "caltech101/101_ObjectCategories"
    ),
    "Caltech256": Known(
        "Caltech256",
        NO_SPLIT,
        ("caltech256/256_ObjectCategories.tar",),
        "caltech256",
        "caltech256/256_ObjectCategories",
    ),
    "Country211": Known(
        "Country211", {**TRAIN_TEST, "val": {"split": "valid"}}, ("country211.tgz",), "country211", "country211"
    ),
    "DTD": Known("DTD", TRAIN_VAL_TEST, ("dtd/dtd-r1.0.1.tar.gz",), "dtd"),
    **{f"EMNIST-{part}": _emnist(part) for part in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")},
    "EuroSAT": Known("EuroSAT", NO_SPLIT, ("eurosat/EuroSAT.zip",), "eurosat/2750", "eurosat/2750"),
    "FER2013": Known("FER2013", TRAIN_TEST, ("fer2013/fer2013.csv",), "fer2013", downloads=False),
    "FGVCAircraft": Known("FGVCAircraft", TRAIN_VAL_TEST, ("fgvc-aircraft-2013b.tar.gz",), "fgvc-aircraft-2013b"),
    "FashionMNIST": _mnist("FashionMNIST"),
    "Flowers102": Known(
        "Flowers102",
        TRAIN_VAL_TEST,
        ("flowers-102/102flowers.tgz", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        "flowers-102",
    ),
    "Food101": Known("Food101", TRAIN_TEST, ("food-101.tar.gz",), "food-101"),
    "GTSRB": Known(
        "GTSRB",
        TRAIN_TEST,
        ("gtsrb/GTSRB-Training_fixed.zip", "gtsrb/GTSRB_Final_Test_Images.zip", "gtsrb/GTSRB_Final_Test_GT.zip"),
        "gtsrb",
        "gtsrb/GTSRB",
    ),
    "INaturalist": _inaturalist(train="2021_train", val="2021_valid"),
    "INaturalist-2017": _inaturalist(all="2017"),
    "INaturalist-2018": _inaturalist(all="2018"),
    "INaturalist-2019": _inaturalist(all="2019"),
    "INaturalist-mini": _inaturalist(train="2021_train_mini", val="2021_valid"),
    "ImageNet": Known(
        "ImageNet",
        TRAIN_VAL,
        ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        downloads=False,
    ),
    "Imagenette": _imagenette("full", "imagenette2"),
    "Imagenette-160px": _imagenette("160px", "imagenette2-160"),
    "Imagenette-320px": _imagenette("320px", "imagenette2-320"),
    "KMNIST": _mnist("KMNIST"),
    "MNIST": _mnist("MNIST"),
    "OxfordIIITPet": Known(
        "OxfordIIITPet",
        {"test": {"split": "test"}, "train": {"split": "trainval"}},
        ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"),
        "oxford-iiit-pet",
    ),
    "QMNIST": Known("QMNIST", TRAIN_FLAG, QMNIST_FILES, "QMNIST"),
    "RenderedSST2": Known("RenderedSST2", TRAIN_VAL_TEST, ("rendered-sst2.tgz",), "rendered-sst2", "rendered-sst2"),
    "SEMEION": Known("SEMEION", NO_SPLIT, ("semeion.data",)),
    "STL10": Known("STL10", TRAIN_TEST, ("stl10_binary.tar.gz",), "stl10_binary"),
    "SUN397": Known("SUN397", NO_SPLIT, ("SUN397.tar.gz",), "SUN397", "SUN397"),
    "SVHN": Known("SVHN", TRAIN_TEST, ("train_32x32.mat", "test_32x32.mat")),
    "StanfordCars": Known(
        "StanfordCars",
        TRAIN_TEST,
        tuple(f"stanford_cars/{n}" for n in ("devkit/", "cars_train/", "cars_test/", "cars_test_annos_withlabels.mat")),
        "stanford_cars",
        downloads=False,
    ),
    "USPS": Known("USPS", TRAIN_FLAG, ("usps.bz2", "usps.t.bz2")),
}
"""The data sets by name. Left out: those that are no classification of single images, PCAM (needs h5py), CelebA."""

CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "FER2013": ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
    "GTSRB": tuple(f"{k:02d}" for k in range(43)),
    "STL10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    **{cls: tuple("0123456789") for cls in ("SVHN", "USPS", "SEMEION")},
}
"""Class names where torchvision's class has none."""
