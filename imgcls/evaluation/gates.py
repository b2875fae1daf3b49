"""Whether a challenger may take the champion's place: the gates that a recipe's `promote` section sets.

Chance is what makes two equally good models differ on a finite number of images. A gate refuses for it as seldom as
the significance level says: at level 0.05 an equally good challenger is called worse in at most 5 % of cases, and where
a gain is demanded, one that has not got it is let through in about 5 % at most.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from imgcls.errors import UserError
from imgcls.evaluation.compare import in_classes_of, in_order_of, why_not_paired
from imgcls.evaluation.intervals import holm, labelled, mcnemar, paired_bootstrap
from imgcls.evaluation.markdown import markdown, value_text
from imgcls.evaluation.metrics import top_k_accuracy
from imgcls.evaluation.scores import scores
from imgcls.plugins import nearest
from imgcls.sections import Section
from imgcls.tables import Predictions

MOST_NAMED = 5
"""Classes that a sentence names."""
NOT_DEMANDED = "–"
NO_CHAMPION = "there is no champion to compare with: not applicable"


_DEMANDABLE = ("acc", "balanced_acc", "precision", "recall", "f1", "f1_weighted", "auc", "ap")
"""Of `scores`, what is 0..1 and the better the greater; beside top<k>_acc."""
_TOP_K = re.compile(r"top([1-9]\d*)_acc")


class PromoteConfig(Section):
    """The gates that a model must pass to be promoted; shares are 0..1."""

    min_metrics: dict[str, float] = Field(default_factory=dict)
    """Metric -> the least value it must have on the test images: `acc`, `balanced_acc` (mean recall), `f1`,
    `precision` and `recall` (macro), `f1_weighted`, `auc`, `ap` or `top<k>_acc`, each 0..1. Set the ones that the use
    of the model demands; none is by default."""
    min_gain: float = Field(0.0, ge=0, lt=1)
    """Accuracy by which the challenger must be ahead of the champion, 0..1, for sure (at `significance`). 0: it need
    not be ahead, but is refused where it is behind by more than chance."""
    significance: float = Field(0.05, ge=0.001, le=0.5)
    """p-value (one-sided) below which a difference on the same images counts as more than chance."""
    max_recall_fall: float = Field(0.02, ge=0, le=1)
    """Share, 0..1, by which the recall of a class may be below the champion's even where it is so by more than chance
    (McNemar's test for each class, Holm-corrected for their number). 1: whatever happens to one class."""
    max_ece: float | None = Field(None, gt=0, le=1)
    """Most expected calibration error on the test images, 0..1 (15 bins of equal width; Guo et al. 2017); null: any."""
    max_model_mb: float | None = Field(None, gt=0)
    """Most megabytes (10^6 bytes) of the logged model's files; null: any."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Most milliseconds for one image, measured on the machine that promotes; null: any."""
    require_same_data: bool = True
    """Whether challenger and champion must have been made from the same data set (equal digests). false: they are
    compared on the challenger's test images, which the champion may have been trained on."""
    require_installable: bool = True
    """Whether the packages that the model asks for must be installable, or installed, where it is promoted."""

    @field_validator("min_metrics")
    @classmethod
    def _known(cls, values: dict[str, float]) -> dict[str, float]:
        for name, least in values.items():
            if name not in _DEMANDABLE and not _TOP_K.fullmatch(name):
                guess = nearest(name, [*_DEMANDABLE, "top5_acc"])
                hint = f" Did you mean {guess!r}?" if guess else ""
                raise ValueError(f"expected {', '.join(_DEMANDABLE)} or top<k>_acc, not {name!r}.{hint}")
            if not 0 <= least <= 1:
                raise ValueError(f"expected a least value of {name} from 0 to 1, not {least:g}")
        return values


@dataclass(frozen=True)
class Gate:
    """What one gate found.

    Attributes:
        name: such as `acc`, `gain` or `latency_ms`.
        figure: what was measured; None where nothing could be.
        wanted: what was demanded of it, in words; `–` where nothing was.
        passed: whether it lets the challenger through.
        sentence: the same for a person, with the reason.
    """

    name: str
    figure: float | None
    wanted: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What all gates found.

    Attributes:
        gates: one each, in the order in which they are told.
    """

    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate lets the challenger through."""
        return all(gate.passed for gate in self.gates)

    @property
    def reason(self) -> str:
        """The sentences of the gates that do not, or that all do."""
        failed = [gate.sentence for gate in self.gates if not gate.passed]
        return "; ".join(failed) if failed else f"all {len(self.gates)} gates are passed"

    @property
    def table(self) -> pd.DataFrame:
        """One row a gate: gate, figure, wanted, passed (yes or no), why."""
        rows = [[g.name, g.figure, g.wanted, "yes" if g.passed else "no", g.sentence] for g in self.gates]
        return pd.DataFrame(rows, columns=["gate", "figure", "wanted", "passed", "why"])

    def markdown(self, *, title: str = "Verdict") -> str:
        """A report: the decision, and the table of gates."""
        failed = sum(not gate.passed for gate in self.gates)
        decision = "**Passed**: " if self.passed else f"**Refused** by {failed} of {len(self.gates)} gates: "
        return f"# {title}\n\n{decision}{self.reason}.\n\n{markdown(self.table)}"


def verdict(
    challenger: Predictions,
    champion: Predictions | None,
    config: PromoteConfig,
    *,
    model_mb: float,
    latency_ms: float,
    same_data: bool | None,
    installable: bool | None,
    incomparable: str = "",
    seen: int = 0,
) -> Verdict:
    """Hold a challenger against the gates, and against the champion on the same test images.

    The comparative gates (gain, class_recall, same_data) are passed where there is no champion. Where there is one
    whose predictions are of other images, they are not, for nothing is known then.

    Args:
        challenger: its predictions for the test images; those without a label are left out.
        champion: the present champion's for the same images, images and classes in any order; None: there is none.
        config: the demands.
        model_mb: megabytes of the challenger's files.
        latency_ms: milliseconds it needs for an image.
        same_data: whether both were made from the same data set; None: not known.
        installable: whether its packages can be installed; None: not known.
        incomparable: why the champion that there is has no predictions for these images; "" where it has.
        seen: how many of the images the champion was trained on. They favour it: a challenger that passes has passed,
            and where one is refused, the gate same_data says how many they are.

    Raises:
        UserError: no image has a label, an id stands twice, or a probability is no number.
    """
    _check("challenger", challenger)
    known = labelled(challenger)
    is_first = champion is None and not incomparable
    rows = [_at_least(name, _measured(name, known), least) for name, least in config.min_metrics.items()]
    if incomparable:
        rows += [_incomparable(name, incomparable) for name in ("gain", "class_recall")]
    elif champion is None:
        rows += [_passed("gain", NO_CHAMPION), _passed("class_recall", NO_CHAMPION)]
    else:
        _check("champion", champion)
        other = in_classes_of(champion, challenger)
        if (reason := why_not_paired(challenger, other)) is not None:
            rows += [_incomparable(name, reason) for name in ("gain", "class_recall")]
        else:
            rival = labelled(in_order_of(other, challenger))
            rows += [_gain(known, rival, config), _class_recall(known, rival, config)]
    rows += [
        _at_most("ece", scores(known)["ece"], config.max_ece, "the expected calibration error is {}"),
        _at_most("model_mb", model_mb, config.max_model_mb, "the model has {} MB"),
        _at_most("latency_ms", latency_ms, config.max_latency_ms, "an image takes {} ms"),
        _passed("same_data", NO_CHAMPION) if is_first else _same_data(same_data, config, seen, len(challenger.ids)),
        _installable(installable, config),
    ]
    return Verdict(tuple(rows))


def _check(whose: str, predictions: Predictions) -> None:
    if len(set(predictions.ids)) < len(predictions.ids):
        twice = next(name for name, count in pd.Series(predictions.ids).value_counts().items() if count > 1)
        raise UserError(f"the {whose}'s predictions have the id {twice!r} more than once; expected one row an image.")
    if not np.isfinite(predictions.probs).all():
        row = int(np.flatnonzero(~np.isfinite(predictions.probs).all(axis=1))[0])
        raise UserError(
            f"the {whose}'s probabilities for the image {predictions.ids[row]!r} are not all numbers. Expected finite "
            "ones; look at the model, which has perhaps diverged."
        )


def _measured(name: str, predictions: Predictions) -> float:
    """A score; NaN, which passes no gate, where these images have none."""
    top = _TOP_K.fullmatch(name)
    if top:
        return top_k_accuracy(predictions, int(top[1]))
    return scores(predictions).get(name, math.nan)


def _incomparable(name: str, why: str) -> Gate:
    return Gate(name, None, "the same images", False, f"challenger and champion cannot be compared: {why}")


def _passed(name: str, sentence: str) -> Gate:
    return Gate(name, None, NOT_DEMANDED, True, sentence)


def _at_least(name: str, figure: float, least: float) -> Gate:
    passed = figure >= least
    words = "as demanded" if passed else "too little"
    return Gate(name, figure, f">= {least:g}", passed, f"{name} is {value_text(figure)}, {words} (at least {least:g})")


def _at_most(name: str, figure: float, most: float | None, words: str) -> Gate:
    said = words.format(value_text(figure))
    if most is None:
        return Gate(name, figure, NOT_DEMANDED, True, f"{said}; nothing is demanded")
    passed = figure <= most
    return Gate(name, figure, f"<= {most:g}", passed, f"{said}, {'at' if passed else 'more than the'} most {most:g}")


def _one_sided(two_sided: float, *, towards: bool) -> float:
    """The p-value of one direction: half where the difference found lies in it."""
    return two_sided / 2 if towards else 1 - two_sided / 2


def _gain(challenger: Predictions, champion: Predictions, config: PromoteConfig) -> Gate:
    """McNemar's exact test says whether there is a difference at all, the paired bootstrap whether it is enough."""
    level, wanted = config.significance, config.min_gain
    p = mcnemar(challenger.predicted == challenger.labels, champion.predicted == champion.labels)
    # So many that the least possible p-value is far below the level.
    gap = paired_bootstrap(challenger, champion, num=max(1000, math.ceil(20 / level)), against=wanted)
    ahead = gap.difference
    found = (
        f"accuracy {ahead:+.4f} against the champion (95 % interval {gap.low:+.4f} to {gap.high:+.4f}, McNemar "
        f"p = {value_text(p, digits=2)})"
    )
    worse = _one_sided(p, towards=ahead < 0)
    if worse < level:
        sentence = f"{found}: worse by more than chance (one-sided p = {value_text(worse, digits=2)} < {level:g})"
        return Gate("gain", ahead, _wanted(config), False, sentence)
    if wanted == 0:
        return Gate("gain", ahead, _wanted(config), True, f"{found}: not worse by more than chance")
    better = _one_sided(p, towards=ahead > 0)
    enough = _one_sided(gap.p, towards=ahead > wanted)
    passed = better < level and enough < level
    words = "ahead by more than chance" if passed else "not surely ahead"
    sentence = f"{found}: {words} by the {wanted:g} demanded (one-sided p = {value_text(max(better, enough), digits=2)}"
    return Gate(
        "gain", ahead, _wanted(config), passed, f"{sentence}{' <' if passed else '; expected below'} {level:g})"
    )


def _wanted(config: PromoteConfig) -> str:
    return f"> {config.min_gain:g} for sure" if config.min_gain else "not worse"


def _class_recall(challenger: Predictions, champion: Predictions, config: PromoteConfig) -> Gate:
    """The figure is the largest fall of a class's recall that is beyond chance, or 0."""
    level, allowed, num_classes = config.significance, config.max_recall_fall, len(challenger.classes)
    right, right_before = challenger.predicted == challenger.labels, champion.predicted == champion.labels
    support = np.bincount(challenger.labels, minlength=num_classes)
    present = np.flatnonzero(support)
    hits = np.bincount(challenger.labels[right], minlength=num_classes)
    hits_before = np.bincount(challenger.labels[right_before], minlength=num_classes)
    falls = ((hits_before - hits) / np.maximum(1, support))[present]
    order = np.argsort(challenger.labels, kind="stable")
    rows = np.split(order, np.cumsum(support)[:-1])
    two_sided = [mcnemar(right[rows[k]], right_before[rows[k]]) for k in present]
    p_values = [_one_sided(p, towards=fall > 0) for p, fall in zip(two_sided, falls, strict=True)]
    sure = np.array(holm(p_values)) < level
    # A class whose every image would have to be lost, and still it could be chance.
    blind = int((0.5 ** hits_before[present].astype(np.float64) * len(present) >= level).sum())
    worst = float(falls[sure].max(initial=0.0))
    # A fall of exactly what is allowed is no more than that, whatever the last digit of its float.
    lost = [(falls[row], challenger.classes[present[row]]) for row in np.flatnonzero(sure & (falls > allowed + 1e-9))]
    named = [f"{name} ({-fall:+.4f})" for fall, name in sorted(lost, reverse=True)]
    wanted = f"no fall > {allowed:g} beyond chance"
    note = f" ({blind} of {len(present)} classes have too few images for any fall to be told from chance)"
    tail = note if blind else ""
    if not named:
        sentence = f"no class's recall fell by more than {allowed:g} and by more than chance{tail}"
        return Gate("class_recall", worst, wanted, True, sentence)
    shown = ", ".join(named[:MOST_NAMED]) + (f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else "")
    sentence = f"recall fell by more than {allowed:g} and by more than chance: {shown}{tail}"
    return Gate("class_recall", worst, wanted, False, sentence)


def _same_data(same: bool | None, config: PromoteConfig, seen: int, num: int) -> Gate:
    figure = None if same is None else float(same)
    found = {
        True: "challenger and champion were made from the same data set",
        False: "challenger and champion were made from other data sets (their digests differ)",
        None: "whether challenger and champion were made from the same data set is not known",
    }[same]
    if seen:
        found += f", and the champion was trained on {seen:,} of the {num:,} test images, which favours it"
    if not config.require_same_data:
        return Gate("same_data", figure, NOT_DEMANDED, True, f"{found}; nothing is demanded")
    return Gate("same_data", figure, "the same", same is True, found)


def _installable(installable: bool | None, config: PromoteConfig) -> Gate:
    figure = None if installable is None else float(installable)
    found = {
        True: "the packages that the model asks for can be installed",
        False: "the packages that the model asks for cannot be installed",
        None: "whether the packages that the model asks for can be installed is not known",
    }[installable]
    if not config.require_installable:
        return Gate("installable", figure, NOT_DEMANDED, True, f"{found}; nothing is demanded")
    return Gate("installable", figure, "installable", installable is True, found)
