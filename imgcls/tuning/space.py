"""The recipe's `search` section, and the space of a family: searched fields, some only where others have a value."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import product
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from imgcls.errors import UserError
from imgcls.plugins import unknown_name
from imgcls.sections import Section
from imgcls.tuning.ranges import FloatRange, Proposer, Range, Stored, same

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "val/acc": "maximize",
    "val/f1": "maximize",
    "val/loss": "minimize",
    "speed/images_per_s": "maximize",
}
"""What can be searched for, and whether more of it is better."""
DEFAULT_TRIALS = 20
"""Trials of a sweep that is given neither a number of trials nor a time."""
MOST_COMBINATIONS = 100_000
"""Combinations of the fields that others depend on, up to which the points of a space are counted."""
_RANGES: TypeAdapter[dict[str, Range]] = TypeAdapter(dict[str, Range])


class SearchConfig(Section):
    """What a sweep searches, how, and for how long."""

    space: dict[str, Range] = Field(default_factory=dict)
    """field: {type: float | int, low, high, log, step} or {type: choice, values: […]}, with dotted names of the recipe
    such as optim.lr. A range can have when: {other field: value}. Empty: learning rate, batch size and freeze depth."""
    sampler: Literal["tpe", "random", "gp", "cmaes", "nsga2"] = "tpe"
    """How parameters are proposed. tpe: tree-structured Parzen estimators (Bergstra et al. 2011; Watanabe 2023,
    arXiv:2304.11127); random; gp: a Gaussian process (seconds a proposal after some hundred trials); cmaes: CMA-ES
    (Hansen 2016, arXiv:1604.00772), one objective and no choices; nsga2 (Deb et al. 2002), for several objectives and
    some hundred trials."""
    pruner: Literal["median", "hyperband", "halving", "none"] = "median"
    """Which trials end early. median: at an epoch below the median of the earlier trials; hyperband (Li et al. 2016,
    arXiv:1603.06560); halving: successive halving (Li et al. 2018, arXiv:1810.05934); none. With several objectives
    none does, and hyperband and halving are errors."""
    objectives: list[str] = Field(default_factory=lambda: ["val/acc"])
    """What to search for: val/acc, val/f1, val/loss or speed/images_per_s; several give the trials that none
    surpasses in all."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Trials of all families together. null: 20, or, where a `time_limit` is given, as many as fit."""
    time_limit: str | None = None
    """Time after which no trial is begun: 90s, 30m, 2h, 1h30m. Each command counts its own, so that a resumed sweep
    gets it again."""
    allocation: Literal["equal", "leader"] = "equal"
    """How families share the budget. equal: the same number of trials each, or, without a number of trials, the same
    time. leader: so for the first half; the rest goes to the family with the best value."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Processes on this machine, each with trials of its own; auto is the number of GPUs, and 1 on a CPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the proposals. With one worker it repeats the sweep's parameters."""

    @field_validator("space")
    @classmethod
    def _is_a_space(cls, space: dict[str, Range]) -> dict[str, Range]:
        Space(space)
        return space

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in DIRECTIONS:
                raise unknown_name("objective", name, DIRECTIONS)
        if not objectives or len(set(objectives)) < len(objectives):
            raise ValueError(f"objectives is {objectives}; expected at least one, each once")
        return objectives

    @field_validator("time_limit")
    @classmethod
    def _is_a_time(cls, text: str | None) -> str | None:
        if text is not None:
            parse_duration(text)
        return text

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError(
                f"sampler is cmaes with {len(self.objectives)} objectives; it searches for one. Set search.sampler to "
                "nsga2, tpe, gp or random, or leave one objective"
            )
        if len(self.objectives) > 1 and self.pruner in ("hyperband", "halving"):
            raise ValueError(
                f"pruner is {self.pruner} with {len(self.objectives)} objectives, where no trial ends early. Set "
                "search.pruner to none, or leave one objective"
            )
        return self

    @property
    def num_trials(self) -> int | None:
        """Trials of all families together; None for as many as fit into the time."""
        return self.trials if self.trials is not None or self.time_limit is not None else DEFAULT_TRIALS

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds."""
        return None if self.time_limit is None else parse_duration(self.time_limit)

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """One for each objective."""
        return [DIRECTIONS[name] for name in self.objectives]


def parse_duration(text: str) -> float:
    """Seconds of a text such as `90s`, `30m`, `2h` or `1h30m`.

    Raises:
        UserError: the text is none such, or is no time at all.
    """
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip())
    seconds = (
        sum(float(part) * unit for part, unit in zip(found.groups("0"), (3600, 60, 1), strict=True)) if found else 0
    )
    if seconds <= 0:
        raise UserError(f"{text!r} is no time; expected hours, minutes and seconds such as 90s, 30m, 2h or 1h30m")
    return seconds


class Space:
    """The searched fields of one family.

    Args:
        ranges: field -> what it may be.

    Raises:
        UserError: a condition names a field that is not searched, the field itself, a circle, or a value that the
            other field cannot take.
    """

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        for name, item in ranges.items():
            for other, wanted in item.when.items():
                _check_condition(name, other, wanted, ranges)
        self.ranges: dict[str, Range] = _ordered(ranges)
        """field -> what it may be; a field comes after those that its condition names."""

    @classmethod
    def from_json(cls, value: object) -> "Space":
        """The space that `as_json` was taken of.

        Raises:
            UserError: it is none such.
        """
        try:
            return cls(_RANGES.validate_python(value))
        except ValidationError as error:
            raise UserError(f"this is no search space: {error}") from None

    def as_json(self) -> dict[str, Any]:
        """The space as JSON holds it."""
        return {name: item.model_dump(mode="json") for name, item in self.ranges.items()}

    def suggest(self, trial: Proposer) -> dict[str, Any]:
        """Ask an Optuna trial for a value of every field whose condition holds."""
        values: dict[str, Any] = {}
        for name, item in self.ranges.items():
            if _holds(item, values):
                values[name] = item.suggest(trial, name)
        return values

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values whose field is searched and whose condition holds."""
        found: dict[str, Any] = {}
        for name, item in self.ranges.items():
            if name in values and _holds(item, found):
                found[name] = values[name]
        return found

    def problems(self, values: Mapping[str, Any]) -> list[str]:
        """Why the values are no point of the space, and how to widen it; empty where they are one."""
        active = self.active(values)
        found = [f"{name} is not searched" for name in values if name not in self.ranges]
        for name, item in self.ranges.items():
            if name in active:
                problem = item.problem(active[name])
                found += [f"{name} is {json.dumps(active[name], default=str)}; {problem}"] if problem else []
            elif name not in values and _holds(item, active):
                found.append(f"{name} has no value; expected {item.words()}")
        return found

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether the values are a point of the space; fields whose condition does not hold are passed over."""
        return not self.problems(values)

    def store(self, values: Mapping[str, Any]) -> dict[str, Stored]:
        """The values of the active fields as Optuna's database holds them."""
        return {name: self.ranges[name].store(value) for name, value in self.active(values).items()}

    def load(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The values that were stored, in the space's order."""
        return {name: item.load(stored[name]) for name, item in self.ranges.items() if name in stored}

    def cardinality(self) -> int | None:
        """The number of different points; None where there is no end of them, or too many to count."""
        return self._cardinality

    @cached_property
    def _cardinality(self) -> int | None:
        counts = {name: item.count() for name, item in self.ranges.items()}
        if any(count is None for count in counts.values()):
            return None
        sizes = {name: count for name, count in counts.items() if count is not None}
        parents = {other for item in self.ranges.values() for other in item.when}
        if prod(sizes[name] for name in parents) > MOST_COMBINATIONS:
            return None
        leaves = [name for name in self.ranges if name not in parents]
        return sum(
            prod(sizes[name] for name in leaves if _holds(self.ranges[name], values))
            for values in self._combinations([name for name in self.ranges if name in parents])
        )

    def _combinations(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Every different assignment of these fields, without those whose condition does not hold."""
        seen = set()
        for chosen in product(*[list(_values(self.ranges[name])) for name in names]):
            values = self.active(dict(zip(names, chosen, strict=True)))
            key = point(values)
            if key not in seen:
                seen.add(key)
                yield values

    def differences(self, other: object) -> list[str]:
        """What differs from the space that was written as `other`, in words: "there" is the other, "here" this."""
        there = Space.from_json(other).ranges
        found = []
        for name in [*self.ranges, *[name for name in there if name not in self.ranges]]:
            if name not in there:
                found.append(f"{name} is searched here and not there")
            elif name not in self.ranges:
                found.append(f"{name} is searched there and not here")
            elif there[name] != self.ranges[name]:
                found.append(f"{name} is {_words(there[name])} there and {_words(self.ranges[name])} here")
        return found


def point(values: Mapping[str, Any]) -> str:
    """A text that two mappings of values share where they are the same point."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def _values(item: Range) -> Iterator[Any]:
    """The values of a range that has an end."""
    if item.type == "choice":
        yield from item.values
    elif item.type == "int":
        yield from range(item.low, item.top + 1, item.step)
    else:
        count = item.count() or 0
        yield from (item.low + k * (item.step or 0) for k in range(count))


def _wanted(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _holds(item: Range, values: Mapping[str, Any]) -> bool:
    """Whether a field is searched, given the values of those before it."""
    return all(
        other in values and any(same(values[other], value) for value in _wanted(wanted))
        for other, wanted in item.when.items()
    )


def _check_condition(name: str, other: str, wanted: Any, ranges: Mapping[str, Range]) -> None:
    if other == name:
        raise UserError(f"{name}: when names the field itself; expected another searched field")
    if other not in ranges:
        raise unknown_name(f"searched field in {name}'s when:", other, ranges)
    of = ranges[other]
    if isinstance(of, FloatRange) and of.count() is None:
        raise UserError(
            f"{name}: when names {other}, a float range without steps, which hardly ever has a given value; expected a "
            "choice, an int or a float with a step"
        )
    if not _wanted(wanted):
        raise UserError(f"{name}: when lists no value of {other}; expected at least one")
    for value in _wanted(wanted):
        if problem := of.problem(value):
            raise UserError(f"{name}: when expects {other} to be {json.dumps(value)}, which it cannot be: {problem}")


def _ordered(ranges: Mapping[str, Range]) -> dict[str, Range]:
    found: dict[str, Range] = {}
    while len(found) < len(ranges):
        ready = [name for name in ranges if name not in found and all(other in found for other in ranges[name].when)]
        if not ready:
            left = ", ".join(name for name in ranges if name not in found)
            raise UserError(f"the conditions (when) of {left} wait for each other; expected no circle. Leave one out")
        found[ready[0]] = ranges[ready[0]]
    return found


def _words(item: Range) -> str:
    conditions = [f"{other} is {' or '.join(json.dumps(v) for v in _wanted(w))}" for other, w in item.when.items()]
    return item.words() + (f" when {' and '.join(conditions)}" if conditions else "")
