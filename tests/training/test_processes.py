"""Several processes as one: the same gradients, losses and figures, and clear words where they do not meet."""

import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.data.augment import Preprocessing, evaluation_pipeline
from imgcls.data.loading import Loader
from imgcls.errors import UserError
from imgcls.tables import Row
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import TrainConfig, fit, seed_all
from imgcls.training.keeper import BEST, LAST
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan
from imgcls.training.processes import (
    ALONE,
    Ballot,
    Group,
    OthersGone,
    check_shares,
    from_first,
    is_joined,
    join,
    resolve_processes,
)
from imgcls.training.trainer import Totals, Trainer
from tests.training.test_fit import without_times

COUNT, CLASSES = 61, 3
LABELS = np.arange(COUNT, dtype=np.int64) % CLASSES
NOISE = np.random.default_rng(0).normal(0, 40, (COUNT, 8, 8, 1))
IMAGES = list(np.clip(NOISE + 60 + 60 * LABELS[:, None, None, None], 0, 255).astype(np.uint8))
STEPS = Preprocessing(1, 8, (0.5,), (0.25,))
WEIGHTS = np.array([0.5, 1.0, 3.0])
PATIENCE = 90
"""Seconds that a group of processes has in all."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def places(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def _one(work: Callable[..., Any], rank: int, size: int, port: int, folder: Path, words: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(places(rank, size, port))
    try:
        with join(on_gpu=False) as group:
            found = work(group, *words)
    except UserError as error:
        found = error
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def together(size: int, folder: Path, work: Callable[..., Any], *words: Any) -> list[Any]:
    """What `work(group, *words)` gives in each of so many processes; an ended one gives None."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    context = multiprocessing.get_context("forkserver")  # which imports torch once
    context.set_forkserver_preload([__name__])
    processes = [
        context.Process(target=_one, args=(work, rank, size, port, folder, words), daemon=True) for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hangs = [process for process in processes if process.is_alive()]
    for process in hangs:
        process.kill()
    assert not hangs
    files = [folder / f"{rank}.pickle" for rank in range(size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def loaders(group: Group, batch_size: int) -> tuple[Loader, Loader]:
    rank, size, pipeline = group.rank, group.size, evaluation_pipeline(8)
    return (
        Loader(IMAGES[:42], LABELS[:42], pipeline, batch_size=batch_size, shuffle=True, rank=rank, processes=size),
        Loader(IMAGES[42:], LABELS[42:], pipeline, batch_size=9, rank=rank, processes=size),
    )


def network() -> nn.Module:
    seed_all(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)
    )


def trained(
    group: Group, folder: Path, weighted: bool, batch_size: int, stop_after: int | None = None
) -> tuple[list[Row], list[float], bytes]:
    """The rows, the losses a step, and the weights in the end; goes on from the folder's checkpoint, if any."""
    resume = Checkpoint.load(folder / LAST) if (folder / LAST).exists() else None
    group.gather(0)  # all have looked before one writes
    model = network()
    if not group.is_first:  # what the first one begins with is what counts
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    losses: list[float] = []

    class Recorded(Totals):
        def add(self, loss: torch.Tensor, hits: torch.Tensor, count: int) -> None:
            losses.append(loss.item())
            super().add(loss, hits, count)

    train, val = loaders(group, batch_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgcls.training.loop.Totals", Recorded)
        rows = list(
            fit(
                model,
                train,
                val,
                config=TrainConfig(epochs=3, batch_size=batch_size),
                optim=OptimConfig(lr=0.01),
                preprocessing=STEPS,
                plan=Plan("cpu", "fp32"),
                checkpoints=folder,
                class_weights=WEIGHTS if weighted else None,
                group=group,
                stop=lambda: len(losses) == stop_after,
                resume=resume,
            )
        )
    weights = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    return rows, losses, weights.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_processes_with_a_part_of_the_batch_each_train_as_one_does(tmp_path: Path, weighted: bool, size: int) -> None:
    """Batches of 18, 18 and 6 (parts of 9 and 3, or of 6 and 2), all figures to 1e-5 of their value."""
    (tmp_path / "one").mkdir()
    one, losses, weights = trained(ALONE, tmp_path / "one", weighted, 18)
    parts = together(size, tmp_path / "parts", trained, tmp_path / "parts", weighted, 18)
    for rows, part_losses, part_weights in parts:
        assert len(rows) == 3
        assert rows == parts[0][0], "all make the same decisions"
        for row, expected in zip(rows, one, strict=True):
            for name in set(expected) - {"seconds", "images_per_s"}:
                assert row[name] == pytest.approx(expected[name], rel=1e-5), name
            assert (row["val/acc"], row["val/f1"]) == (expected["val/acc"], expected["val/f1"])
        assert part_losses == pytest.approx(losses, rel=1e-5)
        assert part_weights == parts[0][2], "bit for bit the same in all processes"
        assert np.frombuffer(part_weights, np.float32) == pytest.approx(
            np.frombuffer(weights, np.float32), rel=1e-3, abs=1e-5
        )
    assert Checkpoint.load(tmp_path / "parts" / LAST).epoch == 3
    assert (tmp_path / "parts" / BEST).exists()


@pytest.mark.slow
def test_processes_that_go_on_in_the_middle_of_an_epoch_count_as_if_uninterrupted(tmp_path: Path) -> None:
    """Stopped after the second of three batches of the second epoch."""
    whole = together(2, tmp_path / "whole", trained, tmp_path / "whole", False, 18)
    before = together(2, tmp_path / "before", trained, tmp_path / "before", False, 18, 5)
    shutil.copytree(tmp_path / "before", tmp_path / "after", ignore=shutil.ignore_patterns("*.pickle"))
    after = together(2, tmp_path / "after", trained, tmp_path / "after", False, 18)
    for rank in range(2):
        found = before[rank][0] + after[rank][0]
        assert without_times(found) == without_times(whole[rank][0])
        assert before[rank][1] + after[rank][1] == whole[rank][1]
        assert after[rank][2] == whole[rank][2]


@pytest.mark.slow
def test_parts_of_different_sizes_weigh_as_their_images(tmp_path: Path) -> None:
    """Batches of 15, 15 and 12 in two processes: parts of 8 and 7 images. (A recipe's batches are shared evenly, and
    the last may not be.)"""
    (tmp_path / "one").mkdir()
    _, losses, _ = trained(ALONE, tmp_path / "one", False, 15)
    for _, part_losses, _ in together(2, tmp_path / "parts", trained, tmp_path / "parts", False, 15):
        assert part_losses == pytest.approx(losses, rel=1e-5)


def normalised(group: Group) -> tuple[list[float], list[float]]:
    """Batch statistics after each process saw its own images, before and after an evaluation."""
    seed_all(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    train, val = loaders(group, 18)
    trainer = Trainer(
        model,
        OptimConfig(),
        STEPS,
        Plan("cpu", "fp32"),
        num_steps=3,
        batch_size=9,
        class_weights=None,
        mixing=None,
        group=group,
    )
    for batch in train.epoch(1):
        trainer.step(batch, steps_per_epoch=3, totals=Totals("cpu"))
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.tolist()
    trainer.evaluate(val, lambda: False)
    return before, norm.running_mean.tolist()


@pytest.mark.slow
def test_the_first_process_s_batch_statistics_are_evaluated_with(tmp_path: Path) -> None:
    (first, first_after), (second, second_after) = together(2, tmp_path / "c", normalised)
    assert first != second
    assert first == first_after == second_after


def few_to_evaluate(group: Group) -> Row | None:
    """More processes than images in the last batch, and in a whole evaluation."""
    pipeline = evaluation_pipeline(8)
    loader = Loader(IMAGES[:2], LABELS[:2], pipeline, batch_size=9, rank=group.rank, processes=group.size)
    trainer = Trainer(
        network(),
        OptimConfig(),
        STEPS,
        Plan("cpu", "fp32"),
        num_steps=3,
        batch_size=9,
        class_weights=None,
        mixing=None,
        group=group,
    )
    return trainer.evaluate(loader, lambda: False)


@pytest.mark.slow
def test_a_process_without_an_image_to_evaluate_takes_part(tmp_path: Path) -> None:
    expected = few_to_evaluate(ALONE)
    assert expected is not None
    for row in together(3, tmp_path / "c", few_to_evaluate):
        assert row == pytest.approx(expected, rel=1e-6)


def voting(group: Group) -> tuple[int, int]:
    """The second process is asked at its fourth step."""
    steps = 0
    ballot = Ballot(group, lambda: signal.SIGTERM if group.rank == 1 and steps >= 3 else 0)
    while not ballot():
        steps += 1
    assert ballot(), "and it stays so"
    return steps, ballot.signum


@pytest.mark.slow
def test_all_stop_after_the_same_batch(tmp_path: Path) -> None:
    assert together(2, tmp_path / "c", voting) == [(4, signal.SIGTERM), (4, signal.SIGTERM)]


def test_one_process_stops_at_once() -> None:
    asked = [0, 0, signal.SIGINT]
    ballot = Ballot(ALONE, lambda: asked.pop(0))
    assert [ballot(), ballot(), ballot(), ballot()] == [False, False, True, True]
    assert ballot.signum == signal.SIGINT


def exchanging(group: Group) -> tuple[Any, ...]:
    if group.is_first:
        group.announce("key", "first")
    heard = group.wait_for("key")
    values = group.gather(group.rank * 10)
    return heard, values, group.from_first(f"of {group.rank}"), group.agree(lambda: group.rank)


@pytest.mark.slow
def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    assert together(2, tmp_path / "c", exchanging) == [
        ("first", [0, 10], "of 0", 0),
        ("first", [0, 10], "of 0", 1),
    ]


def _first(work: Callable[[], Any], rank: int, port: int, folder: Path) -> None:
    os.environ.update(places(rank, 2, port))
    try:
        found: Any = from_first(lambda: work(rank))  # type: ignore[call-arg]
        with join(on_gpu=False) as group:
            found = found, group.gather(rank)
    except (UserError, SystemExit) as error:
        found = repr(error)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def found_by(rank: int) -> str:
    return f"found by {rank}"


def not_found_by(rank: int) -> str:
    raise UserError(f"not found by {rank}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (found_by, [("found by 0", [0, 1])] * 2),
        (not_found_by, ["UserError('not found by 0')", "SystemExit(2)"]),
    ],
)
def test_the_first_process_finds_for_all_before_they_join(tmp_path: Path, work: Any, expected: list[Any]) -> None:
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=_first, args=(work, rank, port, tmp_path), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)] == expected


def disagreeing(group: Group) -> str:
    def work() -> None:
        if group.rank == 1:
            raise UserError("only here")

    try:
        group.agree(work)
    except SystemExit as ended:
        return f"ends with {ended.code}"
    return "goes on"


def dying(group: Group) -> None:
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    group.average_gradients([parameter], torch.tensor(1.0), torch.tensor(0.5), torch.tensor(1))


@pytest.mark.slow
def test_an_error_in_one_process_is_told_by_it_alone(tmp_path: Path) -> None:
    first, second = together(2, tmp_path / "c", disagreeing)
    assert first == "ends with 2"
    assert str(second) == "only here"


@pytest.mark.slow
def test_the_death_of_another_process_is_noticed(tmp_path: Path) -> None:
    first, second = together(2, tmp_path / "c", dying)
    assert second is None
    assert isinstance(first, OthersGone)
    assert str(first).startswith("another process of this training has ended")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_waiting_for_processes_that_do_not_come_ends(rank: int) -> None:
    begin = time.monotonic()
    with (
        pytest.raises(UserError, match=rf"^process {rank} of 2 .*within 2 s") as raised,
        join(on_gpu=False, timeout=2, environ={**os.environ, **places(rank, 2, free_port())}),
    ):
        pass
    assert time.monotonic() - begin < 30
    assert "MASTER_ADDR" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"RANK": "2"}, r"RANK='2', WORLD_SIZE='2'"),
        ({"RANK": "x"}, r"RANK='x'"),
        ({"LOCAL_RANK": "1"}, r"LOCAL_RANK='1'"),
        ({"MASTER_PORT": None}, r"but not MASTER_PORT\. Set all of"),
        ({"MASTER_ADDR": None, "LOCAL_RANK": None}, r"but not LOCAL_RANK and MASTER_ADDR"),
    ],
)
def test_an_environment_that_is_no_place_is_told(change: dict[str, str | None], found: str) -> None:
    environ = {name: text for name, text in {**places(0, 2, 1), **change}.items() if text is not None}
    assert is_joined(environ)
    with pytest.raises(UserError, match=found), join(on_gpu=False, environ=environ):
        pass


