"""How fast training is, beside its parts and beside torch's defaults, in turn and in one run, as ratios.

    IMGCLS_DATA=<folder with animals50/ and cifar10/> python benchmarks/training.py [loop plan accuracy processes]

loop       the tracked loop against its slower part alone: (c) / min(a, b) of `imgcls profile`, for quizdnn on CIFAR-10
           and for resnet18 at 160 px on animals50.
plan       steps of the recipe's plan against a loop written by hand in torch's defaults (fp32, NCHW, eager), same
           network, same batch: resnet18 and resnet50 at 160 px, quizdnn at 32 px; with --all one of every kind besides.
accuracy   a full short training of digits and of 10 classes of animals50 with the recipe's plan and in fp32, `--seeds`
           seeds each: the validation accuracies, and the mean of the seeds' differences with its standard error.
processes  two processes with half the batch each against one process, in a network without batch norm: the largest
           difference between the losses of an epoch.

Seconds are by the clock on the wall. Each pair is measured in turn and the median of the pairs' ratios counts, with the
lowest and the highest behind it. --plan fp32 or bf16 takes the place of the recipe's own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import torch
from torch import nn

import imgcls
from imgcls.data.augment import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from imgcls.data.loading import Batch
from imgcls.jobs.console import Console
from imgcls.jobs.profile import run_profile
from imgcls.jobs.profile_report import as_text
from imgcls.jobs.signals import Signals
from imgcls.models.family import build
from imgcls.recipe import Recipe, resolve
from imgcls.tracking.store import connect
from imgcls.training.choose import choose_plan
from imgcls.training.fit import seed_all
from imgcls.training.measure import Job
from imgcls.training.plan import Plan, resolve_device
from imgcls.training.throughput import Compute

CIFAR: dict[str, Any] = {
    "model.family": "quizdnn", "augment.image_size": 32, "augment.preset": "light", "train.batch_size": 128,
    "optim.optimizer": "sgd", "optim.lr": 0.2,
}  # fmt: skip
ANIMALS: dict[str, Any] = {
    "model.family": "resnet18", "augment.image_size": 160, "augment.preset": "animals", "train.batch_size": 32,
}  # fmt: skip
STEPS = 3500
"""Of the training that a plan is chosen for: ten epochs of CIFAR-10, 40 of animals50, in batches of 128 and 32."""
SHAPES = {"resnet18": (160, 32), "resnet50": (160, 16), "quizdnn": (32, 128)}
"""family -> pixels on each side, images a batch."""
SMALL = {
    "plaincnn": 32, "widecnn": 32, "separable": 32, "squeezenet1_1": 64, "shufflenet_v2_x1_0": 64, "densenet121": 64,
    "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64, "regnet_y_400mf": 64,
    "resnext50_32x4d": 64, "convnext_tiny": 64, "vit_b_32": 224, "swin_t": 64, "maxvit_t": 224,
}  # fmt: skip
"""family -> pixels: one of every kind of network, for --all, in batches of 16 and a quarter of the time."""


def plan_for(network: nn.Module, recipe: Recipe, steps: Preprocessing) -> Plan:
    """What `imgcls train` would compute a training of `STEPS` steps of this recipe with."""
    job = Job(
        model=network, optim=recipe.optim, preprocessing=steps, image_size=steps.image_size,
        batch_size=recipe.train.batch_size, num_classes=50, num_steps=STEPS,
    )  # fmt: skip
    choice = choose_plan(job, resolve_device(recipe.train.device, recipe.train.plan), recipe.train.plan)
    for line in choice.lines:
        print(line, flush=True)
    return choice.plan


def overridden(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command line's --plan stands for."""
    return {} if arguments.plan is None else {"train.plan": {"precision": arguments.plan, "compile": False}}


def data_root(name: str) -> str:
    """The folder of a data set."""
    if "IMGCLS_DATA" not in os.environ:
        sys.exit("set IMGCLS_DATA to the folder of the data sets")
    return str(Path(os.environ["IMGCLS_DATA"], name).absolute())


