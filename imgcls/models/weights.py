"""Pretrained weights into a network: matched by name, strictly but for the head, adapted where that is well known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from imgcls.errors import UserError
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel
from imgcls.models.weights_adapt import adapt
from imgcls.models.weights_torchvision import likely_family

Outcome = Literal["loaded", "adapted", "fresh", "ignored"]
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""What GoogLeNet's and Inception's second heads are called, which serve their training from scratch only."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known of the training that they come from.

    Attributes:
        name: what they are called in a run's tags: a name of torchvision, a file with its hash, a model.
        pinned: what `model.weights` must say to get the very same again.
        tensors: name -> tensor on the CPU.
        classes: names of its logits in their order; None where nobody wrote them down.
        image_size: pixels on each side of its input, or None.
        channels: 1 or 3 of its input, or None.
        mean, std: per channel on the 0..1 scale, or None.
        config: the `model` section of one's own earlier model.
        notices: sentences for the user about how they were read.
    """

    name: str
    pinned: str
    tensors: Mapping[str, torch.Tensor]
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightsRow:
    """What became of one tensor.

    Attributes:
        tensor: its name in the network; "" where the network has no place for it.
        source: its name among the weights; "" where they have none.
        shape: of the network's tensor, or of the source's where that is ignored.
        outcome: loaded as it is, adapted, left fresh, or ignored.
        how: how it was adapted, or why it was not loaded.
    """

    tensor: str
    source: str
    shape: tuple[int, ...]
    outcome: Outcome
    how: str = ""


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded, adapted, left fresh and ignored.

    Attributes:
        name: of the weights.
        rows: every tensor of the network in its order, then those that were ignored.
    """

    name: str
    rows: tuple[WeightsRow, ...]

    @property
    def summary(self) -> str:
        """One line: how many tensors each outcome had, and why some were not simply loaded."""
        parts = []
        outcomes: tuple[Outcome, ...] = ("loaded", "adapted", "fresh", "ignored")
        for outcome in outcomes:
            rows = [row for row in self.rows if row.outcome == outcome]
            if rows:
                why = "; ".join(dict.fromkeys(row.how for row in rows if row.how))
                parts.append(f"{len(rows):,} {outcome}" + (f" ({why})" if why else ""))
        return f"weights {self.name}: tensors {', '.join(parts)}"


def load_weights(
    model: StagedModel, weights: Pretrained, *, config: ModelConfig, classes: Sequence[str]
) -> WeightsReport:
    """Put the weights into the network, all or none.

    Every tensor but the head's must be there in its shape, with these exceptions: counters of batch norm may be
    missing, and what depends on the number of channels or the image size is adapted (see `adapt`). The output layer is
    taken only where the weights are known to tell the very same classes apart, each class's row by its name; else it
    stays fresh. Of other layers in the head, those of another shape stay fresh.

    Args:
        model: fresh, on the CPU.
        weights: what to put in.
        config: what the model was built from, for messages.
        classes: names of the model's logits.

    Raises:
        UserError: the weights are of another architecture, or hold numbers that are none.
    """
    match = _Match(model, weights, classes)
    rows = [match.row(name) for name in match.own]
    rows += match.ignored()
    if match.problems():
        raise UserError(_misfit(match, weights, config))
    broken = [name for name, tensor in match.state.items() if not _is_finite(tensor)]
    if broken:
        raise UserError(
            f"the weights {weights.name} hold numbers that are not finite (nan or inf), in {len(broken):,} tensors "
            f"({_some(broken)}): their training diverged, or the file is damaged. Give others as model.weights."
        )
    model.load_state_dict({**match.own, **match.state}, strict=True)
    return WeightsReport(weights.name, tuple(rows))


class _Match:
    """The tensors of a network beside those of the weights: which go where, and which do not fit."""

    def __init__(self, model: StagedModel, weights: Pretrained, classes: Sequence[str]) -> None:
        self.own: dict[str, torch.Tensor] = dict(model.state_dict())
        self._given = weights.tensors
        self._source = self._sources(model.origin_names)
        self._origin = model.origin_names
        self._first = next((name for name, tensor in self.own.items() if tensor.ndim == 4), "")
        self._output = _output_layer(model)
        self._rows, self._why_fresh = _class_rows(weights.classes, classes)
        self.state: dict[str, torch.Tensor] = {}
        self.missing: list[str] = []
        self.unlike: list[str] = []
        self.unexpected: list[str] = []

    def _sources(self, origin: Mapping[str, str]) -> dict[str, str]:
        """The network's name -> the weights' name: its own names, or the library's where as many of those are there."""
        named = {name: origin.get(name, name) for name in self.own}
        hits = [sum(name in self._given for name in names) for names in (self.own, named.values())]
        return named if hits[1] >= hits[0] else {name: name for name in self.own}

    def problems(self) -> bool:
        return bool(self.missing or self.unlike or self.unexpected)

    def row(self, name: str) -> WeightsRow:
        """Decide about one tensor of the network."""
        own, source = self.own[name], self._source[name]
        shape = tuple(own.shape)
        given = self._given.get(source)
        in_head = name.startswith("head.")
        if name.startswith(self._output):
            return self._output_row(name, own, given)
        if given is None:
            if in_head or name.endswith("num_batches_tracked"):
                return WeightsRow(name, "", shape, "fresh", "not among the weights")
            self.missing.append(source)
            return WeightsRow(name, "", shape, "fresh")
        if given.is_floating_point() == own.is_floating_point():
            if given.shape == own.shape and not (in_head and not _is_finite(given)):
                self.state[name] = given
                return WeightsRow(name, source, shape, "loaded")
            adapted = adapt(self._origin.get(name, name), given, own, first=name == self._first)
            if adapted is not None:
                self.state[name], how = adapted
                return WeightsRow(name, source, shape, "adapted", how)
        if in_head:
            return WeightsRow(name, source, shape, "fresh", f"{_form(given)} among the weights")
        self.unlike.append(f"{source} is {_form(given)}, here {_form(own)}")
        return WeightsRow(name, source, shape, "fresh")

    def _output_row(self, name: str, own: torch.Tensor, given: torch.Tensor | None) -> WeightsRow:
        """The output layer: each class's row by its name, or fresh."""
        source, shape, rows = self._source[name], tuple(own.shape), self._rows
        if given is None:
            return WeightsRow(name, "", shape, "fresh", "not among the weights")
        if rows is None:
            return WeightsRow(name, source, shape, "fresh", self._why_fresh)
        if given.shape != own.shape:
            return WeightsRow(name, source, shape, "fresh", f"{_form(given)} among the weights")
        self.state[name] = given[rows]
        if rows == list(range(len(rows))):
            return WeightsRow(name, source, shape, "loaded")
        return WeightsRow(name, source, shape, "adapted", "classes put into the order of this data set")

    def ignored(self) -> list[WeightsRow]:
        """The weights that the network has no place for; those that it should have one for count as problems."""
        used, rows = set(self._source.values()), []
        for name, tensor in self._given.items():
            if name in used:
                continue
            if name.startswith(AUXILIARY):
                rows.append(WeightsRow("", name, tuple(tensor.shape), "ignored", "of an auxiliary head"))
            else:
                self.unexpected.append(name)
        return rows


