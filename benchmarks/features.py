"""How much faster head-only fine-tuning is when the frozen stages' outputs are kept, and whether it is as accurate.

    python benchmarks/features.py --data FOLDER --weights mobilenet_v2.pth [--pairs 3] [--slow-epochs 2] [--views auto]

baseline  train.cache_features off: every epoch decodes, varies and computes every image.
ours      train.cache_features as `--views` says, computed from nothing in every pair; then once more, reused.

Both train the head of mobilenet_v2 for 20 epochs at 224 px, in batches of 32 with light augmentation, in turn and from
the same seed, which is the pair's number. Seconds are of the training alone, with what is computed before its first
epoch, after the images were decoded into the store. The baseline's epochs are all alike, so by default only
`--slow-epochs` of them are run, and 20 times their median counts; `--slow-epochs 20` runs all, and compares the best
validation accuracies too.
Wanted: a ratio of 10 or more, and accuracies that differ by 0.5 points at most in the mean of the pairs.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.data import cache
from imgcls.jobs.console import Console
from imgcls.jobs.features import open_features
from imgcls.jobs.prepare import prepare
from imgcls.recipe import resolve
from imgcls.training.fit import fit

EPOCHS = 20


@dataclass(frozen=True)
class Training:
    """Seconds of the whole training, measured or from the median of its epochs, and what it reached."""

    seconds: float
    best: float
    about: str


def train(fields: dict[str, Any], *, num_epochs: int) -> Training:
    """Train for the first epochs of all; the seconds are those of all."""
    prepared = prepare(resolve(None, fields), Console(quiet=True))
    recipe = prepared.recipe
    begin = time.perf_counter()
    source = open_features(prepared, Console(quiet=True))
    before = time.perf_counter() - begin
    seconds, best = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        rows = fit(
            prepared.model,
            source.train,
            source.val,
            config=recipe.train,
            optim=recipe.optim,
            preprocessing=prepared.preprocessing,
            plan=prepared.plan,
            checkpoints=Path(folder),
        )
        for row in rows:
            seconds.append(row["seconds"])
            best = max(best, row["val/acc"])
            if len(seconds) == num_epochs:
                break
    return Training(before + EPOCHS * statistics.median(seconds), best, source.about)


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--slow-epochs", type=int, default=2, choices=range(1, EPOCHS + 1))
    parser.add_argument("--views", default="auto")
    given = parser.parse_args()
    fields = {
        "data.root": given.data,
        "data.check": "off",
        "model.family": "mobilenet_v2",
        "model.weights": str(Path(given.weights).absolute()),
        "model.freeze_depth": "all",
        "augment.image_size": 224,
        "augment.preset": "light",
        "train.batch_size": 32,
        "train.epochs": EPOCHS,
        "train.patience": None,
    }
    views = given.views if given.views == "auto" else int(given.views)
    ratios, gains = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMGCLS_CACHE"] = folder
        prepare(resolve(None, fields), Console())  # decodes the images
        for pair in range(given.pairs):
            for entry in cache.entries("features"):
                cache.remove(entry)
            both = {}
            for side in ("off", views) if pair % 2 == 0 else (views, "off"):
                slow = side == "off"
                seeded = {**fields, "train.seed": pair, "train.cache_features": side}
                both[slow] = train(seeded, num_epochs=given.slow_epochs if slow else EPOCHS)
            again = train({**fields, "train.seed": pair, "train.cache_features": views}, num_epochs=EPOCHS)
            off, ours = both[True], both[False]
            ratios.append(off.seconds / ours.seconds)
            print(
                f"pair {pair}: {EPOCHS} epochs in {off.seconds:.1f} s without features, {ours.seconds:.1f} s with "
                f"({ours.about}), {again.seconds:.1f} s when reused: ratio {ratios[-1]:.1f}, reused "
                f"{off.seconds / again.seconds:.1f}",
                flush=True,
            )
            if given.slow_epochs == EPOCHS:
                gains.append(100 * (ours.best - off.best))
                print(f"        best val acc {off.best:.4f} without, {ours.best:.4f} with: {gains[-1]:+.2f} points")
    print(f"mobilenet_v2, head only, 224 px: median ratio {statistics.median(ratios):.1f}; 10 or more wanted")
    if gains:
        print(f"accuracy, mean of the pairs: {statistics.mean(gains):+.2f} points; -0.5 or more wanted")


if __name__ == "__main__":
    main()
