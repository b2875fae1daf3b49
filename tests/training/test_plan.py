"""The plan: what a recipe says of it, which device it is for, and that forced plans train."""

import copy
import re
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch
from imgcls.errors import UserError
from imgcls.models.family import FAMILIES, StagedModel, build
from imgcls.recipe import json_schema, resolve
from imgcls.training.fit import TrainConfig, seed_all
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Forward, Plan, PlanConfig, default_plan, resolve_device
from imgcls.training.trainer import Totals, Trainer

PLANS = [
    Plan("cpu"),
    Plan("cpu", layout="nhwc"),
    Plan("cpu", "bf16", "nhwc", threads=1),
    Plan("cuda", "fp16", "nchw", compile=True),
    Plan("cpu", "bf16", "nhwc", compile=True, threads=12),
]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


def planned(device: Literal["auto", "cpu", "cuda"], **fields: Any) -> Plan:
    config = PlanConfig(**fields)
    return default_plan(resolve_device(device, config), config)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("version", [None, "13.0"])
def test_cuda_without_cuda_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    why = "built without CUDA" if version is None else "no usable NVIDIA GPU or driver"
    with pytest.raises(UserError, match=rf"train\.device is cuda, but .* finds no CUDA device .*{why}"):
        planned("cuda")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_default_is_the_cpu_in_fp32_and_what_is_given_is_taken() -> None:
    threads = torch.get_num_threads()
    assert planned("auto") == Plan("cpu", "fp32", "nhwc", threads=threads)
    assert planned("auto", precision="bf16", layout="nchw") == Plan("cpu", "bf16", threads=threads)
    assert planned("auto", compile=True, threads=3) == Plan("cpu", "fp32", "nhwc", compile=True, threads=3)


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu_the_default_is_the_gpu_in_bf16_or_else_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned("auto") == Plan("cuda", "bf16")
    assert planned("cuda", precision="fp32") == Plan("cuda", "fp32")
    assert planned("cpu").device == "cpu"
    # A GPU of before 2020 only emulates it, which is slow.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert planned("auto") == Plan("cuda", "fp16")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_fp16_on_a_cpu_is_an_error(device: Literal["auto", "cpu"]) -> None:
    with pytest.raises(UserError, match="fp16, which needs a GPU; on a CPU set it to auto, fp32 or bf16"):
        planned(device, precision="fp16")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_plan_decides_the_arithmetic(precision: Literal["fp32", "bf16"], dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(3, 3)
    with Plan("cpu", precision).autocast():
        assert layer(torch.ones(2, 3)).dtype == dtype
    assert layer(torch.ones(2, 3)).dtype == torch.float32


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_plan_goes_through_text_fields_and_a_recipe_unchanged(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan
    assert Plan(**plan.as_dict()) == plan
    again = TrainConfig.model_validate({"plan": plan.as_config()}).plan
    if plan.device == "cpu" and plan.threads is not None:
        assert default_plan("cpu", again) == plan


def test_texts_of_plans_are_short() -> None:
    assert [str(plan) for plan in PLANS[-2:]] == ["cuda fp16 nchw compiled", "cpu bf16 nhwc compiled threads=12"]


@pytest.mark.parametrize("text", ["", "tpu bf16", "cpu bf17", "cpu threads=", "bf16 cpu"])
def test_what_is_no_plan_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"found the plan {text!r}; expected one such as cpu bf16 nhwc")):
        Plan.parse(text)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("auto", "auto"),
        ({}, "auto"),
        ({"precision": "auto"}, "auto"),
        ({"precision": "bf16"}, {"precision": "bf16", "layout": "auto", "compile": "auto", "threads": "auto"}),
    ],
)
def test_a_plan_that_is_all_auto_is_shown_in_one_word(given: Any, shown: Any) -> None:
    config = TrainConfig.model_validate({"plan": given})
    assert config.model_dump(mode="json")["plan"] == shown
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "plan",
    [
        *(None, 3, "bf16", ["bf16"], {"presision": "bf16"}, {"precision": "fp64"}, {"compile": "yes"}),
        *({"threads": threads} for threads in (0, True, 5000, 1.5)),
    ],
)
def test_plans_that_cannot_be_are_refused(plan: object) -> None:
    with pytest.raises(ValidationError, match="plan"):
        TrainConfig.model_validate({"plan": plan})


def test_fields_of_the_plan_are_typed_by_their_dotted_names_over_auto_and_over_others() -> None:
    whole = resolve({"train": {"plan": "auto"}}, texts={"train.plan.precision": "bf16", "train.plan.threads": "2"})
    assert whole.recipe.train.plan == PlanConfig(precision="bf16", threads=2)
    part = resolve({"train": {"plan": {"layout": "nchw"}}}, texts={"train.plan.compile": "false"})
    assert part.recipe.train.plan == PlanConfig(layout="nchw", compile=False)
    back = resolve({"train": {"plan": {"layout": "nchw"}}}, texts={"train.plan": "auto"})
    assert back.recipe.train.plan == PlanConfig()
    with pytest.raises(UserError, match=r"unknown field 'train\.plan\.layuot'.*Did you mean 'train\.plan\.layout'\?"):
        resolve(None, texts={"train.plan.layuot": "nchw"})


