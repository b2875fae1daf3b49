"""Fixtures that every test has: a clean MLflow environment, a folder of its own, fixed seeds."""

import atexit
import hashlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models on cores that the other tests use too
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # or each of hundreds of processes compiles the package anew
    sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" not in os.environ:  # for all workers
    MEMORY = Path("/dev/shm")
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 << 30:
        # The tests' databases wait for a disk a third of their time. What killed processes leave behind goes too.
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="imgcls-tests-", dir=MEMORY)
        Path(os.environ["TMPDIR"]).chmod(0o711)  # PostgreSQL runs as another user
        atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)
    os.environ["IMGCLS_CACHE"] = tempfile.mkdtemp(prefix="imgcls-cache-")  # not the user's
    atexit.register(shutil.rmtree, os.environ["IMGCLS_CACHE"], ignore_errors=True)
import numpy as np
import pytest
from PIL import Image

from imgcls.tables import Manifest
from tests.stores import copy_new_stores

MakeFolder = Callable[..., Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Workers take tests from each other: the slow ones come last, and one worker would be left with them."""
    from xdist.scheduler.worksteal import WorkStealingScheduling  # type: ignore[import-untyped]

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("MLFLOW_") and name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    copy_new_stores()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes root/<class>/<n>.png of random noise around a grey level of the class: easy to learn, all different."""

    def make(
        classes: int = 3, images: int = 8, size: tuple[int, int] = (20, 16), name: str = "photos", ending: str = "png"
    ) -> Path:
        root = tmp_path / name
        generator = np.random.default_rng(0)
        for label in range(classes):
            folder = root / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                level = 255 * (label + 1) / (classes + 1)
                pixels = np.clip(generator.normal(level, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{ending}")
        return root

    return make


def put(root: Path, *names: str) -> Path:
    """Images at these relative paths, every one different."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "PNG")
    return root


def skipped(manifest: Manifest) -> dict[str, str]:
    """path -> reason of what the source passed over."""
    return {item.path: item.reason for item in manifest.skipped}
