"""What an evaluation says class by class: their rates, who is taken for whom, which are hardest and easiest."""

import numpy as np
import pandas as pd

from imgcls.evaluation.intervals import labelled, wilson
from imgcls.evaluation.metrics import Counts, confusion_matrix, per_class_table
from imgcls.evaluation.ranking import one_vs_rest
from imgcls.tables import Predictions


def class_table(predictions: Predictions) -> pd.DataFrame:
    """One row a class, in their order.

    Columns: class, support (images), precision, recall, f1 (0..1, 0 where the denominator is 0), auc (against the rest;
    NaN for a class without images or with all), recall_low, recall_high (`wilson`; 0 and 1 without images),
    most_confused_with (the class that most of its wrong images are taken for, "" none), confused (those images).
    Images without a label are left out.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    table = per_class_table(known)
    hits = np.bincount(known.labels[known.predicted == known.labels], minlength=len(table))
    bounds = [wilson(int(hit), int(num)) for hit, num in zip(hits, table["support"], strict=True)]
    place = table.columns.get_loc("f1")
    assert isinstance(place, int)
    table.insert(place + 1, "auc", one_vs_rest(known)[0][:, 0])
    table.insert(place + 2, "recall_low", [low for low, _ in bounds])
    table.insert(place + 3, "recall_high", [high for _, high in bounds])
    return table


def hardest(table: pd.DataFrame, num: int) -> pd.DataFrame:
    """The rows of `class_table` with the lowest recall, the lowest first; of equal ones, that with more images, for it
    is the surer one. Classes without images are none of them."""
    return table[table["support"] > 0].sort_values(["recall", "support"], ascending=[True, False], kind="stable")[:num]


def easiest(table: pd.DataFrame, num: int) -> pd.DataFrame:
    """The rows of `class_table` with the highest recall, the highest first; of equal ones, that with more images."""
    return table[table["support"] > 0].sort_values(["recall", "support"], ascending=[False, False], kind="stable")[:num]


def confused_pairs(predictions: Predictions, num: int = 100) -> pd.DataFrame:
    """The pairs of classes that are confused most; images without a label are left out.

    Columns: true, predicted (class names), images (of the one taken for the other), share (of the true class's images,
    0..1), reverse (images confused the other way round). The most images first, then the larger share.

    Args:
        predictions: of any number of images.
        num: rows at most.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    counts = confusion_matrix(known.labels, known.predicted, len(known.classes))
    return pairs_of(counts, known.classes, num)


def pairs_of(counts: Counts, classes: tuple[str, ...], num: int) -> pd.DataFrame:
    """The same of a (C, C) confusion matrix (row: true class)."""
    true, predicted = np.nonzero(counts - np.diag(np.diag(counts)))
    images = counts[true, predicted]
    share = images / counts.sum(axis=1)[true]
    order = np.lexsort((predicted, true, -share, -images))[:num]
    true, predicted = true[order], predicted[order]
    return pd.DataFrame(
        {
            "true": [classes[k] for k in true],
            "predicted": [classes[k] for k in predicted],
            "images": images[order],
            "share": share[order],
            "reverse": counts[predicted, true],
        }
    )


def worst_block(counts: Counts, num: int) -> list[int]:
    """Up to `num` classes between which most is confused, those confused with each other next to each other.

    Pairs are taken from the most confused (both ways together) on; classes that confuse nothing are left out.

    Args:
        counts: (C, C) confusion matrix.
        num: classes at most, 2 or more.
    """
    both = np.triu(counts + counts.T, 1)
    first, second = np.nonzero(both)
    groups: list[list[int]] = []
    taken = 0
    for row in np.lexsort((second, first, -both[first, second])):
        a, b = int(first[row]), int(second[row])
        of_a = next((group for group in groups if a in group), None)
        of_b = next((group for group in groups if b in group), None)
        new = (of_a is None) + (of_b is None)
        if taken + new > num:
            continue
        taken += new
        if of_a is None and of_b is None:
            groups.append([a, b])
        elif of_a is None and of_b is not None:
            of_b.insert(of_b.index(b) + 1, a)
        elif of_b is None and of_a is not None:
            of_a.insert(of_a.index(a) + 1, b)
        if taken == num:
            break
    return [k for group in groups for k in group]
