"""What a training step with a frozen backbone costs beside the same network frozen by hand, in turn and in one run.

    python benchmarks/freezing.py [--pairs 15]

baseline  torchvision's ResNet-18 whose frozen part is in evaluation mode and called under torch.no_grad.
ours      `resnet18` with model.freeze_depth, with the optimiser and the switch to training mode of every step.

Both take the same batches at 96 px. Seconds are CPU seconds, which other work on the machine changes little. The median
of the pairs' ratios counts; 0.97 or more is wanted. The third figure is what training all of the network costs.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torchvision.models import resnet18

import imgcls.models  # noqa: F401
from imgcls.models.family import FAMILIES, build
from imgcls.training.optim import OptimConfig
from imgcls.training.optimizers import build_optimizer, set_learning_rate

BATCH, SIZE, CLASSES, STEPS = 32, 96, 50, 4


def by_hand(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """A step on torchvision's network, all but the classifier under no_grad."""
    net = resnet18(weights=None, num_classes=CLASSES)
    head, net.fc = net.fc, nn.Identity()
    net.eval()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

    def step() -> None:
        with torch.no_grad():
            features = net(images)
        loss = nn.functional.cross_entropy(head(features), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def ours(images: torch.Tensor, labels: torch.Tensor, depth: int | str) -> Callable[[], None]:
    """The step of the training loop."""
    config = FAMILIES.get("resnet18").config(freeze_depth=depth)
    model = build(config, num_classes=CLASSES, in_channels=3, image_size=SIZE)
    optimizer = build_optimizer(OptimConfig(), model)

    def step() -> None:
        set_learning_rate(optimizer, 1e-3)
        model.train()
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """CPU seconds a step."""
    begin = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - begin) / STEPS


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(CLASSES, (BATCH,))
    sides = [by_hand(images, labels), ours(images, labels, "all"), ours(images, labels, 0)]
    for step in sides:
        step()
    found: list[list[float]] = [[], [], []]
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            found[side].append(seconds(sides[side]))
    found[2] = [seconds(sides[2]) for _ in range(3)]
    ratios = [hand / own for hand, own in zip(found[0], found[1], strict=True)]
    hand, own, whole = (BATCH / statistics.median(times) for times in found)
    print(
        f"resnet18, {SIZE} px, all but the head frozen, images a CPU second: by hand {hand:.1f}, ours {own:.1f}, "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); 0.97 or more wanted. All "
        f"trained: {whole:.1f}"
    )


if __name__ == "__main__":
    main()
