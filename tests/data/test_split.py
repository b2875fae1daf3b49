"""Splits: deterministic, stratified, blind to names, and never through equal bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from imgcls.data.source import DataConfig
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.tables import Manifest


def manifest(
    counts: Sequence[int], *, given: Mapping[int, str] | None = None, copies: int = 1, shuffle: int | None = None
) -> Manifest:
    """`counts[label]` different images of each class, every one `copies` times; `given` numbers have that split."""
    rows = [
        {"label": label, "content": f"{label}-{number}", "split": (given or {}).get(number, "")}
        for label, count in enumerate(counts)
        for number in range(count)
        for _ in range(copies)
    ]
    if shuffle is not None:
        rows = [rows[k] for k in np.random.default_rng(shuffle).permutation(len(rows))]
    named = [{**row, "id": f"{shuffle}/{k:05d}"} for k, row in enumerate(rows)]
    return Manifest.build(named, classes=[f"c{k}" for k in range(len(counts))])


def by_content(result: Manifest) -> dict[str, str]:
    return dict(zip(result.frame["content"], result.frame["split"], strict=True))


def test_the_split_repeats_and_another_seed_gives_another() -> None:
    first = by_content(split(manifest([40, 40]), DataConfig()))
    assert by_content(split(manifest([40, 40]), DataConfig())) == first
    assert by_content(split(manifest([40, 40]), DataConfig(split_seed=1))) != first


def test_names_and_order_of_the_files_do_not_matter() -> None:
    first = by_content(split(manifest([30, 50]), DataConfig()))
    assert by_content(split(manifest([30, 50], shuffle=3), DataConfig())) == first


def test_every_class_is_split_by_the_fractions() -> None:
    result = split(manifest([20, 100, 200]), DataConfig(val_fraction=0.2, test_fraction=0.1))
    for label, count in enumerate([20, 100, 200]):
        of_class = result.frame[result.frame["label"] == label]["split"].value_counts().to_dict()
        assert of_class == {"train": 0.7 * count, "val": 0.2 * count, "test": 0.1 * count}


def test_every_image_is_in_one_split_and_the_manifest_keeps_its_order() -> None:
    before = manifest([10, 10], shuffle=1)
    after = split(before, DataConfig())
    assert after.ids == before.ids
    assert sum(after.counts().values()) == len(before)
    assert after.digest == before.digest


def test_equal_bytes_stay_on_one_side() -> None:
    result = split(manifest([20, 20], copies=3, shuffle=0), DataConfig())
    sides = result.frame.groupby("content")["split"].nunique()
    assert sides.max() == 1
    assert result.counts() == {"train": 84, "val": 18, "test": 18}


def test_a_class_gives_at_least_one_image_to_every_split() -> None:
    result = split(manifest([3, 100]), DataConfig(val_fraction=0.01, test_fraction=0.01))
    assert sorted(result.frame[result.frame["label"] == 0]["split"]) == ["test", "train", "val"]
    large = split(manifest([3, 100]), DataConfig(val_fraction=0.49, test_fraction=0.49))
    assert sorted(large.frame[large.frame["label"] == 0]["split"]) == ["test", "train", "val"]


def test_a_class_with_fewer_images_than_splits_is_an_error() -> None:
    with pytest.raises(UserError, match=r"the class 'c1' has 2 .* train, test, val need at least 3"):
        split(manifest([5, 2]), DataConfig())
    assert split(manifest([5, 2]), DataConfig(test_fraction=0)).counts() == {"train": 5, "val": 2, "test": 0}


def test_copies_do_not_count_as_different_images() -> None:
    with pytest.raises(UserError, match="the class 'c0' has 1 different image of its own, "):
        split(manifest([1, 9], copies=5), DataConfig())


def test_one_class_only_is_an_error() -> None:
    with pytest.raises(UserError, match=r"one class only \('c0'\); a classifier needs at least two"):
        split(manifest([9]), DataConfig())


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_fractions_that_leave_nothing_to_train_on_are_an_error(val: float, test: float) -> None:
    with pytest.raises(UserError, match="their sum must be below 1"):
        split(manifest([9, 9]), DataConfig(val_fraction=val, test_fraction=test))


def test_given_splits_are_kept() -> None:
    given = dict.fromkeys(range(10), "train") | dict.fromkeys(range(10, 14), "val") | {14: "test"}
    before = manifest([15, 15], given=given)
    assert by_content(split(before, DataConfig())) == by_content(before)


def test_without_a_given_validation_part_it_is_taken_from_train_alone() -> None:
    given = dict.fromkeys(range(20), "train") | dict.fromkeys(range(20, 24), "test")
    result = split(manifest([24, 24], given=given), DataConfig(val_fraction=0.25, test_fraction=0.9 - 0.25))
    assert result.counts() == {"train": 30, "val": 10, "test": 8}
    assert {by_content(result)[f"0-{k}"] for k in range(20, 24)} == {"test"}


def test_where_only_validation_is_given_no_test_part_is_taken() -> None:
    given = dict.fromkeys(range(8), "train") | {8: "val"}
    assert split(manifest([9, 9], given=given), DataConfig()).counts() == {"train": 16, "val": 2, "test": 0}


def test_equal_bytes_in_two_classes_stay_on_one_side() -> None:
    rows = [
        {"id": f"{label}/{k}", "label": label, "content": f"shared{k}" if k < 5 else f"{label}-{k}"}
        for label in range(2)
        for k in range(20)
    ]
    dealt = split(Manifest.build(rows, classes=["a", "b"]), DataConfig(val_fraction=0.3, test_fraction=0.3))
    sides = dealt.frame.groupby("content")["split"].nunique()
    assert (sides == 1).all()


def grouped(
    groups: int = 10, images: int = 12, *, rename: str = "g", shared: Sequence[tuple[int, int]] = ()
) -> Manifest:
    """Each of `groups` groups holds every class of three; pairs in `shared` have an image of equal bytes."""
    same = {(b, 0): f"{a}-0" for a, b in shared}
    rows = [
        {"id": f"{g}/{k}", "label": k % 3, "content": same.get((g, k), f"{g}-{k}"), "group": f"{rename}{g}"}
        for g in range(groups)
        for k in range(images)
    ]
    return Manifest.build(rows, classes=["a", "b", "c"])


def test_no_group_is_on_two_sides_and_the_shares_are_about_those_asked_for() -> None:
    for seed in range(5):
        dealt = split(grouped(), DataConfig(val_fraction=0.2, test_fraction=0.2, split_seed=seed))
        assert (dealt.frame.groupby("group")["split"].nunique() == 1).all()
        assert dealt.counts() == {"train": 72, "val": 24, "test": 24}


def test_a_split_by_group_depends_on_contents_and_seed_not_on_names() -> None:
    config = DataConfig(val_fraction=0.2, test_fraction=0.2, split_seed=1)
    first, renamed = split(grouped(), config), split(grouped(rename="other"), config)
    assert list(first.frame["split"]) == list(renamed.frame["split"])
    assert list(first.frame["split"]) != list(split(grouped(), DataConfig(split_seed=2)).frame["split"])


def test_groups_that_share_equal_bytes_stay_together() -> None:
    chain = grouped(shared=[(0, 1), (1, 2), (2, 3)])
    for seed in range(8):
        dealt = split(chain, DataConfig(val_fraction=0.2, test_fraction=0.2, split_seed=seed))
        assert dealt.frame[dealt.frame["group"].isin(["g0", "g1"])]["split"].nunique() == 1
        assert (dealt.frame.groupby("content")["split"].nunique() == 1).all()


def test_too_few_groups_are_an_error_that_counts_them() -> None:
    with pytest.raises(UserError, match="of 2 groups, but the splits train, test, val need at least 3"):
        split(grouped(2), DataConfig())


def test_a_class_that_only_held_out_groups_have_is_an_error_that_names_it() -> None:
    rows = [{"id": f"{g}", "label": g, "content": f"{g}", "group": f"g{g}"} for g in range(4)]
    with pytest.raises(UserError, match=r"leaves the class 'c\d' \(2 in all\) without training images"):
        split(Manifest.build(rows, classes=["c0", "c1", "c2", "c3"]), DataConfig(val_fraction=0.25, test_fraction=0.25))
