"""The verb `serve` up to the server: the model that it opens, the address, and what it prints."""

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.data.augment import Preprocessing
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.inference.ensemble import Ensemble, Model
from imgcls.jobs import serve as job
from imgcls.jobs.signals import Stopped
from imgcls.models.family import build
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.tracking.serving import About, Limits, listener


def classifier(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    config = PlainCNNConfig(num_blocks=1, channels=4)
    module = build(config, num_classes=3, in_channels=3, image_size=8).eval()
    return Classifier(module, config, Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3), ("ant", "bee", "cat"), 2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    classifier().save(tmp_path / "saved")
    return tmp_path / "saved"


class FakeService:
    """Notes what it is made of."""

    made: tuple[Model, About, Limits]

    def __init__(self, model: Model, about: About, limits: Limits) -> None:
        type(self).made = (model, about, limits)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The addresses that were served; each server ends with a SIGTERM as soon as it is there."""
    addresses: list[tuple[str, int]] = []

    def serve(service: Any, bound: socket.socket, *, stop: Callable[[], bool], ready: Callable[[], None]) -> None:
        assert isinstance(service, FakeService)
        addresses.append(bound.getsockname()[:2])
        ready()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        bound.close()

    monkeypatch.setattr(job, "serve", serve)
    monkeypatch.setattr(job, "Service", FakeService)
    return addresses


def ended(*words: Any, **options: Any) -> int:
    """Run the verb; the signal it ended by."""
    with pytest.raises(Stopped) as stopped:
        job.run_serve(*words, **options)
    return stopped.value.signum


@pytest.fixture(autouse=True)
def _signals_as_before() -> Any:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_says_where_it_is_and_how_to_ask_until_a_signal(
    saved: Path, served: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(str(saved), port=0) == signal.SIGTERM
    [(host, port)] = served
    out = capsys.readouterr().out
    assert host == "127.0.0.1"
    assert out == (
        f"model {saved}: plaincnn, 3 classes, 8 px\n"
        f"serving at http://127.0.0.1:{port}\n"
        f"try: curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:{port}/predict\n"
        "Ctrl-C ends the server\n"
    )
    _, about, limits = FakeService.made
    assert about == About(str(saved), str(saved))
    assert limits == Limits()


def test_the_options_reach_the_limits(saved: Path, served: list[tuple[str, int]]) -> None:
    before = torch.get_num_threads()
    try:
        ended(str(saved), port=0, max_request_mb=0.5, max_images=3, batch_size=7, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(served) == 1
    assert FakeService.made[2] == Limits(body_bytes=2**19, images=3, batch_size=7)


def test_an_ensemble_is_served_too(tmp_path: Path, served: list[tuple[str, int]]) -> None:
    Ensemble((classifier(0), classifier(1)), (1.0, 1.0)).save(tmp_path / "both")
    ended(str(tmp_path / "both"), port=0)
    assert len(served) == 1
    assert isinstance(FakeService.made[0], Ensemble)


def test_an_address_that_others_reach_comes_with_a_warning(
    saved: Path, served: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    ended(str(saved), host="0.0.0.0", port=0)
    out = capsys.readouterr().out
    assert f"serving at http://0.0.0.0:{served[0][1]}\nwhoever reaches this address may use it" in out
    assert f"http://127.0.0.1:{served[0][1]}/predict" in out


def test_a_taken_port_is_found_before_the_model_is_read() -> None:
    with listener("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(UserError, match="cannot listen on"):
            job.run_serve("no such model", port=first.getsockname()[1])


def test_a_folder_without_a_model_is_an_error_and_frees_the_port(tmp_path: Path) -> None:
    with listener("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match="holds no saved classifier"):
        job.run_serve(str(tmp_path), port=port)
    listener("127.0.0.1", port).close()
