"""What loading images costs beside the usual way, in turn and in one run, as ratios.

    IMGCLS_DATA=<folder with animals50/, cifar10/ and omniglot/> python benchmarks/data.py [animals50 cifar10 ...]

animals50  an epoch at 224 px from the store, against torchvision's ImageFolder + albumentations + torch's DataLoader,
           with the same transforms, workers and batches; both end in normalised float32. The page cache is warm.
cifar10    the training pipeline at 32 px through the loader, against calling it on arrays in a bare loop; and batches
           from the store without augmentation, in images a second of one core.
omniglot   making the manifest with the quick checks, in a process of its own with an empty cache, against reading the
           files alone.
memory     what a training on CIFAR-10 adds, at its highest, to a process that trains the same network on one batch.

Seconds are CPU seconds, of this process and of its workers, which other work on the machine changes little; animals50
gives the ratio by the clock on the wall too. Each pair is measured in turn and the median of the pairs' ratios counts.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import psutil
import torch
from albumentations.pytorch import ToTensorV2
from torchvision.datasets import ImageFolder

import imgcls.data  # noqa: F401
from imgcls.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    Pipeline,
    Preprocessing,
    evaluation_pipeline,
    store_size,
    training_pipeline,
)
from imgcls.data.images import OpenImages, open_images
from imgcls.data.loading import Loader
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
from imgcls.tables import Manifest

BUDGET = 20 * 2**30
BATCH = 64


def opened(name: str, size: int) -> tuple[Manifest, OpenImages]:
    """A data set from its store, which is made where it is not there."""
    manifest = scan(FolderConfig(root=str(Path(os.environ["IMGCLS_DATA"], name))))
    return manifest, open_images(manifest, channels=3, short_side=store_size(size), budget=BUDGET, say=print)


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Items a second of CPU time, workers' included, and of wall-clock time."""
    begin = _cpu_s(), time.perf_counter()
    count = work()
    return count / (_cpu_s() - begin[0]), count / (time.perf_counter() - begin[1])


def _cpu_s() -> float:
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(item.user + item.system for item in times)


def compare(title: str, baseline: Callable[[], int], ours: Callable[[], int], *, pairs: int, goal: str) -> None:
    """Measure both in turn and print their rates and the median ratio."""
    old, new = [], []
    for pair in range(pairs):
        if pair % 2 == 0:
            old.append(timed(baseline))
            new.append(timed(ours))
        else:
            new.append(timed(ours))
            old.append(timed(baseline))
    for k, clock in enumerate(("CPU", "wall")):
        ratios = [fast[k] / slow[k] for slow, fast in zip(old, new, strict=True)]
        rates = [statistics.median(rate[k] for rate in side) for side in (old, new)]
        print(
            f"{title} a {clock} second: baseline {rates[0]:,.0f}, ours {rates[1]:,.0f}, ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {goal}",
            flush=True,
        )


class _Augmented:
    """What ImageFolder calls: albumentations on Pillow's image."""

    def __init__(self, compose: A.Compose) -> None:
        self._compose = compose

    def __call__(self, image: object) -> torch.Tensor:
        tensor: torch.Tensor = self._compose(image=np.asarray(image))["image"]
        return tensor


def _quiet_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def animals50(pairs: int) -> None:
    """Crop, flip, turn at 224 px: files against the store, with 0 and 2 workers."""
    _, images = opened("animals50", 224)
    steps = Preprocessing(3, 224, IMAGENET_MEAN, IMAGENET_STD)
    moves = [A.RandomResizedCrop((224, 224), scale=(0.7, 1.0)), A.HorizontalFlip(p=0.5), A.Rotate(30, p=0.5)]
    folder = ImageFolder(
        str(Path(os.environ["IMGCLS_DATA"], "animals50")),
        _Augmented(A.Compose([*moves, A.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()])),
    )
    labels = np.zeros(len(images), np.int64)
    for num_workers in (0, 2):
        theirs = torch.utils.data.DataLoader(
            folder, BATCH, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0,
            worker_init_fn=_quiet_worker,
        )  # fmt: skip
        loader = Loader(images, labels, Pipeline(moves), batch_size=BATCH, shuffle=True, num_workers=num_workers)
        epochs = iter(range(1, 1000))

        def baseline(theirs: "torch.utils.data.DataLoader[object]" = theirs) -> int:
            return sum(len(batch[0]) for batch in theirs)

        def ours(loader: Loader = loader, epochs: Iterator[int] = epochs) -> int:
            return sum(len(steps.to_input(batch.images)) for batch in loader.epoch(next(epochs)))

        baseline(), ours()  # the first epoch
        compare(
            f"animals50, 224 px, {num_workers} workers, images", baseline, ours, pairs=pairs, goal="2.5 or more wanted"
        )


