"""Choosing a plan: what measuring leaves as it was, what it costs, and what becomes of candidates that fail."""

import copy
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.training import choose, measure
from imgcls.training.choose import Choice, choose_plan
from imgcls.training.fit import seed_all
from imgcls.training.measure import Job, Measured
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan, PlanConfig
from imgcls.training.trainer import Trainer

LONG = 10**7
"""Steps of a training that is worth measuring."""
THREADS = torch.get_num_threads()
EAGER = PlanConfig(compile=False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "MOST_S", 0.3)


def job(model: nn.Module | None = None, **changes: Any) -> Job:
    if model is None:
        seed_all(0)
        config = PlainCNNConfig(num_blocks=1, channels=4, dropout=0.3)
        model = build_plaincnn(config, num_classes=3, in_channels=3, image_size=64)
    steps = Preprocessing(3, 16, (0.5,) * 3, (0.25,) * 3)
    usual = Job(model, OptimConfig(), steps, image_size=16, batch_size=12, num_classes=3, num_steps=LONG)
    return replace(usual, **changes)


Speeds = dict[str, float | Exception]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speeds], list[str]]:
    """Gives every step of a plan (by its text, threads left out) so many seconds of a clock that stands still
    otherwise, or an error; returns the plans in the order in which their trainers were made."""

    def patch(by_plan: Speeds) -> list[str]:
        clock, made = [0.0], []

        class Timed(Trainer):
            def __init__(self, model: nn.Module, optim: OptimConfig, steps: Preprocessing, plan: Plan, **k: Any):
                made.append(str(plan))
                self.speed = by_plan[str(replace(plan, threads=None))]
                super().__init__(model, optim, steps, replace(plan, compile=False), **k)

            def step(self, *given: Any, **named: Any) -> bool:
                if isinstance(self.speed, Exception):
                    raise self.speed
                clock[0] += self.speed
                return super().step(*given, **named)

        monkeypatch.setattr(measure, "Trainer", Timed)
        monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
        return made

    return patch


SPEEDS: Speeds = {"cpu fp32 nhwc": 0.006, "cpu bf16 nhwc": 0.003, "cpu fp32 nchw": 0.009, "cpu bf16 nchw": 0.005}


def test_measuring_leaves_weights_buffers_and_generators_bit_by_bit_as_they_were() -> None:
    asked = job()
    asked.model.eval()
    before = copy.deepcopy(asked.model.state_dict())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    drawn = random.random(), np.random.rand(), torch.rand(())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    choice = choose_plan(asked, "cpu", EAGER)
    assert len(choice.rows) >= 2
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn
    after = asked.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.grad for p in asked.model.parameters()] == [None] * len(list(asked.model.parameters()))
    assert not any(module.training for module in asked.model.modules())
    assert all(p.is_contiguous() for p in asked.model.parameters())
    assert torch.get_num_threads() == THREADS


def test_the_fastest_is_taken_and_the_line_says_by_how_much(speeds: Callable[[Speeds], list[str]]) -> None:
    speeds(SPEEDS)
    choice = choose_plan(job(), "cpu", EAGER)
    assert choice.plan == Plan("cpu", "bf16", "nhwc", threads=THREADS)
    assert [row.plan for row in choice.rows][:4] == [f"{name} threads={THREADS}" for name in SPEEDS]
    assert choice.rows[0].images_per_s == pytest.approx(12 / 0.006)
    assert choice.lines[0].startswith(
        f"plan: cpu bf16 nhwc threads={THREADS}, 2.0 times as fast as cpu fp32 nhwc threads={THREADS} (4,000 against "
        "2,000 images/s, measured in "
    )


def test_noise_is_no_reason_to_leave_the_default(speeds: Callable[[Speeds], list[str]]) -> None:
    speeds({name: 0.009 - 0.0001 * k for k, name in enumerate(SPEEDS)})
    assert choose_plan(job(), "cpu", EAGER).plan == Plan("cpu", layout="nhwc", threads=THREADS)


@pytest.mark.parametrize(
    ("config", "candidates"),
    [
        (PlanConfig(compile=False, precision="fp32"), ["cpu fp32 nhwc", "cpu fp32 nchw"]),
        (PlanConfig(compile=False, precision="bf16"), ["cpu bf16 nhwc", "cpu bf16 nchw"]),
        (PlanConfig(compile=False, layout="nchw"), ["cpu fp32 nchw", "cpu bf16 nchw"]),
    ],
    ids=str,
)
def test_what_is_given_is_taken_as_it_is(
    config: PlanConfig, candidates: list[str], speeds: Callable[[Speeds], list[str]]
) -> None:
    speeds(SPEEDS)
    found = choose_plan(job(), "cpu", config.model_copy(update={"threads": 1}))
    assert [row.plan for row in found.rows] == [f"{name} threads=1" for name in candidates]
    assert str(found.plan) in {row.plan for row in found.rows}


