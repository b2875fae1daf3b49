"""Several models' predictions for the same images made into one: mean, vote, fitted weights, greedy selection."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from imgcls.errors import UserError
from imgcls.evaluation.intervals import labelled
from imgcls.tables import Predictions

Floats = npt.NDArray[np.float64]
TINY = float(np.finfo(np.float32).tiny)
"""What a probability of 0 counts as in a log loss."""
NOTHING = 1e-9
"""A fitted weight up to which it is one of 0, left by rounding."""


def aligned(members: Sequence[Predictions]) -> list[Predictions]:
    """The members with their images in the first one's order; images are the same where their ids are.

    A label that one member has and another lacks is known to all.

    Raises:
        UserError: there is no member, classes or their order differ, images differ, an id occurs twice, or an image
            has different labels.
    """
    if not members:
        raise UserError("found no predictions to put together; expected those of one model or more.")
    first = members[0]
    place = {name: row for row, name in enumerate(first.ids)}
    rows, labels = [], first.labels.copy()
    for number, member in enumerate(members, 1):
        _check_classes(first, member, number)
        _check_ids(first, member, number)
        back = np.empty(len(place), np.int64)
        back[[place[name] for name in member.ids]] = np.arange(len(place))
        rows.append(back)
        theirs = member.labels[back]
        other = np.flatnonzero((labels != theirs) & (labels >= 0) & (theirs >= 0))
        if len(other):
            raise UserError(
                f"{len(other):,} images have other labels in predictions {number} than in those before, the first "
                f"{first.ids[other[0]]!r}: {first.classes[theirs[other[0]]]!r} and "
                f"{first.classes[labels[other[0]]]!r}. Give predictions of the same data set."
            )
        labels = np.where(labels >= 0, labels, theirs)
    return [
        Predictions(list(first.ids), member.probs[back], labels, first.classes, member.split, member.manifest_digest)
        for member, back in zip(members, rows, strict=True)
    ]


def _check_classes(first: Predictions, member: Predictions, number: int) -> None:
    if member.classes == first.classes:
        return
    lacking = [name for name in first.classes if name not in set(member.classes)]
    more = [name for name in member.classes if name not in set(first.classes)]
    said = [f"without {_few(lacking)}"] * bool(lacking) + [f"with {_few(more)} besides"] * bool(more)
    raise UserError(
        f"predictions {number} have other classes than the first ones: {', '.join(said) or 'in another order'}. "
        "Models are put together only when trained on the same classes in the same order."
    )


def _check_ids(first: Predictions, member: Predictions, number: int) -> None:
    ours, theirs = set(first.ids), set(member.ids)
    if len(theirs) < len(member.ids):
        seen: set[str] = set()
        twice = next(name for name in member.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"predictions {number} have the image {twice!r} twice; expected each of their images once.")
    if ours == theirs:
        return
    lacking, more = sorted(ours - theirs), sorted(theirs - ours)
    said = [f"lack {len(lacking):,} of their images ({_few(lacking)})"] * bool(lacking)
    said += [f"have {len(more):,} that those lack ({_few(more)})"] * bool(more)
    raise UserError(
        f"predictions {number} are not of the same images as the first ones: they {' and '.join(said)}. "
        "Predict the same images with each model."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")


def average(members: Sequence[Predictions], weights: Sequence[float] | Floats | None = None) -> Predictions:
    """The mean of the members' probabilities.

    Args:
        members: predictions of the same images, in any order.
        weights: one for each member, 0 or more, of any sum; None weighs all the same.

    Raises:
        UserError: the members do not go together (see `aligned`), or the weights do not fit them.
    """
    lined_up = aligned(members)
    return _joined(lined_up, combine([member.probs for member in lined_up], weights))


def combine(
    probs: Sequence[npt.NDArray[np.float32]],
    weights: Sequence[float] | Floats | None = None,
    *,
    how: Literal["mean", "vote"] = "mean",
) -> Floats:
    """(N, C) of M times (N, C) probabilities of the same images and classes.

    Args:
        probs: of each member, or of each view of the images.
        weights: one each, 0 or more, of any sum; None weighs all the same.
        how: `mean`, weighted. `vote`: each image gets the class that most members name; of several, that with the
            highest mean probability. The probabilities are the shares of votes then, the mean probability counted as
            half a vote more, so that the most probable class is the one elected.

    Raises:
        UserError: the weights do not fit, or votes are to weigh differently.
    """
    shares = _shares(len(probs), weights)
    mean = np.zeros(probs[0].shape, np.float64)
    for share, member in zip(shares, probs, strict=True):
        mean += share * member
    if how == "mean":
        return mean
    if len(set(shares)) > 1:
        raise UserError("found different weights for votes, of which each counts the same; take the mean instead.")
    votes = np.zeros_like(mean)
    for member in probs:
        votes[np.arange(len(votes)), np.argmax(member, axis=1)] += 1
    return (votes + mean / 2) / (len(probs) + 0.5)


def _shares(num: int, weights: Sequence[float] | Floats | None) -> Floats:
    shares = np.ones(num) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (num,) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        given = ", ".join(f"{weight:g}" for weight in shares.ravel())
        raise UserError(
            f"found the weights {given or '(none)'} for {num} models; expected one number a model, none below 0 and at "
            "least one above."
        )
    return np.asarray(shares / shares.sum())


def _joined(members: Sequence[Predictions], probs: Floats) -> Predictions:
    first = members[0]
    digests, splits = {member.manifest_digest for member in members}, {member.split for member in members}
    return Predictions(
        list(first.ids), probs.astype(np.float32), first.labels, first.classes,
        first.split if len(splits) == 1 else "", first.manifest_digest if len(digests) == 1 else "",
    )  # fmt: skip


def vote(members: Sequence[Predictions]) -> Predictions:
    """Each image gets the class that most members name; of several, that with the highest mean probability.

    The probabilities are those of `combine`.

    Raises:
        UserError: the members do not go together (see `aligned`).
    """
    lined_up = aligned(members)
    return _joined(lined_up, combine([member.probs for member in lined_up], how="vote"))


def fit_weights(members: Sequence[Predictions]) -> Floats:
    """(M,) weights, of sum 1, with which `average` has the least log loss on these images.

    They are to be fitted on validation images that no member was trained on. The loss is convex in the weights, so
    there is no better minimum elsewhere; it is found by sequential least squares (SLSQP, Kraft 1988).

    Raises:
        UserError: the members do not go together (see `aligned`), or no image has a label.
    """
    from scipy.optimize import minimize  # here, for it takes a while and hardly anybody needs it

    chosen = _true_probs([labelled(member) for member in aligned(members)])
    num = chosen.shape[1]

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = np.maximum(chosen @ weights, TINY)
        return float(-np.log(mixed).mean()), np.asarray(-(chosen / mixed[:, None]).mean(axis=0))

    start = np.full(num, 1 / num)
    sums_to_one = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda _: np.ones(num)}
    result = minimize(
        loss, start, jac=True, method="SLSQP", bounds=[(0, 1)] * num, constraints=[sums_to_one],
        options={"maxiter": 500, "ftol": 1e-10},
    )  # fmt: skip
    # Where the search went astray, as it can among probabilities near 0, the simple choices are still there.
    found = np.nan_to_num(result.x)
    candidates = [np.where(found > NOTHING, found, 0.0), start, *np.eye(num)]
    best = min((weights / weights.sum() for weights in candidates if weights.sum() > 0), key=lambda w: loss(w)[0])
    return np.asarray(best)


def _true_probs(members: Sequence[Predictions]) -> Floats:
    """(N, M) probability that each member gives to each image's true class."""
    rows = np.arange(len(members[0].ids))
    found = np.column_stack([member.probs[rows, member.labels] for member in members]).astype(np.float64)
    return np.maximum(found, TINY)