def cifar10(pairs: int) -> None:
    """32 px: the loader against the bare pipeline, and batches as they lie in the store."""
    manifest, whole = opened("cifar10", 32)
    images = whole.select(np.flatnonzero(manifest.frame["split"] == "train")[:20_000])
    labels = np.zeros(len(images), np.int64)
    plain = Loader(images, labels, evaluation_pipeline(32), batch_size=BATCH, shuffle=True)
    steps = Preprocessing(3, 32, IMAGENET_MEAN, IMAGENET_STD)
    assert sum(len(batch.labels) for batch in plain.epoch(1)) == len(images)
    rates = [timed(lambda: sum(len(b.labels) for b in plain.epoch(2)))[0] for _ in range(pairs)]
    whole_way = [timed(lambda: sum(len(steps.to_input(b.images)) for b in plain.epoch(2)))[0] for _ in range(pairs)]
    print(
        f"cifar10, 32 px, from the store, no augmentation: {statistics.median(rates):,.0f} images/s of one core, "
        f"{statistics.median(whole_way):,.0f} as normalised float32; 100,000 or more wanted",
        flush=True,
    )
    pipeline = training_pipeline(AugmentConfig(), size=32, channels=3)
    arrays = [images[row].copy() for row in range(len(images))]
    loader = Loader(images, labels, pipeline, batch_size=BATCH, shuffle=True)

    def bare() -> int:
        pipeline.seed(1)
        for array in arrays:
            pipeline(array)
        return len(arrays)

    def ours() -> int:
        return sum(len(batch.labels) for batch in loader.epoch(1))

    bare(), ours()
    compare("cifar10, 32 px, training pipeline, images", bare, ours, pairs=pairs, goal="0.9 or more wanted")


_MANIFEST = """
import sys, time
from pathlib import Path
import imgcls.data
from imgcls.data.check import check
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
begin = time.perf_counter()
manifest = scan(FolderConfig(root=sys.argv[1]))
check(manifest, depth="quick", channels=1)
print(len(manifest), time.perf_counter() - begin)
"""


def omniglot(pairs: int) -> None:
    """The manifest and its quick checks with nothing remembered, against reading every file once."""
    root = Path(os.environ["IMGCLS_DATA"], "omniglot")
    seconds, bare = [], []
    for _ in range(pairs):
        begin = time.perf_counter()
        for folder, _, names in os.walk(root):
            for name in names:
                Path(folder, name).read_bytes()
        bare.append(time.perf_counter() - begin)
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run(
                [sys.executable, "-c", _MANIFEST, str(root)],
                env={**os.environ, "IMGCLS_CACHE": empty}, capture_output=True, text=True, check=True,
            )  # fmt: skip
        count, taken = done.stdout.split()
        seconds.append(float(taken))
    ratio = statistics.median(new / old for old, new in zip(bare, seconds, strict=True))
    print(
        f"omniglot, manifest and quick checks of {int(count):,} files: {statistics.median(seconds):.2f} s, {ratio:.2f} "
        "times reading them one by one; under 5 s wanted",
        flush=True,
    )


_MEMORY = """
import os, resource, sys, threading, time
import psutil
from pathlib import Path
import numpy as np, torch
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import prepare
from imgcls.recipe import resolve
from imgcls.models.family import build
from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Loader
from imgcls.training.fit import fit
torch.set_num_threads(1)
rss = lambda: psutil.Process().memory_info().rss / 2**20
resolved = resolve("folder", {"data.root": sys.argv[1], "model.family": "plaincnn", "model.num_blocks": 2,
    "model.channels": 8, "augment.image_size": 32, "train.epochs": 1})
recipe = resolved.recipe
model = build(recipe.model, num_classes=10, in_channels=3, image_size=32)
noise = [np.zeros((32, 32, 3), np.uint8)] * 128
from imgcls.data.augment import evaluation_pipeline
from imgcls.training.plan import Plan
def train(model, train, val, steps):
    Path("checkpoints").mkdir(exist_ok=True)
    for row in fit(model, train, val, config=recipe.train, optim=recipe.optim, preprocessing=steps,
                   plan=Plan("cpu"), checkpoints=Path("checkpoints")):
        pass
labels, size = np.zeros(128, np.int64), recipe.train.batch_size
bare_loader = lambda: Loader(noise, labels, evaluation_pipeline(32), batch_size=size)
train(model, bare_loader(), bare_loader(), Preprocessing(3, 32, (0.5,) * 3, (0.5,) * 3))
bare, highest, over = rss(), [0.0], threading.Event()
def watch():
    while not over.wait(0.02):
        highest[0] = max(highest[0], rss())
threading.Thread(target=watch, daemon=True).start()
prepared = prepare(resolved, Console(quiet=True))
ready, peak = rss(), highest[0]
train(prepared.model, prepared.train, prepared.val, prepared.preprocessing)
over.set()
print(bare, peak - bare, ready - bare, highest[0] - bare)
"""


def memory(_pairs: int) -> None:
    """Resident memory of a training on CIFAR-10, where its store has to be made and where it is there."""
    root = Path(os.environ["IMGCLS_DATA"], "cifar10")
    with tempfile.TemporaryDirectory() as empty:
        for title in ("store made", "store there"):
            done = subprocess.run(
                [sys.executable, "-c", _MEMORY, str(root)], cwd=empty,
                env={**os.environ, "IMGCLS_CACHE": f"{empty}/cache"}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(done.stderr)
            bare, preparing, ready, highest = map(float, done.stdout.split()[-4:])
            print(
                f"memory, CIFAR-10, {title}: bare process {bare:.0f} MB, over it {preparing:.0f} while preparing, "
                f"{ready:.0f} when ready, {highest:.0f} at the highest; under 400 wanted",
                flush=True,
            )


BENCHMARKS = {"animals50": animals50, "cifar10": cifar10, "omniglot": omniglot, "memory": memory}


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown or "IMGCLS_DATA" not in os.environ:
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "set IMGCLS_DATA to the folder of the data sets")
    torch.set_num_threads(1)
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments.pairs)
    print(f"highest memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