def test_a_plan_that_is_given_whole_is_not_measured(speeds: Callable[[Speeds], list[str]]) -> None:
    made = speeds({})
    config = PlanConfig(precision="bf16", layout="nchw", compile=False, threads=3)
    assert choose_plan(job(), "cpu", config) == Choice(Plan("cpu", "bf16", "nchw", threads=3))
    assert made == []


def test_a_short_training_costs_one_step_and_takes_the_default(speeds: Callable[[Speeds], list[str]]) -> None:
    made = speeds(SPEEDS)
    begin = time.perf_counter()
    assert choose_plan(job(num_steps=3000), "cpu", PlanConfig()) == Choice(Plan("cpu", layout="nhwc", threads=THREADS))
    assert len(made) == 1
    assert time.perf_counter() - begin == pytest.approx(0.006)


def test_what_was_measured_is_remembered_by_network_shape_and_freezing(
    speeds: Callable[[Speeds], list[str]],
) -> None:
    made = speeds(SPEEDS)
    first = choose_plan(job(), "cpu", EAGER)
    count = len(made)
    again = choose_plan(job(num_steps=3), "cpu", EAGER)
    assert len(made) == count
    assert (again.plan, again.rows) == (first.plan, first.rows)
    assert again.lines[0].endswith("as measured before)")
    frozen = job()
    frozen.model.freeze(1)  # type: ignore[operator]
    for other in (frozen, job(batch_size=10), job(optim=OptimConfig(optimizer="sgd"))):
        choose_plan(other, "cpu", EAGER)
        assert len(made) > count
        count = len(made)


