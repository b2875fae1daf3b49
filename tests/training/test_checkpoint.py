"""Checkpoints: whole or not at all, and never code."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.errors import UserError
from imgcls.training.checkpoint import Checkpoint


def checkpoint(value: float = 1.5, size: int = 3) -> Checkpoint:
    model = torch.nn.Linear(size, 2)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, size)).sum().backward()
    optimizer.step()
    rows = [{"epoch": 1.0, "val/acc": 0.5}]
    return Checkpoint(dict(model.state_dict()), {"optimizer": optimizer.state_dict()}, 1, 7, rows)


def momentum(saved: Checkpoint) -> torch.Tensor:
    found: torch.Tensor = saved.trainer["optimizer"]["state"][0]["exp_avg"]
    return found


def test_a_checkpoint_survives_the_disk(tmp_path: Path) -> None:
    before = checkpoint()
    before.save(tmp_path / "last.pt")
    after = Checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(after.model["weight"], before.model["weight"])
    assert torch.equal(momentum(after), momentum(before))
    assert (after.epoch, after.batch, after.rows, after.rng) == (1, 7, before.rows, {})
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_saving_replaces_the_earlier_file(tmp_path: Path) -> None:
    checkpoint(1).save(tmp_path / "last.pt")
    checkpoint(2).save(tmp_path / "last.pt")
    assert Checkpoint.load(tmp_path / "last.pt").model["weight"].mean() == pytest.approx(2, abs=0.01)


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-executed",)


def test_a_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    fields = {**vars(checkpoint()), "rows": [Code()]}
    torch.save(fields, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*last\.pt"):
        Checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "was-executed").exists()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_an_error(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "last.pt"
    checkpoint(size=200).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*last\.pt"):
        Checkpoint.load(path)


@pytest.mark.parametrize("data", [b"text", b"0", b"(", b"\xff" * 40, b"PK\x03\x04", b"l1.", bytes(range(256))])
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        Checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("saved", [{}, {"model": {}}, [1], torch.zeros(2)])
def test_another_torch_file_is_an_error(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        Checkpoint.load(tmp_path / "last.pt")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_write_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.pt"
    checkpoint().save(path)
    before = path.read_bytes()

    def half(_fields: object, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*last\.pt: .*an earlier checkpoint is unharmed"):
        checkpoint().save(path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_an_interruption_that_torch_turns_into_an_error_stays_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_fields: object, file: Any) -> None:
        file.write(b"half")
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    checkpoint().save(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            checkpoint(2).save(tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    Path("last.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        checkpoint(size=5000).save(Path("last.pt"))
    assert not Path("last.pt").exists()


@pytest.mark.parametrize("parent", ["missing", "a-file"])
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, parent: str) -> None:
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write the checkpoint .* set train\.output_dir"):
        checkpoint().save(tmp_path / parent / "last.pt")
