"""What tracking costs: the same training with and without a run in a new SQLite store, in turn, as ratios.

    python benchmarks/tracking.py [--pairs 5] [--images 3000]

Prints, for each pair, the seconds of an epoch with and without tracking, then the median ratio, and beside it the
seconds that the tracking calls themselves took (which noise of the machine does not hide).
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from imgcls.data.augment import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, evaluation_pipeline
from imgcls.data.loading import Loader
from imgcls.models.family import build
from imgcls.models.torchvision import ResNetConfig
from imgcls.tracking import run as tracking
from imgcls.training.fit import TrainConfig, fit, seed_all
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import PlanConfig, default_plan, resolve_device

SIZE = 64


def train(images: np.ndarray, run: tracking.TrackedRun | None, folder: Path) -> tuple[float, float]:
    """One epoch of ResNet-18; (seconds of the whole, seconds of it inside tracking calls)."""
    seed_all(0)
    model = build(ResNetConfig(), num_classes=10, in_channels=3, image_size=SIZE)
    labels = np.arange(len(images), dtype=np.int64) % 10
    pipeline = evaluation_pipeline(SIZE)
    loaders = [Loader(part, labels[: len(part)], pipeline, batch_size=64) for part in (images, images[:256])]
    steps = Preprocessing(3, SIZE, IMAGENET_MEAN, IMAGENET_STD)
    begin, inside = time.perf_counter(), 0.0
    rows = fit(
        model, *loaders, config=TrainConfig(epochs=1), optim=OptimConfig(), preprocessing=steps,
        plan=default_plan(resolve_device("auto", PlanConfig()), PlanConfig()), checkpoints=folder,
    )  # fmt: skip
    for row in rows:
        call = time.perf_counter()
        if run is not None:
            run.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))
        inside += time.perf_counter() - call
    return time.perf_counter() - begin, inside


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=3000)
    arguments = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (arguments.images, SIZE, SIZE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        run = tracking.start(Path(name, "outputs"), name="tracked", tags={})
        train(images[:256], run, Path(name))
        ratios, shares = [], []
        print("pair  without s  with s  ratio  inside calls s")
        for pair in range(1, arguments.pairs + 1):
            without, _ = train(images, None, Path(name))
            with tracking.system_metrics(run):
                tracked, inside = train(images, run, Path(name))
            ratios.append(tracked / without)
            shares.append(inside / tracked)
            print(f"{pair:>4}  {without:>9.2f}  {tracked:>6.2f}  {ratios[-1]:.3f}  {inside:.4f}", flush=True)
        run.finish("FINISHED")
    print(f"median ratio {statistics.median(ratios):.3f} (1: free); calls {max(shares):.2%} of an epoch at most")


if __name__ == "__main__":
    main()
