"""What a profile's figures mean: the table, what holds the training up, and the setting that would help."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from imgcls.training.throughput import Rates

GOOD = 0.95
"""Share of min(compute, data) from which on the loop itself costs nothing worth mending."""

Bottleneck = Literal["compute", "data", "overlap", "tracking"]


@dataclass(frozen=True)
class Facts:
    """What a profile was made of.

    Attributes:
        device: `cpu` or `cuda`.
        plan: the execution plan, as it is written.
        precision: of the plan.
        cores: that this process may use.
        num_workers: processes that make batches; 0 makes them in the training process.
        decodes: images are decoded anew in every epoch.
        batch_size: images a step.
        images_per_epoch: training images.
        steps_per_part: batches of the real loop in each turn.
    """

    device: str
    plan: str
    precision: str
    cores: int
    num_workers: int
    decodes: bool
    batch_size: int
    images_per_epoch: int
    steps_per_part: int


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        facts: what of.
        turns: compute, data and the loop, measured one after the other, again and again.
        overhead_s: seconds once an epoch for checkpoints and tracking, of each turn; they are part of `turns`' loop.
        evaluation_images_per_s: validation images, of each turn; no part of `turns`.
    """

    facts: Facts
    turns: Sequence[Rates]
    overhead_s: Sequence[float]
    evaluation_images_per_s: Sequence[float]

    def middle(self, rate: Callable[[Rates], float]) -> float:
        """The median over the turns."""
        return median(rate(turn) for turn in self.turns)

    @property
    def ratios(self) -> list[float]:
        """loop / min(compute, data) of each turn, smallest first."""
        return sorted(turn.loop / turn.bound for turn in self.turns)

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return median(self.ratios)

    @property
    def serial_ratio(self) -> float:
        """The median of loop / (1 / (1 / compute + 1 / data)): how much is lost beside making batches in turn."""
        return self.middle(lambda turn: turn.loop / turn.serial_bound)

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch without its evaluation."""
        return self.facts.images_per_epoch / self.middle(lambda turn: turn.loop)


@dataclass(frozen=True)
class Diagnosis:
    """What holds a training up.

    Attributes:
        bottleneck: compute, data, overlap (each waits for the other) or tracking (checkpoints and the log).
        setting: the field of the recipe, or the variable, that would help most.
        advice: both in a sentence.
    """

    bottleneck: Bottleneck
    setting: str
    advice: str


def diagnose(profile: Profile) -> Diagnosis:
    """Name the bottleneck and the setting that would help."""
    facts = profile.facts
    if profile.middle(lambda turn: turn.data) < profile.middle(lambda turn: turn.compute):
        return _slow_data(facts, "data", "making batches takes longer than training on them")
    share = median(profile.overhead_s) / profile.epoch_s
    if share > max(1 - GOOD, 1 - profile.ratio - share):
        return Diagnosis(
            "tracking",
            "train.output_dir",
            f"checkpoints and tracking take {share:.0%} of an epoch: put train.output_dir on a faster disk, and "
            "MLFLOW_TRACKING_URI on a store that is nearer; with tiny data sets this does not matter",
        )
    if profile.ratio >= GOOD:
        return _slow_compute(facts)
    return _slow_data(facts, "overlap", "the network waits while batches are made")


def _slow_data(facts: Facts, bottleneck: Bottleneck, what: str) -> Diagnosis:
    if facts.decodes:
        return Diagnosis(
            bottleneck,
            "data.store_budget",
            f"{what}, and images are decoded anew in every epoch: raise data.store_budget or free disk space, so that "
            "they are kept decoded",
        )
    most = facts.cores - 1 if facts.device == "cuda" else facts.cores // 2
    if facts.num_workers < most:
        more = min(most, max(1, 2 * facts.num_workers))
        return Diagnosis(
            bottleneck, "data.num_workers", f"{what}: try data.num_workers {more} (now {facts.num_workers})"
        )
    if bottleneck == "overlap" and facts.num_workers:
        return Diagnosis(bottleneck, "data.prefetch", f"{what}: raise data.prefetch, so that more of them lie ready")
    return Diagnosis(
        bottleneck,
        "augment.preset",
        f"{what}, and {facts.cores} cores have no more to give: take a lighter augment.preset",
    )


def _slow_compute(facts: Facts) -> Diagnosis:
    what = "the network itself takes the time"
    if facts.precision == "fp32":
        return Diagnosis("compute", "train.plan", f"{what}: try train.plan.precision bf16 (the plan is {facts.plan})")
    return Diagnosis(
        "compute",
        "train.batch_size",
        f"{what}, which is as it should be (the plan is {facts.plan}): see imgcls batch-find for train.batch_size, or "
        "lower augment.image_size",
    )


def as_text(profile: Profile) -> str:
    """The table for a terminal."""
    low, *_, high = [profile.ratios[0], *profile.ratios]
    compute, data, loop = (
        profile.middle(lambda turn: turn.compute),
        profile.middle(lambda turn: turn.data),
        profile.middle(lambda turn: turn.loop),
    )
    facts = profile.facts
    lines = [
        f"{'':<42} images/s",
        f"{'(a) compute alone, on one batch':<42} {compute:>8,.0f}",
        f"{'(b) data alone, to the input':<42} {data:>8,.0f}",
        f"{'(c) the real loop, tracked':<42} {loop:>8,.0f}",
        f"{'    evaluation, apart from it':<42} {median(profile.evaluation_images_per_s):>8,.0f}",
        f"(c) / min(a, b) = {profile.ratio:.3f} ({low:.3f} to {high:.3f} in {len(profile.turns)} turns)",
    ]
    if facts.num_workers == 0:
        lines.append(
            f"(c) / (1 / (1/a + 1/b)) = {profile.serial_ratio:.3f}: no process makes batches, so data and compute take "
            "turns"
        )
    overhead = median(profile.overhead_s)
    lines.append(
        f"an epoch of {facts.images_per_epoch:,} images: {profile.epoch_s:,.1f} s, {overhead:.2f} s of it for "
        f"checkpoints and tracking; measured on {facts.steps_per_part:,} batches of {facts.batch_size} a turn"
    )
    return "\n".join(lines)


def metrics(profile: Profile) -> dict[str, float]:
    """The figures by name, as they are logged and printed as JSON."""
    return {
        "compute_images_per_s": profile.middle(lambda turn: turn.compute),
        "data_images_per_s": profile.middle(lambda turn: turn.data),
        "loop_images_per_s": profile.middle(lambda turn: turn.loop),
        "evaluation_images_per_s": median(profile.evaluation_images_per_s),
        "ratio": profile.ratio,
        "serial_ratio": profile.serial_ratio,
        "epoch_s": profile.epoch_s,
        "overhead_s": median(profile.overhead_s),
    }


def as_json(profile: Profile, diagnosis: Diagnosis) -> dict[str, Any]:
    """All of it, JSON-ready."""
    turns = [
        {**asdict(turn), "overhead_s": overhead, "evaluation_images_per_s": evaluation}
        for turn, overhead, evaluation in zip(
            profile.turns, profile.overhead_s, profile.evaluation_images_per_s, strict=True
        )
    ]
    return {**metrics(profile), **asdict(diagnosis), **asdict(profile.facts), "turns": turns}