@contextmanager
def tracked() -> Iterator[None]:
    """A store and a folder of their own, removed at the end."""
    before, at = os.environ.get("MLFLOW_TRACKING_URI"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/runs.db"
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(at)
            os.environ.pop("MLFLOW_TRACKING_URI")
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before


def loop(arguments: argparse.Namespace) -> None:
    """(c) / min(a, b) of two trainings."""
    for title, name, fields in (
        ("quizdnn on CIFAR-10", "cifar10", CIFAR),
        ("resnet18 at 160 px on animals50", "animals50", ANIMALS),
    ):
        recipe = resolve("folder", {"data.root": data_root(name), **fields, **overridden(arguments)})
        with tracked(), Signals() as signals:
            result = run_profile(
                recipe, Console(quiet=True), signals, seconds=arguments.seconds, turns=max(2, arguments.pairs)
            )
        print(f"{title}, {result.profile.facts.plan}: (c) / min(a, b) {result.profile.ratio:.3f}; 0.95 or more wanted")
        print(as_text(result.profile) + "\n", flush=True)


class Baseline:
    """A training loop as it is written by hand: fp32, NCHW, eager, cross-entropy, the same optimiser."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, device: str) -> None:
        self._model = model.to(device).train()
        self._inputs, self._labels = inputs.to(device), labels.to(device)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self._device = device

    def images_per_s(self, seconds: float) -> float:
        """Images a second over about so many seconds, two steps at least."""
        begin, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - begin < seconds:
            loss = nn.functional.cross_entropy(self._model(self._inputs), self._labels)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            steps += 1
        if self._device == "cuda":
            torch.cuda.synchronize()
        return steps * len(self._labels) / (time.perf_counter() - begin)


def plan(arguments: argparse.Namespace) -> None:
    """Steps of the plan against torch's defaults."""
    networks = [(family, *shape, arguments.seconds) for family, shape in SHAPES.items()]
    if arguments.all:
        networks += [(family, size, 16, arguments.seconds / 4) for family, size in SMALL.items()]
    for family, size, batch_size, seconds in networks:
        if arguments.family and family not in arguments.family:
            continue
        share = seconds / (2 * arguments.pairs + 1)
        fields = {"model.family": family, "augment.image_size": size, "train.batch_size": batch_size}
        recipe = resolve("digits", {**fields, "data.channels": 3, **overridden(arguments)}).recipe
        theirs, ours, name = _both(recipe, size, batch_size)
        theirs(0), ours(0)  # compiling, memory
        rates = [
            (theirs(share), ours(share)) if pair % 2 == 0 else (ours(share), theirs(share))[::-1]
            for pair in range(arguments.pairs)
        ]
        goal = {"resnet18": 2.5, "resnet50": 2.5, "quizdnn": 2.0}.get(family, 0.95)
        _print_ratio(f"{family} at {size} px, batches of {batch_size}, {name}", rates, f"{goal} or more wanted")


def _both(recipe: Recipe, size: int, batch_size: int) -> tuple[Callable[[float], float], Callable[[float], float], str]:
    seed_all(0)
    network = build(recipe.model, num_classes=50, in_channels=3, image_size=size)
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8)
    labels = torch.randint(0, 50, (batch_size,))
    steps = Preprocessing(3, size, IMAGENET_MEAN, IMAGENET_STD)
    chosen = plan_for(network, recipe, steps)
    ours = Compute(
        network,
        Batch(images, labels, 0, batch_size),
        config=recipe.train,
        optim=recipe.optim,
        preprocessing=steps,
        plan=chosen,
    )
    theirs = Baseline(network, steps.to_input(images).contiguous(), labels, chosen.device)
    return theirs.images_per_s, ours.images_per_s, str(chosen)


