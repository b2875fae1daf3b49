"""The plan: which device and precision a recipe gets on which machine."""

from typing import Literal

import pytest
import torch

from imgcls.errors import UserError
from imgcls.training.device import Plan, resolve_plan


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("version", [None, "13.0"])
def test_cuda_without_cuda_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    why = "built without CUDA" if version is None else "no usable NVIDIA GPU or driver"
    with pytest.raises(UserError, match=rf"train\.device is cuda, but .* finds no CUDA device .*{why}"):
        resolve_plan("cuda", "auto")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu_in_fp32() -> None:
    assert resolve_plan("auto", "auto") == Plan("cpu", "fp32")
    assert resolve_plan("auto", "bf16") == Plan("cpu", "bf16")


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu_auto_is_the_gpu_in_bf16_or_else_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_plan("auto", "auto") == Plan("cuda", "bf16")
    assert resolve_plan("cuda", "fp32") == Plan("cuda", "fp32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_plan("auto", "auto") == Plan("cuda", "fp16")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_can_be_left_alone() -> None:
    assert resolve_plan("cpu", "auto") == Plan("cpu", "fp32")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_fp16_on_a_cpu_is_an_error(device: Literal["auto", "cpu"]) -> None:
    with pytest.raises(UserError, match="fp16, which needs a GPU; on a CPU set it to fp32 or bf16"):
        resolve_plan(device, "fp16")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_plan_decides_the_arithmetic(precision: Literal["fp32", "bf16"], dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(3, 3)
    with Plan("cpu", precision).autocast():
        assert layer(torch.ones(2, 3)).dtype == dtype
    assert layer(torch.ones(2, 3)).dtype == torch.float32
    assert str(Plan("cpu", precision)) == f"cpu {precision}"
