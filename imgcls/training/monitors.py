"""The metrics that a training logs after every epoch and can be steered by, and which way each is better."""

import math
from typing import Literal

Monitor = Literal["val/acc", "val/f1", "val/loss", "train/acc", "train/loss"]
"""Logged every epoch: losses are better when low, all others when high."""


def followed(monitor: Monitor, *, validated: bool) -> Monitor:
    """The metric that is looked at for `monitor`: without validation images `train/loss` for one of validation."""
    return monitor if validated or monitor.startswith("train/") else "train/loss"


def score(monitor: str, value: float) -> float:
    """The value as a number that is better when higher; one that is not a number is the worst."""
    signed = -value if monitor.endswith("loss") else value
    return -math.inf if math.isnan(signed) else signed
