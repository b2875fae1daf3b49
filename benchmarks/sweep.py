"""How much sooner a sweep finds its best validation accuracy than the script that Optuna's and MLflow's examples show.

    python benchmarks/sweep.py --data FOLDER --weights mobilenet_v2.pth [--trials 30] [--epochs 8] [--full]

ours      `imgcls tune` over learning rate, batch size and freeze depth (the last stage and the head trained, or the
          head alone), mobilenet_v2 at 224 px, one worker, features of frozen stages kept in two views. The first trial
          has imgcls's own learning rate, for who runs a sweep does not know the best one.
baseline  the same trials one after another in one process, as the examples do it: torchvision's ImageFolder, DataLoader
          and network in torch's defaults (fp32, NCHW, eager), frozen parameters with `requires_grad = False`, a run of
          MLflow a trial with its metrics.

The baseline's epochs are all alike, so by default one is run for each freeze depth, and every trial counts with as
many of these as it had here and with the accuracy that it reached here; --full trains them all.
Prints both curves (seconds, best validation accuracy so far) and the ratio of the times after which the lower of both
best accuracies was reached. Wanted: 5 or more.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
import torchvision
from torch import nn
from torchvision.transforms import v2 as transforms

import imgcls

STAGES = 19  # of mobilenet_v2, without the head
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(given: argparse.Namespace) -> tuple[pd.DataFrame, float]:
    """The sweep's trials, and the seconds from the command to the first of them."""
    begin = time.time()
    result = imgcls.tune(
        "folder",
        {
            "data.root": given.data,
            "model.family": "mobilenet_v2",
            "model.weights": str(Path(given.weights).absolute()),
            "model.freeze_depth": "all",
            "augment.image_size": 224,
            "augment.preset": "light",
            "train.batch_size": 32,
            "train.epochs": given.epochs,
            "train.patience": None,
            "train.cache_features": 2,
            "search.trials": given.trials,
            "search.space": {
                "optim.lr": {"type": "float", "low": 3e-4, "high": 3e-2, "log": True},
                "train.batch_size": {"type": "choice", "values": [16, 32, 64]},
                "model.freeze_depth": {"type": "int", "low": STAGES - 1, "high": STAGES},
            },
        },
        storage=f"sqlite:///{Path.cwd()}/optuna.db",
    )
    table = result.table[result.table["state"].isin(["complete", "pruned"])].sort_values("started")
    client = mlflow.MlflowClient()
    first = min(client.get_run(run_id).info.start_time for run_id in table["run_id"]) / 1000
    return table, max(0.0, first - begin)


class Baseline:
    """The plain script's trainings, on the split that the sweep had."""

    def __init__(self, given: argparse.Namespace, split: pd.DataFrame) -> None:
        self._weights = torch.load(given.weights, weights_only=True)
        sides = {"train": [transforms.RandomResizedCrop(224, (0.5, 1.0)), transforms.RandomHorizontalFlip()],
                 "val": [transforms.Resize(224), transforms.CenterCrop(224)]}  # fmt: skip
        end = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
        of = dict(zip(split["id"], split["split"], strict=True))
        self._parts = {}
        for name, steps in sides.items():
            images = torchvision.datasets.ImageFolder(given.data, transforms.Compose([*steps, *end]))
            root = Path(given.data)
            rows = [
                k for k, (path, _) in enumerate(images.samples) if of.get(str(Path(path).relative_to(root))) == name
            ]
            self._parts[name] = torch.utils.data.Subset(images, rows)
            self._num_classes = len(images.classes)

    def train(self, values: dict[str, Any], epochs: int) -> tuple[float, float]:
        """(best validation accuracy, seconds) of one training."""
        begin, best = time.perf_counter(), 0.0
        network = torchvision.models.mobilenet_v2()
        network.load_state_dict(self._weights)
        network.classifier[1] = nn.Linear(network.last_channel, self._num_classes)
        for parameter in network.features[: int(values["model.freeze_depth"])].parameters():
            parameter.requires_grad = False
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=float(values["optim.lr"]))
        size = int(values["train.batch_size"])
        loaders = {
            name: torch.utils.data.DataLoader(part, size, shuffle=name == "train") for name, part in self._parts.items()
        }
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loaders["train"]))
        with mlflow.start_run():
            mlflow.log_params(values)
            for epoch in range(1, epochs + 1):
                network.train()
                for images, labels in loaders["train"]:
                    loss = nn.functional.cross_entropy(network(images), labels)
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    schedule.step()
                network.eval()
                hits = 0
                with torch.no_grad():
                    for images, labels in loaders["val"]:
                        hits += int((network(images).argmax(1) == labels).sum())
                best = max(best, hits / len(self._parts["val"]))
                mlflow.log_metric("val_acc", hits / len(self._parts["val"]), step=epoch)
        return best, time.perf_counter() - begin


def curve(ends: list[float], values: list[float]) -> list[tuple[float, float]]:
    """(seconds, best so far), a point for each trial that was better than all before."""
    best, points = 0.0, []
    for end, value in sorted(zip(ends, values, strict=True)):
        if value > best:
            best = value
            points.append((end, best))
    return points


def reached(points: list[tuple[float, float]], value: float) -> float:
    """After how many seconds the curve has this value."""
    return next(seconds for seconds, best in points if best >= value - 1e-9)


def main() -> None:
    """Run both and print the curves and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--full", action="store_true", help="train all of the baseline")
    given = parser.parse_args()
    given.data, given.weights = str(Path(given.data).absolute()), str(Path(given.weights).absolute())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["IMGCLS_CACHE"] = f"{folder}/cache"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        table, before = ours(given)
        values = table["val/acc"].tolist()
        mine = curve([before + end for end in table["started"] + table["seconds"]], values)
        path = mlflow.MlflowClient().download_artifacts(table["run_id"].iloc[0], "tables/split.csv", folder)
        plain = Baseline(given, pd.read_csv(path))
        trials = table[["optim.lr", "train.batch_size", "model.freeze_depth", "epochs"]].to_dict("records")
        ends, found, clock = list[float](), list[float](), 0.0
        epoch_s = {}
        if not given.full:
            for depth in sorted({trial["model.freeze_depth"] for trial in trials}):
                trial = {"optim.lr": 3e-3, "train.batch_size": 32, "model.freeze_depth": depth}
                epoch_s[depth] = plain.train(trial, 1)[1]
                print(f"baseline: an epoch with {depth} stages frozen takes {epoch_s[depth]:.1f} s", flush=True)
        for trial, value in zip(trials, values, strict=True):
            epochs = int(trial.pop("epochs"))
            best, seconds = (
                plain.train(trial, epochs) if given.full else (value, epochs * epoch_s[trial["model.freeze_depth"]])
            )
            clock += seconds
            ends.append(clock)
            found.append(best)
        other = curve(ends, found)
        for title, points in (("ours", mine), ("baseline", other)):
            print(f"{title}: " + ", ".join(f"{seconds:.0f} s {best:.4f}" for seconds, best in points))
        goal = min(mine[-1][1], other[-1][1])
        ratio = reached(other, goal) / reached(mine, goal)
        how = "trained" if given.full else "estimated from one epoch a freeze depth"
        print(
            f"{given.trials} trials: validation accuracy {goal:.4f} after {reached(mine, goal):.0f} s against "
            f"{reached(other, goal):.0f} s ({how}): {ratio:.1f} times sooner; 5 or more wanted"
        )


if __name__ == "__main__":
    main()