def test_a_process_started_alone_by_torchrun_is_one() -> None:
    threads = torch.get_num_threads()
    environ = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    with join(on_gpu=False, environ=environ) as group:
        assert (group.rank, group.size, group.is_first) == (0, 1, True)
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(sys.platform != "linux", reason="processes cannot be bound to cores")
def test_processes_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.training.processes.num_cores", lambda: 12)
    threads = torch.get_num_threads()
    seen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", seen.append)
    monkeypatch.setattr("imgcls.training.processes._meet", lambda *_: (_ for _ in ()).throw(UserError("met")))
    with pytest.raises(UserError, match="met"), join(on_gpu=False, environ=places(0, 4, 1)):
        pass
    assert seen == [3]
    assert torch.get_num_threads() == threads


def test_auto_is_a_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [resolve_processes(asked, device="auto") for asked in ("auto", 1, 3)] == [1, 1, 3]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [resolve_processes("auto", device=device) for device in ("auto", "cuda", "cpu")] == [4, 4, 1]
    assert resolve_processes(4, device="auto") == 4
    assert resolve_processes(8, device="cpu") == 8
    with pytest.raises(UserError, match=r"^train.processes is 5, but there are 4 GPUs; .* at most 4,"):
        resolve_processes(5, device="auto")


@pytest.mark.parametrize(
    ("processes", "batch_size", "advice"), [(2, 63, 62), (3, 64, 63), (4, 4, 8), (2, 2, 4), (64, 64, 128)]
)
def test_a_batch_that_cannot_be_shared_is_refused(processes: int, batch_size: int, advice: int) -> None:
    with pytest.raises(UserError, match=rf"^train.batch_size is {batch_size}, .*such as {advice}\. "):
        check_shares(processes, batch_size=batch_size, sync_batch_norm=False, on_gpu=False)
    check_shares(processes, batch_size=advice, sync_batch_norm=False, on_gpu=False)


def test_batch_normalisation_is_shared_on_gpus_only() -> None:
    with pytest.raises(UserError, match=r"^train.sync_batch_norm is true, which torch has for GPUs only"):
        check_shares(2, batch_size=64, sync_batch_norm=True, on_gpu=False)
    check_shares(2, batch_size=64, sync_batch_norm=True, on_gpu=True)
    check_shares(1, batch_size=63, sync_batch_norm=True, on_gpu=False)


def test_shared_batch_normalisation_wants_whole_parts() -> None:
    asked: dict[str, Any] = {"batch_size": 64, "sync_batch_norm": True, "on_gpu": True}
    with pytest.raises(UserError, match=r"^train.micro_batch is 31, less than the 32 images .* would wait .* to auto"):
        check_shares(2, **asked, micro_batch=31)
    for micro_batch in (32, 64, None):
        check_shares(2, **asked, micro_batch=micro_batch)
    check_shares(1, **asked, micro_batch=8)
    check_shares(2, **{**asked, "sync_batch_norm": False}, micro_batch=8)