def greedy(members: Sequence[Predictions], *, metric: Literal["loss", "acc"] = "loss", num_rounds: int = 50) -> Floats:
    """(M,) weights, of sum 1: how often each member is taken when the one that helps most is added again and again.

    Starts with the best member and adds, with replacement, the one after which the mean of all taken has the best
    metric; the best of all stages counts, the earliest of equal ones. To be used on validation images that no member
    was trained on. Source: Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004.

    Args:
        members: predictions of the same images, in any order.
        metric: the log loss, or the accuracy, of which equal values are told apart by the log loss.
        num_rounds: members taken, with repetitions, 1 or more.

    Raises:
        UserError: the members do not go together (see `aligned`), or no image has a label.
    """
    assert num_rounds > 0, "greedy selection takes one member or more"
    lined_up = [labelled(member) for member in aligned(members)]
    chosen = _true_probs(lined_up)
    sums = np.zeros(lined_up[0].probs.shape, np.float32)
    picked = np.zeros(len(chosen))
    taken = np.zeros(len(lined_up), np.int64)
    best: tuple[tuple[float, ...], Floats] | None = None
    for round_ in range(1, num_rounds + 1):
        values = []
        for k, member in enumerate(lined_up):
            loss = float(-np.log((picked + chosen[:, k]) / round_).mean())
            if metric == "loss":
                values.append((loss, 0.0))
            else:
                wrong = float((np.argmax(sums + member.probs, axis=1) != member.labels).mean())
                values.append((wrong, loss))
        k = min(range(len(values)), key=lambda number: values[number])
        taken[k] += 1
        picked += chosen[:, k]
        if metric == "acc":
            sums += lined_up[k].probs
        if best is None or values[k] < best[0]:
            best = values[k], taken / taken.sum()
    assert best is not None
    return best[1]