def _output_layer(model: StagedModel) -> str:
    """The prefix of the names of the head's last layer with parameters."""
    layers = [name for name, module in model.head.named_modules() if list(module.parameters(recurse=False))]
    return f"head.{layers[-1]}." if layers and layers[-1] else "head."


def _class_rows(old: Sequence[str] | None, new: Sequence[str]) -> tuple[list[int] | None, str]:
    """Where each new class stands among the old ones, or None and why the output layer stays fresh."""
    if old is None:
        return None, "the order of its classes is not known"
    if len(set(old)) != len(old) or set(old) != set(new):
        shared = len(set(old) & set(new))
        return None, f"of its {len(old):,} classes {shared:,} are among the {len(new):,} here"
    places = {name: k for k, name in enumerate(old)}
    return [places[name] for name in new], ""


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def _form(tensor: torch.Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return "x".join(str(side) for side in tensor.shape) + kind if tensor.ndim else f"a number{kind}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")


def _misfit(match: _Match, weights: Pretrained, config: ModelConfig) -> str:
    """The error for weights of another architecture: counts, the first few names, what they may be of."""
    found = [
        f"{len(names):,} {what} ({_some(names)})"
        for what, names in (
            ("tensors of the network are not among them", match.missing),
            ("have other shapes", match.unlike),
            ("have no place in it", match.unexpected),
        )
        if names
    ]
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items() if tensor.is_floating_point()}
    family, likely = config.family, likely_family(shapes)
    fields = {name: value for name, value in config.model_dump(mode="json").items() if name in weights.config}
    others = [f"model.{name} {weights.config[name]}" for name, value in fields.items() if weights.config[name] != value]
    others = [text for text in others if not text.startswith("model.weights ")]
    if others:
        todo = f"They were trained with {', '.join(others)}: set that, or give other weights."
    elif likely is not None and likely != family:
        change = f"set model.family to {likely}, or " if likely in FAMILIES.names() else ""
        todo = f"These look like weights of {likely}: {change}give weights of a {family}."
    else:
        todo = f"Give weights of this {family}, or set the fields of model to those that they were trained with."
    return (
        f"the weights {weights.name} do not fit this {family} ({len(match.own):,} tensors; {len(weights.tensors):,} "
        f"given): {'; '.join(found)}. Expected the same names and shapes everywhere but in the head. {todo}"
    )