def test_the_schema_leads_to_the_fields_of_the_plan() -> None:
    schema = json_schema()
    word, group = schema["properties"]["train"]["properties"]["plan"]["anyOf"]
    assert word["const"] == "auto"
    fields = schema["$defs"][group["$ref"].removeprefix("#/$defs/")]["properties"]
    assert list(fields) == ["precision", "layout", "compile", "threads"]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with Plan("cpu", threads=before + 1).threaded():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), Plan("cpu", threads=before + 1).threaded():
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_the_layout_is_that_of_weights_and_images() -> None:
    for plan, nhwc in ((Plan("cpu"), False), (Plan("cpu", layout="nhwc"), True)):
        layer = torch.nn.Conv2d(3, 4, 3)
        plan.place(layer)
        images = plan.arrange(torch.ones(2, 5, 6, 3).permute(0, 3, 1, 2))
        for tensor in (layer.weight, images):
            assert tensor.is_contiguous(memory_format=torch.channels_last) is nhwc
            assert tensor.is_contiguous() is not nhwc


def trainer_of(model: StagedModel, plan: Plan, *, size: int, batch_size: int) -> tuple[Trainer, Batch]:
    steps = Preprocessing(3, size, (0.5,) * 3, (0.25,) * 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(batch_size) % 3
    trainer = Trainer(
        model, OptimConfig(), steps, plan, num_steps=9, batch_size=batch_size, class_weights=None, mixing=None
    )
    return trainer, Batch(images, labels, 0, len(labels))


def network(family: str, size: int, **fields: Any) -> StagedModel:
    seed_all(0)
    config = FAMILIES.get(family).config.model_validate({"family": family, **fields})
    return build(config, num_classes=3, in_channels=3, image_size=size)


def stepped(model: StagedModel, plan: Plan, *, size: int, num_steps: int = 2) -> list[float]:
    """The losses of so many steps."""
    trainer, batch = trainer_of(model, plan, size=size, batch_size=6)
    losses = []
    for _ in range(num_steps):
        totals = Totals("cpu")
        torch.manual_seed(0)
        trainer.step(batch, steps_per_epoch=9, totals=totals)
        losses.append(totals.means()[0])
    return losses


@pytest.mark.parametrize(
    ("family", "size"),
    [
        *(("quizdnn", 16), ("plaincnn", 16), ("separable", 16), ("mobilenet_v3_small", 32)),
        pytest.param("resnet18", 32, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 32, marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224", 32, marks=pytest.mark.slow),
    ],
)
def test_every_eager_plan_trains_every_kind_of_family_alike(family: str, size: int) -> None:
    model = network(family, size)
    right = stepped(copy.deepcopy(model), Plan("cpu"), size=size)
    for plan in (Plan("cpu", layout="nhwc"), Plan("cpu", "bf16"), Plan("cpu", "bf16", "nhwc", threads=1)):
        trained = copy.deepcopy(model)
        tolerance = 0.02 if plan.precision == "fp32" else 0.15
        assert stepped(trained, plan, size=size) == pytest.approx(right, abs=tolerance), plan
        assert {tensor.dtype for tensor in trained.parameters()} == {torch.float32}
        assert list(trained.state_dict()) == list(model.state_dict())


def test_a_plan_repeats_bit_by_bit() -> None:
    plan = Plan("cpu", "bf16", "nhwc")
    assert stepped(network("plaincnn", 16), plan, size=16) == stepped(network("plaincnn", 16), plan, size=16)


class Recorder:
    """In place of torch.compile: notes the batches that go through what it gives."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, model: StagedModel, *, dynamic: bool) -> Any:
        assert not dynamic

        def compiled(inputs: torch.Tensor) -> torch.Tensor:
            self.batches.append(len(inputs))
            logits: torch.Tensor = model(inputs)
            return logits

        return compiled


def test_only_whole_batches_of_the_training_go_through_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(torch, "compile", recorder)
    model = network("plaincnn", 16)
    forward = Forward(model, Plan("cpu", compile=True), usual=lambda: 4)
    for count in (4, 3, 4):
        forward(torch.rand(count, 3, 16, 16))
    model.eval()
    forward(torch.rand(4, 3, 16, 16))
    assert recorder.batches == [4, 4]
    Forward(model, Plan("cpu"), usual=lambda: 4)(torch.rand(4, 3, 16, 16))
    assert recorder.batches == [4, 4]


@pytest.mark.parametrize(("micro_batch", "expected"), [(None, [8]), (4, [4, 4]), (3, [3, 3]), (6, [4, 4])])
def test_the_parts_of_a_batch_go_through_the_compiler(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None, expected: list[int]
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(torch, "compile", recorder)
    trainer = Trainer(
        network("plaincnn", 16), OptimConfig(), Preprocessing(3, 16, (0.5,) * 3, (0.5,) * 3),
        Plan("cpu", compile=True), num_steps=2, batch_size=8, class_weights=None, mixing=None, micro_batch=micro_batch,
    )  # fmt: skip
    images = torch.zeros((8, 16, 16, 3), dtype=torch.uint8)
    trainer.step(Batch(images, torch.arange(8) % 2, 0, 8), steps_per_epoch=2, totals=Totals("cpu"))
    assert recorder.batches == expected


@pytest.mark.slow
def test_a_compiled_training_is_as_an_eager_one_through_a_thaw_and_leaves_the_names_as_they_are(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = network("plaincnn", 16, num_blocks=2, channels=4, dropout=0)
    model.freeze(1)
    found = []
    for plan in (Plan("cpu"), Plan("cpu", compile=True)):
        trained = copy.deepcopy(model)
        trainer, batch = trainer_of(trained, plan, size=16, batch_size=6)
        losses = []
        for step in range(4):
            if step == 2:
                trainer.thaw(0)
            totals = Totals("cpu")
            trainer.step(batch, steps_per_epoch=9, totals=totals)
            losses.append(totals.means()[0])
        assert list(trained.state_dict()) == list(model.state_dict())
        found.append(losses)
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert capfd.readouterr().err == ""
