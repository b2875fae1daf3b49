"""Tables of trials as a sweep makes them, of any size."""

from typing import Any

import numpy as np
import pandas as pd

FAMILIES = (
    "resnet18", "mobilenet_v2", "efficientnet_b0", "plaincnn", "quizdnn", "widecnn", "separable",
    "timm:convnextv2_femto.fcmae_ft_in22k_in1k_384",
)  # fmt: skip
FIELDS = (
    "optim.lr", "train.batch_size", "model.freeze_depth", "optim.weight_decay", "augment.preset", "optim.name",
    "model.dropout", "train.label_smoothing", "augment.mixup_alpha", "optim.momentum", "train.average",
    "optim.warmup_epochs",
)  # fmt: skip


def trial_table(num: int, *, families: int = 1, fields: int = 3, seed: int = 0, finished: bool = True) -> pd.DataFrame:
    """A sweep of so many trials over the first families and fields; `optim.momentum` only where `optim.name` is sgd."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    numbers = dict.fromkeys(FAMILIES, 0)
    for k in range(num):
        family = FAMILIES[k % families]
        lr = 10 ** rng.uniform(-4.5, -0.5)
        depth = int(rng.integers(0, 8))
        quality = 0.93 - 0.03 * (k % families) - 0.08 * (np.log10(lr) + 2.5) ** 2 - 0.01 * depth
        acc = float(np.clip(quality + rng.normal(0, 0.02), 0.05, 0.99))
        state = str(rng.choice(["complete", "pruned", "failed"], p=[0.68, 0.26, 0.06])) if k else "complete"
        if not finished:
            state = ("failed", "running", "waiting")[k % 3]
        done = state == "complete"
        seconds = float(rng.uniform(20, 90)) * (0.4 if state == "pruned" else 1)
        values: dict[str, Any] = {
            "optim.lr": lr,
            "train.batch_size": int(rng.choice([16, 32, 64, 128])),
            "model.freeze_depth": depth,
            "optim.weight_decay": float(10 ** rng.uniform(-6, -1)),
            "augment.preset": str(rng.choice(["none", "light", "medium", "strong"])),
            "optim.name": str(rng.choice(["adamw", "sgd"])),
            "model.dropout": float(rng.uniform(0, 0.5)),
            "train.label_smoothing": float(rng.uniform(0, 0.2)),
            "augment.mixup_alpha": float(rng.uniform(0, 0.4)),
            "optim.momentum": float(rng.uniform(0.8, 0.99)),
            "train.average": bool(rng.integers(0, 2)),
            "optim.warmup_epochs": int(rng.integers(0, 4)),
        }
        if values["optim.name"] == "adamw":
            values["optim.momentum"] = None
        curve = [acc * (1 - 0.7 ** (epoch + 1)) for epoch in range(2 if state == "pruned" else 6)]
        rows.append(
            {
                "family": family,
                "number": numbers[family],
                "state": state,
                "val/acc": acc if done else (curve[-1] if state == "pruned" else np.nan),
                "speed/images_per_s": float(rng.uniform(100, 900)) if done else np.nan,
                "started": 30.0 * k,
                "seconds": seconds if state not in ("running", "waiting") else np.nan,
                "worker": f"host-{k % 2}",
                "run_id": f"{k:032x}",
                "reason": "CUDA out of memory" if state == "failed" else "",
                "epochs": len(curve),
                "curve": curve if state in ("complete", "pruned") else [],
                **{name: values[name] for name in FIELDS[:fields]},
            }
        )
        numbers[family] += 1
    columns = [
        "family", "number", "state", "val/acc", "speed/images_per_s", "started", "seconds", "worker", "run_id",
        "reason", "epochs", "curve", *FIELDS[:fields],
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(FIELDS[:fields], object))
