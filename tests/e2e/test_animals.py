"""Real photos, where the environment variable IMGCLS_DATA names a folder with `animals50` in it."""

import os
from pathlib import Path

import pytest

import imgcls

DATA = Path(os.environ.get("IMGCLS_DATA") or "/nonexistent") / "animals50"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="IMGCLS_DATA names no folder with animals50 in it")
def test_a_folder_of_photos_trains_without_any_file_written_by_hand() -> None:
    overrides = {"data.root": str(DATA), "augment.image_size": 32, "train.epochs": 2}
    result = imgcls.train(None, overrides, quiet=True)
    assert len(result.predictions.classes) == 50
    assert len(result.history) == 2
    assert result.history.rows[-1]["val/acc"] > 3 / 50
