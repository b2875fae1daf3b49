"""What one searched field may be: a range of numbers or a list of values, as a recipe writes it."""

import json
import math
from decimal import Decimal
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from imgcls.sections import Section

Stored = str | int | float
"""What Optuna's database holds of a value."""


class Proposer(Protocol):
    """What a range needs of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        """A number in low..high."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        """A whole number in low..high."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""


class Conditional(Section):
    """What every searched field can have."""

    when: dict[str, JsonValue] = Field(default_factory=dict)
    """{other searched field: value, or list of values}: search this field only where each of those has (one of) that;
    elsewhere it stays as the recipe has it. {optim.optimizer: [sgd, rmsprop]}."""


class FloatRange(Conditional):
    """Numbers from low to high."""

    type: Literal["float"]
    """float."""
    low: float
    """The lowest value."""
    high: float
    """The highest value; with a step, what lies at or below it on the grid that begins at low."""
    log: bool = False
    """Search the logarithm: as many values between 0.001 and 0.01 as between 0.01 and 0.1."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Only low, low + step, …; null is every number."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        if self.log and self.step is not None:
            raise ValueError(f"log is true and step {self.step:g}; a log range has no steps. Leave one of them out")
        return self

    @property
    def top(self) -> float:
        """The highest value that can be had."""
        if self.step is None:
            return self.high
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        return float(low + (Decimal(str(self.high)) - low) // step * step)

    def suggest(self, trial: Proposer, name: str) -> float:
        """Ask the trial for a value."""
        return float(trial.suggest_float(name, self.low, self.top, log=self.log, step=self.step))

    def problem(self, value: object) -> str | None:
        """Why the range cannot give this value, or None."""
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return f"expected a number from {self.low:g} to {self.top:g}"
        if outside := _outside(value, self.low, self.top):
            return outside
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        if abs(steps - round(steps)) > 1e-8:
            return f"expected {self.low:g} and multiples of {self.step:g} above it; leave step out"
        return None

    def count(self) -> int | None:
        """How many values there are; None for no end of them."""
        if self.low == self.high:
            return 1
        return None if self.step is None else round((self.top - self.low) / self.step) + 1

    def store(self, value: Any) -> Stored:
        """The value as Optuna's database holds it."""
        return float(value)

    def load(self, stored: Any) -> float:
        """The value that was stored."""
        return float(stored)

    def words(self) -> str:
        """The range in words, without its condition."""
        return f"float {self.low!r} to {self.high!r}{_manner(self.log, self.step)}"


class IntRange(Conditional):
    """Whole numbers from low to high."""

    type: Literal["int"]
    """int."""
    low: int
    """The lowest value."""
    high: int
    """The highest value; with a step, what lies at or below it on the grid that begins at low."""
    log: bool = False
    """Search the logarithm: as many values between 1 and 10 as between 10 and 100."""
    step: int = Field(1, ge=1)
    """Only low, low + step, …."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"log is true and step {self.step}; a log range has no steps. Leave one of them out")
        return self

    @property
    def top(self) -> int:
        """The highest value that can be had."""
        return self.low + (self.high - self.low) // self.step * self.step

    def suggest(self, trial: Proposer, name: str) -> int:
        """Ask the trial for a value."""
        return int(trial.suggest_int(name, self.low, self.top, log=self.log, step=self.step))

    def problem(self, value: object) -> str | None:
        """Why the range cannot give this value, or None."""
        if isinstance(value, bool) or not isinstance(value, int):
            return f"expected a whole number from {self.low} to {self.top}"
        if outside := _outside(value, self.low, self.top):
            return outside
        if (value - self.low) % self.step:
            return f"expected {self.low} and multiples of {self.step} above it; leave step out"
        return None

    def count(self) -> int | None:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def store(self, value: Any) -> Stored:
        """The value as Optuna's database holds it."""
        return int(value)

    def load(self, stored: Any) -> int:
        """The value that was stored."""
        return int(stored)

    def words(self) -> str:
        """The range in words, without its condition."""
        return f"int {self.low} to {self.high}{_manner(self.log, None if self.step == 1 else self.step)}"


class ChoiceRange(Conditional):
    """One of some values, between which no order is assumed."""

    type: Literal["choice"]
    """choice."""
    values: list[JsonValue]
    """The values: texts, numbers, true, false, null or lists of these."""

    @field_validator("values")
    @classmethod
    def _are_values(cls, values: list[JsonValue]) -> list[JsonValue]:
        if not values:
            raise ValueError("values is []; expected at least one. List the values to choose from")
        texts = [_json(value) for value in values]
        if twice := sorted({text for text in texts if texts.count(text) > 1}):
            raise ValueError(f"values has {', '.join(twice)} more than once; expected each once")
        return values

    @property
    def _is_plain(self) -> bool:
        """Whether Optuna can tell the values apart as they are: to Python 1, 1.0 and True are equal."""
        kinds = {type(value) for value in self.values}
        return len(kinds) == 1 and kinds <= {str, int, float}

    def suggest(self, trial: Proposer, name: str) -> JsonValue:
        """Ask the trial for a value."""
        return self.load(trial.suggest_categorical(name, [self.store(value) for value in self.values]))

    def problem(self, value: object) -> str | None:
        """Why the range cannot give this value, or None."""
        if any(same(value, known) for known in self.values):
            return None
        return f"expected one of {', '.join(_json(known) for known in self.values)}; add it to values"

    def count(self) -> int | None:
        """How many values there are."""
        return len(self.values)

    def store(self, value: Any) -> Stored:
        """The value as Optuna's database holds it: JSON where it could not tell it from others."""
        found = next((known for known in self.values if same(value, known)), value)
        return found if self._is_plain and isinstance(found, str | int | float) else _json(found)

    def load(self, stored: Any) -> JsonValue:
        """The value that was stored."""
        found: JsonValue = stored if self._is_plain else json.loads(stored)
        return found

    def words(self) -> str:
        """The range in words, without its condition."""
        return f"choice of {', '.join(_json(value) for value in self.values)}"


Range = Annotated[FloatRange | IntRange | ChoiceRange, Field(discriminator="type")]
"""What one searched field may be."""


def same(one: object, other: object) -> bool:
    """Whether two JSON values are the same; 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low is {low:g} and high {high:g}, which leaves nothing between them. Swap them")
    if log and low <= 0:
        raise ValueError(f"log is true and low {low:g}; expected above 0. Raise low, or set log to false")


def _outside(value: float, low: float, high: float) -> str | None:
    if value < low:
        return f"expected {low:g} or more; lower low to {value:g}"
    if value > high:
        return f"expected {high:g} or less; raise high to {value:g}"
    return None


def _manner(log: bool, step: float | None) -> str:
    return " (log)" if log else "" if step is None else f" in steps of {step!r}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