def _print_ratio(title: str, rates: list[tuple[float, float]], goal: str) -> None:
    ratios = [new / old for old, new in rates]
    old, new = (statistics.median(side) for side in zip(*rates, strict=True))
    print(
        f"{title}: baseline {old:,.1f} images/s, ours {new:,.1f}, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}); {goal}",
        flush=True,
    )


def accuracy(arguments: argparse.Namespace) -> None:
    """The recipe's plan against fp32 on the CPU's terms: same seeds, same epochs."""
    trainings: dict[str, tuple[str, dict[str, Any]]] = {"digits": ("digits", {"train.epochs": 10})}
    if "IMGCLS_DATA" in os.environ:
        few = sorted(path.name for path in Path(data_root("animals50")).iterdir() if path.is_dir())[:10]
        trainings["10 classes of animals50 at 64 px, resnet18"] = (
            "folder",
            {**ANIMALS, "data.root": data_root("animals50"), "data.classes": few, "augment.image_size": 64,
             "train.epochs": 6, "train.patience": None},
        )  # fmt: skip
    for title, (name, fields) in trainings.items():
        found: dict[str, list[float]] = {"plan": [], "fp32": []}
        for seed in range(arguments.seeds):
            for side in ("plan", "fp32"):
                with tracked():
                    more = overridden(arguments) if side == "plan" else fp32_fields()
                    result = imgcls.train(name, {**fields, "train.seed": seed, **more}, quiet=True)
                found[side].append(max(row["val/acc"] for row in result.history.rows))
        gains = [100 * (plan - fp32) for plan, fp32 in zip(found["plan"], found["fp32"], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        print(
            f"{title}, best val acc of {arguments.seeds} seeds: plan {_listed(found['plan'])}, fp32 "
            f"{_listed(found['fp32'])}; mean difference {statistics.mean(gains):+.2f} points, its standard error "
            f"{error:.2f}, deviation between seeds of fp32 {100 * statistics.stdev(found['fp32']):.2f}",
            flush=True,
        )


def fp32_fields() -> Mapping[str, Any]:
    """Torch's defaults as fields of a recipe."""
    return {"train.plan": {"precision": "fp32", "layout": "nchw", "compile": False}}


def _listed(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def processes(_arguments: argparse.Namespace) -> None:
    """The same losses with one process and with two."""
    fields = {
        "model.norm": "none", "model.dropout": 0.0, "augment.preset": "none", "train.epochs": 2, "train.batch_size": 64,
        "train.plan.precision": "fp32",
    }  # fmt: skip
    losses = []
    for count in (1, 2):
        with tracked():
            words = [f"--{name}={value}" for name, value in {**fields, "train.processes": count}.items()]
            command = [sys.executable, "-m", "imgcls", "train", "digits", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"with {count} processes: {done.stderr.strip()}")
            losses.append(_logged("train/loss") + _logged("val/loss"))
    largest = max(abs(one - two) / abs(one) for one, two in zip(*losses, strict=True))
    print(
        f"two processes against one, digits without batch norm: {len(losses[0])} losses differ by {largest:.1e} at "
        "most; under 1e-4 wanted",
        flush=True,
    )


def _logged(metric: str) -> list[float]:
    store = connect()
    [run] = store.client.search_runs([store.experiment_id])
    rows = store.client.get_metric_history(run.info.run_id, metric)
    return [row.value for row in sorted(rows, key=lambda row: int(row.step))]


BENCHMARKS = {"loop": loop, "plan": plan, "accuracy": accuracy, "processes": processes}


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="for measuring each training or network")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy: trainings of each kind, 2 or more")
    parser.add_argument("--plan", choices=["fp32", "bf16"], help="in place of what the recipe would take")
    parser.add_argument("--all", action="store_true", help="plan: one of every family as well")
    parser.add_argument("--family", action="append", help="plan: only this one; may stand more than once")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments)


if __name__ == "__main__":
    main()