def test_a_cache_that_cannot_be_written_costs_time_only(
    speeds: Callable[[Speeds], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = speeds(SPEEDS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "file" / "cache"))
    assert choose_plan(job(), "cpu", EAGER).plan == Plan("cpu", "bf16", "nhwc", threads=THREADS)
    count = len(made)
    choose_plan(job(), "cpu", EAGER)
    assert len(made) > count


def test_a_candidate_that_fails_is_left_out_and_told(speeds: Callable[[Speeds], list[str]]) -> None:
    speeds({**SPEEDS, "cpu bf16 nhwc": RuntimeError("no such kernel\nand a trace")})
    choice = choose_plan(job(), "cpu", EAGER)
    assert choice.plan == Plan("cpu", "bf16", "nchw", threads=THREADS)
    told = f"plan: cpu bf16 nhwc threads={THREADS} is left out: it failed: RuntimeError: no such kernel"
    assert choice.lines[0] == told
    assert math.isnan(choice.rows[1].images_per_s)


def test_where_all_fail_the_training_begins_with_the_default(speeds: Callable[[Speeds], list[str]]) -> None:
    broken: Speeds = dict.fromkeys(SPEEDS, RuntimeError("broken"))
    speeds(broken)
    assert choose_plan(job(), "cpu", PlanConfig()).plan == Plan("cpu", layout="nhwc", threads=THREADS)


class Rounded(nn.Module):
    """A classifier that goes wrong in bf16."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(16 * 16 * 3, 3), factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits if logits.dtype == torch.float32 else logits * self.factor


@pytest.mark.parametrize(
    ("factor", "why"), [(1e3, r"its loss is [\d.]+ where [\d.]+ is right$"), (math.nan, "is nan$")]
)
def test_half_precision_that_gives_another_loss_is_left_out(
    factor: float, why: str, speeds: Callable[[Speeds], list[str]]
) -> None:
    speeds(SPEEDS)
    seed_all(0)
    choice = choose_plan(job(Rounded(factor)), "cpu", EAGER)
    assert choice.plan == Plan("cpu", "fp32", "nhwc", threads=THREADS)
    assert len(choice.lines) == 3
    for line in choice.lines[:2]:
        assert re.search("is left out: it failed: .*" + why, line)


class Slow(Rounded):
    """Every forward pass takes a tenth of a second."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return super().forward(images)


@pytest.mark.slow
def test_the_budget_holds_for_a_slow_network_and_what_it_was_too_short_for_is_not_kept(tmp_path: Path) -> None:
    begin = time.perf_counter()
    choice = choose_plan(job(Slow(1)), "cpu", EAGER)
    # Two steps to predict, and the budget, which the least of three steps that a candidate takes may exceed.
    assert time.perf_counter() - begin < 0.2 + 0.3 + 0.7
    assert [row.note for row in choice.rows[1:]] == ["no time was left"] * 3
    assert choice.lines[0].startswith(f"plan: cpu fp32 nhwc threads={THREADS}; no time was left to measure others (")
    assert not list((tmp_path / "cache").glob("plans/*/rows.json"))


@pytest.mark.parametrize(("fast", "halved"), [("threads=4", []), ("threads=2", ["threads=4", "threads=2"])])
def test_fewer_threads_are_tried_as_long_as_they_are_faster(
    fast: str, halved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda _number: None)
    rates = {"threads=8": 100.0, "threads=4": 110.0 if halved else 90.0, "threads=2": 130.0, "threads=1": 100.0}

    def measured(bench: Any, plan: Plan, *, seconds: float) -> Measured:
        assert seconds > 0
        bench._step_s = 0.001
        return Measured(str(plan), rates[str(plan).split()[-1]], 1.0, 0.0, 3)

    monkeypatch.setattr(measure.Bench, "measure", measured)
    choice = choose_plan(job(), "cpu", PlanConfig(precision="fp32", layout="nhwc", compile=False))
    assert choice.plan.threads == (2 if halved else 8)
    assert fast in [row.plan.split()[-1] for row in choice.rows]


GIVEN = {"precision": "fp32", "layout": "nhwc", "threads": 1}


@pytest.mark.parametrize(
    ("compiled_s", "num_steps", "compiles"),
    [(0.002, LONG, True), (0.0059, LONG, False), (0.002, 60_000, False)],
    ids=["pays", "not faster", "too short to try"],
)
def test_compiling_is_chosen_where_it_pays(
    compiled_s: float, num_steps: int, compiles: bool, speeds: Callable[[Speeds], list[str]]
) -> None:
    made = speeds({"cpu fp32 nhwc": 0.006, "cpu fp32 nhwc compiled": compiled_s})
    choice = choose_plan(job(num_steps=num_steps), "cpu", PlanConfig.model_validate(GIVEN))
    assert choice.plan == Plan("cpu", "fp32", "nhwc", compile=compiles, threads=1)
    assert (f"{Plan('cpu', 'fp32', 'nhwc', True, 1)}" in made) is (num_steps == LONG)
    if num_steps == LONG:
        assert ("compiling pays (" if compiles else "compiling would not pay (") in choice.lines[-1]


@pytest.mark.parametrize("asked", [True, "auto"])
def test_where_the_compiler_fails_the_training_is_eager_and_says_so(
    asked: Any, speeds: Callable[[Speeds], list[str]]
) -> None:
    speeds({"cpu fp32 nhwc": 0.006, "cpu fp32 nhwc compiled": RuntimeError("no C++ compiler")})
    choice = choose_plan(job(), "cpu", PlanConfig.model_validate({**GIVEN, "compile": asked}))
    assert choice.plan == Plan("cpu", "fp32", "nhwc", threads=1)
    assert choice.lines == (
        "plan: cpu fp32 nhwc compiled threads=1 is left out: it failed: RuntimeError: no C++ compiler",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "choose_plan(job(), 'cpu', PlanConfig.model_validate({**GIVEN, 'compile': True}))",
        "given_plan(job(), Plan('cpu', 'fp32', 'nhwc', compile=True, threads=1))",
    ],
)
def test_a_machine_without_a_compiler_trains_eagerly_and_says_so(tmp_path: Path, call: str) -> None:
    program = (
        "from tests.training.test_choose import GIVEN, job\n"
        "from imgcls.training.choose import choose_plan, given_plan\n"
        "from imgcls.training.plan import Plan, PlanConfig\n"
        f"choice = {call}\n"
        "print(choice.plan, *choice.lines, sep='\\n')\n"
    )
    root = Path(__file__).parents[2]
    surroundings = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=root, env=surroundings, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    plan, *lines = done.stdout.splitlines()
    assert plan == "cpu fp32 nhwc threads=1"
    assert len(lines) == 1
    assert re.match(r"plan: cpu fp32 nhwc compiled threads=1 is left out: it failed: .*[Cc]ompiler", lines[0])
    assert done.stderr == ""


@pytest.mark.slow
def test_a_compiled_plan_that_is_given_is_tried_on_a_copy_and_taken(capfd: pytest.CaptureFixture[str]) -> None:
    choice = choose_plan(job(), "cpu", PlanConfig.model_validate({**GIVEN, "compile": True}))
    assert (choice.lines, [row.note for row in choice.rows]) == ((), [""])
    assert choice.plan == Plan("cpu", "fp32", "nhwc", compile=True, threads=1)
    assert choice.rows[0].compile_s > 0
    assert capfd.readouterr().err == ""
