"""What a sweep searches for each family, checked against the recipe before the first trial."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import JsonValue

from imgcls.data.loading import num_cores
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.reading import Shelf
from imgcls.models.freezing import resolve_depth
from imgcls.recipe import Recipe, Resolved
from imgcls.tuning.ranges import ChoiceRange, FloatRange, IntRange, Range
from imgcls.tuning.space import Space

LR_SPAN = 10.0
"""By default the learning rate is searched from a so many times smaller one than the recipe's to a larger one."""
BATCH_SIZES = (16, 32, 64, 128, 256)
FAMILY = "{family}"
LEAST_STEPS = 4
"""By default no batch is so large that an epoch has fewer steps."""
_NOT_SEARCHED = (
    "search.", "promote.", "data.", "evaluate.", "train.output_dir", "train.device", "train.processes", "model.family",
)  # fmt: skip
"""Fields that make trials incomparable, or decide nothing."""


@dataclass(frozen=True)
class Subject:
    """A family's part of a sweep.

    Attributes:
        prepared: its recipe, data and network.
        space: what is searched.
        first: the recipe's own values of the searched fields.
    """

    prepared: Prepared
    space: Space
    first: Mapping[str, Any]

    @property
    def resolved(self) -> Resolved:
        """The recipe of its trials, with the execution plan in it and without the search."""
        recipe = self.prepared.recipe
        return Resolved(recipe, self.prepared.resolved.name)

    @property
    def about_model(self) -> str:
        """What of the model's section must be the same for all trials of the family."""
        fields = {k: v for k, v in self.prepared.recipe.model.model_dump(mode="json").items() if k != "weights"}
        fields = {name: value for name, value in fields.items() if f"model.{name}" not in self.space.ranges}
        weights = None if self.prepared.weights is None else self.prepared.weights.name
        return json.dumps({**fields, "weights": weights}, sort_keys=True)

    @property
    def in_words(self) -> str:
        """The space for a person."""
        ranges = self.space.ranges
        return f"{self.prepared.plan}; " + "; ".join(f"{name} {searched.words()}" for name, searched in ranges.items())


def open_subjects(resolved: Resolved, families: Sequence[str], console: Console) -> dict[str, Subject]:
    """Data, network, plan and space of each family, seen to work.

    Raises:
        UserError: a family is unknown or named twice, or its recipe or its space is not as it must be.
    """
    if len(set(families)) < len(families):
        raise UserError(f"found the families {', '.join(families)}; expected each once.")
    processes = resolved.recipe.train.processes
    if processes not in (1, "auto"):
        console.say(f"note: train.processes is {processes}, but a trial is trained by one; search.workers run at once")
        resolved = Resolved(resolved.recipe.replace({"train.processes": 1}), resolved.name, resolved.notices)
    shelf, found = Shelf(), dict[str, Subject]()
    with _threads_of_a_worker(resolved.recipe.search.workers):
        for family in families:
            prepared = prepare(family_recipe(resolved, family), console, shelf=shelf)
            space = space_of(prepared)
            found[family] = Subject(prepared, space, first_values(prepared, space))
    return found


def threads_each(workers: int) -> int:
    """Threads of each of so many workers on this machine's cores."""
    return max(1, num_cores() // workers)


@contextmanager
def _threads_of_a_worker(workers: int | Literal["auto"]) -> Iterator[None]:
    """A context in which torch computes with a worker's share of the cores, as the plan that is measured is to."""
    before = torch.get_num_threads()
    if workers != "auto" and workers > 1:
        torch.set_num_threads(min(before, threads_each(workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def family_recipe(resolved: Resolved, family: str) -> Resolved:
    """The recipe with another family; fields that it does not have are left out.

    `{family}` in `model.weights` is the family's name, so that each can have a file of its own.

    Raises:
        UserError: there is no such family, or a field's value does not suit it.
    """
    recipe, own = resolved.recipe, resolved.recipe.model.family
    weights = recipe.model.weights
    if FAMILY in weights:
        recipe = recipe.replace({"model.weights": weights.replace(FAMILY, family)})
    if family != own:
        fields = recipe.as_dict()["model"]
        known = type(recipe.replace({"model.family": family}).model).model_fields
        shared = {name: value for name, value in fields.items() if name in known}
        recipe = recipe.replace({f"model.{name}": value for name, value in {**shared, "family": family}.items()})
    return Resolved(recipe, resolved.name, resolved.notices)


def space_of(prepared: Prepared) -> Space:
    """The recipe's space, or learning rate, batch size and freeze depth around its values.

    Raises:
        UserError: a field is unknown, or cannot take a value of its range with this family and these data.
    """
    recipe = prepared.recipe
    ranges = dict(recipe.search.space) or _default_ranges(prepared)
    for name, searched in ranges.items():
        if name.startswith(_NOT_SEARCHED):
            raise UserError(
                f"search.space has {name}, which cannot be searched: trials must differ in how they train alone. "
                "Take it out; families are compared with --families."
            )
        for value in _ends(searched):
            _try(prepared, name, value, searched.when)
    return Space(ranges)


def first_values(prepared: Prepared, space: Space) -> dict[str, Any]:
    """The recipe's own values of the fields that are searched."""
    flat = _all_fields(prepared.recipe)
    flat["model.freeze_depth"] = prepared.model.freeze_depth
    if isinstance(space.ranges.get("model.freeze_depth"), ChoiceRange):  # which may have names of stages
        flat["model.freeze_depth"] = prepared.recipe.model.freeze_depth
    return space.active({name: flat[name] for name in space.ranges if name in flat})


def _default_ranges(prepared: Prepared) -> dict[str, Range]:
    recipe, num_train = prepared.recipe, prepared.manifest.counts()["train"]
    own, lr = recipe.train.batch_size, recipe.optim.lr
    sizes = list[JsonValue](sorted({own, *(size for size in BATCH_SIZES if size * LEAST_STEPS <= num_train)}))
    return {
        "optim.lr": FloatRange(type="float", low=_rounded(lr / LR_SPAN), high=_rounded(lr * LR_SPAN), log=True),
        "train.batch_size": ChoiceRange(type="choice", values=sizes),
        "model.freeze_depth": IntRange(type="int", low=0, high=len(prepared.model.stage_names) - 1),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _all_fields(recipe: Recipe) -> dict[str, Any]:
    """Dotted name -> value, also of the fields of groups such as train.plan.precision."""
    flat = recipe.flat()
    for name, value in list(flat.items()):
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
    return flat


def _ends(searched: Range) -> Sequence[Any]:
    return searched.values if isinstance(searched, ChoiceRange) else (searched.low, searched.high)


def _try(prepared: Prepared, name: str, value: Any, when: Mapping[str, Any]) -> None:
    """See that a training with this value could begin."""
    conditions = {field: wanted[0] if isinstance(wanted, list) else wanted for field, wanted in when.items()}
    try:
        recipe = prepared.recipe.replace({**conditions, name: value})
    except UserError as error:
        raise UserError(f"search.space of {name} has {value!r}: {str(error).removeprefix('recipe: ')}") from error
    if name == "model.freeze_depth":
        field = f"search.space of {name}, family {recipe.model.family}"
        resolve_depth(recipe.model.freeze_depth, prepared.model.stage_names, field=field)
    num_train = prepared.manifest.counts()["train"]
    if name == "train.batch_size" and recipe.train.batch_size > num_train:
        raise UserError(
            f"search.space of train.batch_size has {value}, but there are {num_train} training images; expected at "
            "most so many. Lower it."
        )
