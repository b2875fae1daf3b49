"""What the tests of tracking share: a store for a whole module."""

from pathlib import Path

import pytest

from imgcls.tracking.store import Store, connect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the store of all tests of a module, since making one takes more than a second."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """That store, opened in its folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs.db")
    return connect()
