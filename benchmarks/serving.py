"""How fast a logged model labels encoded images beside its bare network, in one process and in turn, as ratios.

    python benchmarks/serving.py [mobilenet digits] [--threads 1 2] [--pairs 5]

mobilenet  MobileNetV2 at 224 px on JPEGs of 500 x 375 pixels, of photo-like content.
digits     the tiny network of the digits recipe at 8 px on PNGs of 8 x 8 pixels: nearly all is work around the network.

`served` is `mlflow.pyfunc.load_model(...).predict` of a table of 64 encoded images. It is set against `network`, which
computes ready float32 batches of 64 in the memory layout in which it is faster; against `parts`, the same in as many
parts as serving computes them in; and against `classifier`, which decodes one image after the other in the same thread
and then computes all 64. `decoding` is its share of the classifier's time. Every
pair is measured in turn; the median of the pairs' ratios counts, and the quartiles say how far they lie apart.
"""

import argparse
import io
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import cv2
import mlflow
import numpy as np
import pandas as pd
import torch
from PIL import Image

import imgcls.models  # noqa: F401
from imgcls.data.augment import Preprocessing
from imgcls.data.augment.preprocessing import MOST_PIXELS
from imgcls.inference.classifier import Classifier
from imgcls.models.family import FAMILIES, build
from imgcls.tracking.model import _save

BATCH = 64


def photo(seed: int, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth shapes with some grain, so that a JPEG of it is as long as a photo's."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + generator.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray[Any, np.dtype[np.uint8]], kind: str) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def subject(name: str) -> tuple[Classifier, list[bytes]]:
    """A classifier with random weights and 64 encoded images."""
    torch.manual_seed(0)
    family, values, channels, size, classes = {
        "mobilenet": ("mobilenet_v2", {}, 3, 224, 50),
        "digits": ("plaincnn", {"num_blocks": 2, "channels": 16}, 1, 8, 10),
    }[name]
    config = FAMILIES.get(family).config.model_validate({"family": family, **values})
    module = build(config, num_classes=classes, in_channels=channels, image_size=size).eval()
    steps = Preprocessing(channels, size, (0.45,) * channels, (0.22,) * channels)
    model = Classifier(module, config, steps, tuple(f"class {k}" for k in range(classes)), 3)
    if name == "mobilenet":
        return model, [encoded(photo(k, 500, 375), "JPEG") for k in range(BATCH)]
    return model, [encoded(photo(k, 8, 8)[:, :, 0], "PNG") for k in range(BATCH)]


def logged(model: Classifier) -> Any:
    """The classifier as MLflow loads it from a logged model's files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        model.save(path / "classifier")
        entity = SimpleNamespace(artifact_location=str(path), model_id="m-" + "0" * 32)
        _save(entity, "0" * 32, path / "classifier", path / "model", top_k=3)
        return mlflow.pyfunc.load_model(str(path / "model"))


def seconds(work: Callable[[], Any], least: float = 0.5) -> float:
    """Of one call, over at least so many seconds."""
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < least:
        work()
        calls += 1
    return (time.perf_counter() - begin) / calls


def measure(name: str, threads: int, pairs: int) -> None:
    """Print the rates and their ratios."""
    torch.set_num_threads(threads)
    model, images = subject(name)
    served, table = logged(model), pd.DataFrame({"image": images})
    pixels = np.stack([model.preprocessing.load(image) for image in images])
    inputs = model.preprocessing.to_input(torch.from_numpy(pixels))
    layouts = [inputs.contiguous(), inputs.contiguous(memory_format=torch.channels_last)]

    @torch.inference_mode()
    def network(batch: torch.Tensor) -> torch.Tensor:
        return model.module(batch)

    def decode() -> None:
        np.stack([model.preprocessing.load(image) for image in images])

    def classifier() -> None:
        loaded = np.stack([model.preprocessing.load(image) for image in images])
        network(model.preprocessing.to_input(torch.from_numpy(loaded)))

    fastest = min(layouts, key=lambda batch: seconds(lambda: network(batch)))
    num_parts = math.ceil(pixels[..., 0].size / MOST_PIXELS)
    work = {
        "network": lambda: network(fastest),
        "parts": lambda: [network(part) for part in fastest.chunk(num_parts)],
        "served": lambda: served.predict(table),
        "classifier": classifier,
        "decode": decode,
    }
    for each in work.values():
        each()
    found: dict[str, list[float]] = {key: [] for key in work}
    for number in range(pairs):
        for key in list(work) if number % 2 else reversed(list(work)):
            found[key].append(seconds(work[key]))
    rates = {key: BATCH / statistics.median(values) for key, values in found.items()}
    print(f"{name}, {threads} threads: " + ", ".join(f"{key} {rate:,.1f}" for key, rate in rates.items()) + " images/s")
    for against in ("network", "parts", "classifier"):
        ratios = [a / b for a, b in zip(found[against], found["served"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  served / {against}: {middle:.3f} ({low:.3f} to {high:.3f})")
    share = statistics.median(a / b for a, b in zip(found["decode"], found["classifier"], strict=True))
    print(f"  decoding is {share:.0%} of the classifier's time", flush=True)


def main() -> None:
    """Measure what is asked for."""
    warnings.filterwarnings("ignore")  # MLflow's own
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=["mobilenet", "digits"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    for name in given.subjects:
        for threads in given.threads:
            measure(name, threads, given.pairs)


if __name__ == "__main__":
    main()
