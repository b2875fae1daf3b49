"""The execution plan: where, in which precision and memory layout, and with how many threads a model is trained."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, SerializerFunctionWrapHandler, field_validator, model_serializer
from torch import nn

from imgcls.errors import UserError
from imgcls.sections import Section

AUTO = "auto"
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["nchw", "nhwc"]
_COMPILED, _THREADS = "compiled", "threads="


class PlanConfig(Section):
    """What of the execution plan is given; what is `auto` is measured where the training is long enough to gain."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and the backward pass; the weights stay fp32 (Micikevicius et al. 2017,
    arXiv:1710.03740). bf16 is brain floating point (Kalamkar et al. 2019, arXiv:1905.12322); fp16 needs a GPU."""
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    """Order of images and convolutions in memory: nchw is torch's default, nhwc its channels_last."""
    compile: Literal["auto"] | bool = "auto"
    """Whether the training's forward and backward pass go through torch.compile; auto tries it only where the whole
    training is long enough to win back what compiling costs. Evaluation is never compiled."""
    threads: Literal["auto"] | int = "auto"
    """Threads that torch computes with on a CPU; auto is torch's own number (OMP_NUM_THREADS is honoured), or a half or
    a quarter of it where that is measured to be faster."""

    @field_validator("threads")
    @classmethod
    def _some_threads(cls, threads: int | str) -> int | str:
        if isinstance(threads, bool) or (isinstance(threads, int) and not 1 <= threads <= 4096):
            raise ValueError("expected auto or a number from 1 to 4096")
        return threads

    @model_serializer(mode="wrap")
    def _in_one_word(self, handler: SerializerFunctionWrapHandler) -> Any:
        values = handler(self)
        return AUTO if set(values.values()) == {AUTO} else values


def _fields(value: Any) -> Any:
    """`auto` as the fields it stands for."""
    if value == AUTO:
        return {}
    if not isinstance(value, Mapping | PlanConfig):
        names = ", ".join(PlanConfig.model_fields)
        raise ValueError(f"expected auto, or values of some of {names}, such as {{precision: bf16}}")
    return value


PlanField = Annotated[PlanConfig, BeforeValidator(_fields, json_schema_input_type=Literal["auto"] | PlanConfig)]
"""A recipe's field that takes `auto`, or a mapping with some of the plan's fields."""


@dataclass(frozen=True)
class Plan:
    """How the arithmetic of a training is done.

    Attributes:
        device: `cpu` or `cuda`.
        precision: of the forward and backward pass; weights stay fp32.
        layout: order of images and convolutions in memory.
        compile: whether training goes through torch.compile.
        threads: of torch on a CPU; None leaves torch's number as it is.
    """

    device: str
    precision: Precision = "fp32"
    layout: Layout = "nchw"
    compile: bool = False
    threads: int | None = None

    def __str__(self) -> str:
        words = [self.device, self.precision, self.layout]
        words += [_COMPILED] * self.compile + ([] if self.threads is None else [f"{_THREADS}{self.threads}"])
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`.

        Raises:
            UserError: the text is no plan.
        """
        device, *words = text.split() or [""]
        fields: dict[str, Any] = {}
        for word in words:
            if word == _COMPILED:
                fields["compile"] = True
            elif word.startswith(_THREADS) and word.removeprefix(_THREADS).isdecimal():
                fields["threads"] = int(word.removeprefix(_THREADS))
            elif word in ("fp32", "bf16", "fp16"):
                fields["precision"] = word
            elif word in ("nchw", "nhwc"):
                fields["layout"] = word
            else:
                device = ""
        if device not in ("cpu", "cuda"):
            raise UserError(f"found the plan {text!r}; expected one such as {cls('cpu', 'bf16', 'nhwc', True, 2)}.")
        return cls(device, **fields)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; `Plan(**fields)` is the inverse."""
        return asdict(self)

    def as_config(self) -> dict[str, Any]:
        """What a recipe's `train.plan` says to get this plan again."""
        fields = self.as_dict()
        del fields["device"]
        return {**fields, "threads": fields["threads"] or AUTO}

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """A context in which torch computes in the plan's precision."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(self.device, dtype=dtype, enabled=self.precision != "fp32"):
            yield

    @contextlib.contextmanager
    def threaded(self) -> Iterator[None]:
        """A context in which torch computes with the plan's number of threads; torch's own number is put back after."""
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def place(self, model: nn.Module) -> None:
        """Move the model to the plan's device and layout."""
        model.to(self.device)
        model.to(memory_format=self._memory_format)

    def arrange(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in the plan's layout; those that have it are not copied."""
        return images.contiguous(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "nhwc" else torch.contiguous_format


class Forward:
    """The forward pass of a training by a plan: eager or compiled.

    A compiled one shares the model's weights and stands apart from it, so that state dicts and evaluation know nothing
    of it. Only batches of the usual size go through it: an epoch's smaller last batch is computed eagerly, for
    compiling another shape would cost more than it saves.

    Args:
        model: the network.
        plan: how to compute.
        usual: gives how many images usually go through the network at a time; where that changes, it is compiled anew.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, usual: Callable[[], int]) -> None:
        self._model, self._plan, self._usual = model, plan, usual
        self._compiled: Any = torch.compile(model, dynamic=False) if plan.compile else None
        self._is_new = True

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) inputs to (B, num_classes) logits, in the plan's precision."""
        with self._plan.autocast():
            if self._compiled is None or not self._model.training or len(inputs) != self._usual():
                logits: torch.Tensor = self._model(inputs)
                return logits
            with _quiet() if self._is_new else contextlib.nullcontext():
                logits = self._compiled(inputs)
            self._is_new = False
            return logits

    def thawed(self) -> None:
        """Tell that the model has changed, so that the next batch is compiled anew."""
        self._is_new = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which the compiler's warnings, which are about itself or a GPU that is not there, are not shown."""
    dropping = logging.getLogger("torch.utils.cpp_extension")
    before = dropping.level
    dropping.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            dropping.setLevel(before)


def resolve_device(device: Device, config: PlanConfig) -> str:
    """The device for this machine, `cpu` or `cuda`. `auto` is a GPU where there is one.

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
    if chosen == "cpu" and config.precision == "fp16":
        raise UserError("train.plan.precision is fp16, which needs a GPU; on a CPU set it to auto, fp32 or bf16.")
    return chosen


def default_plan(device: str, config: PlanConfig) -> Plan:
    """The plan without measuring: what is given; for what is auto fp32 in nhwc, on a GPU half precision in nchw.

    Batches come as nhwc, and on CPUs no network was found that another order makes clearly faster.

    Args:
        device: `cpu` or `cuda`.
        config: the recipe's `train.plan`.
    """
    half: Precision = "fp32" if device == "cpu" else half_precision(device)
    usual: Layout = "nhwc" if device == "cpu" else "nchw"
    return Plan(
        device,
        half if config.precision == "auto" else config.precision,
        usual if config.layout == "auto" else config.layout,
        config.compile is True,
        (torch.get_num_threads() if device == "cpu" else None) if config.threads == "auto" else config.threads,
    )


def half_precision(device: str) -> Precision:
    """The half precision of a device: bf16, or fp16 on a GPU that only emulates it."""
    return "bf16" if device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
