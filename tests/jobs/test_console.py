"""What a person sees: a bar on a terminal, a line an epoch elsewhere, nothing where it is quiet."""

import io
import sys
import time
from types import SimpleNamespace

import pytest

from imgcls.jobs import console as module
from imgcls.jobs.console import Console
from imgcls.tables import Row
from imgcls.training.loop import Step

ROW: Row = {
    "epoch": 2, "train/loss": 0.51239, "train/acc": 0.9, "val/loss": 1.5, "val/acc": 0.8125, "val/f1": 0.75,
    "lr": 0.001, "seconds": 9.0, "images_per_s": 12345.6,
}  # fmt: skip


class Terminal(io.StringIO):
    """An stderr that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself, for pytest takes stderr back between a fixture and its test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The console's clock, which stands still until it is set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def wait() -> None:
    """Longer than tqdm waits between two drawings."""
    time.sleep(0.12)


def step(batch: int, *, epoch: int = 1, loss: float | None = 0.25, acc: float | None = 0.5) -> Step:
    return Step(epoch, batch, 10, loss, acc, 1234.5)


def test_an_epoch_is_one_line_with_an_estimate_of_the_time_left(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    console.begin_training()
    clock.now += 60
    console.row(ROW, epochs=10)
    assert capsys.readouterr() == (
        "epoch   2/10  train loss 0.5124 acc 0.9000  val loss 1.5000 acc 0.8125 f1 0.7500  "
        "12,346 images/s  ETA 0:04:00\n",
        "",
    )


def test_the_last_epoch_leaves_no_time(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    clock.now += 60
    console.row(ROW, epochs=2)
    assert capsys.readouterr().out.endswith("ETA 0:00:00\n")


def test_elsewhere_than_on_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for done in (1, 2):
        console.count("reading", done, 2)
        console.step(step(done), epochs=2)
    console.clear()
    console.say("done")
    assert capsys.readouterr() == ("done\n", "")


def test_a_bar_shows_epoch_loss_accuracy_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console = Console()
    console.step(step(1), epochs=2)
    wait()
    console.step(step(10), epochs=2)
    wait()
    console.step(step(10, epoch=2), epochs=2)
    console.clear()
    shown = terminal.getvalue()
    for part in ("epoch 1/2  50%|", "epoch 2/2 100%|", "ETA 00:00, loss 0.250 acc 0.500 1,234 images/s"):
        assert part in shown
    assert shown.endswith("\r")


def test_a_bar_keeps_its_figures_where_a_step_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    console = Console()
    console.step(step(1, loss=0.125), epochs=1)
    console.step(step(2, loss=None, acc=None), epochs=1)
    bar = console._bar
    assert "loss 0.125" in bar.postfix
    console.clear()


def test_a_bar_without_figures_shows_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console = Console()
    console.step(step(1, loss=None, acc=None), epochs=1)
    wait()
    console.step(step(2, loss=None, acc=None), epochs=1)
    console.clear()
    assert "1,234 images/s" in terminal.getvalue()
    assert "loss" not in terminal.getvalue()


def test_counting_shows_a_bar_that_goes_when_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console = Console()
    for done in range(1, 5):
        console.count("reading train images", done, 4)
    assert "reading train images" in terminal.getvalue()
    assert console._bar is None


def test_counting_other_things_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console = Console()
    console.count("listing photos.tar.gz", 0, 9, unit="MiB")
    wait()
    console.count("listing photos.tar.gz", 5, 9, unit="MiB")
    assert " MiB/s" in terminal.getvalue()
    assert "images" not in terminal.getvalue()


def test_a_line_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal(monkeypatch)
    console = Console()
    console.step(step(1), epochs=1)
    console.say("a line")
    assert capsys.readouterr().out == "a line\n"
    cleared, _, drawn = terminal.getvalue().rpartition("\r" + " " * 10)
    assert cleared
    assert "epoch 1/1" in drawn
    console.clear()
    assert console._bar is None


def test_a_quiet_console_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal(monkeypatch)
    console = Console(quiet=True)
    console.count("reading", 1, 2)
    console.step(step(1), epochs=1)
    console.begin_training()
    console.row(ROW, epochs=2)
    console.say("a line")
    console.clear()
    assert (capsys.readouterr().out, terminal.getvalue()) == ("", "")
