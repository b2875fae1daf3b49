"""Where and in which precision a model runs, resolved once and recorded as the run's plan."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from imgcls.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Plan:
    """How the arithmetic is done.

    Attributes:
        device: `cpu` or `cuda`.
        precision: of the forward pass; weights stay fp32.
    """

    device: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.device} {self.precision}"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """A context in which torch computes in the plan's precision."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(self.device, dtype=dtype, enabled=self.precision != "fp32"):
            yield


def resolve_plan(device: Literal["auto", "cpu", "cuda"], precision: Literal["auto", "fp32", "bf16", "fp16"]) -> Plan:
    """The plan for this machine. `auto` is a GPU where there is one, and there bf16 (fp16 where it lacks it).

    Raises:
        UserError: CUDA is asked for and not there, or fp16 is asked for on a CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "no usable NVIDIA GPU or driver"
        raise UserError(
            f"train.device is cuda, but torch {torch.__version__} finds no CUDA device ({why}). Set "
            "train.device to auto or cpu, or mend the driver (nvidia-smi should list a GPU)."
        )
    chosen = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cpu" and precision == "fp16":
        raise UserError("train.precision is fp16, which needs a GPU; on a CPU set it to fp32 or bf16.")
    if precision != "auto":
        return Plan(chosen, precision)
    if chosen == "cpu":
        return Plan(chosen, "fp32")
    return Plan(chosen, "bf16" if torch.cuda.is_bf16_supported() else "fp16")
