"""What the tests of the jobs share: one thread for small networks, and a store for a whole module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch with one thread: with more, a busy machine makes small networks many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder_of_the_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the store of all tests of a module, since making one takes more than a second."""
    return tmp_path_factory.mktemp("store")
