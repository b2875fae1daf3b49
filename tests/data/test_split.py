"""Splits: deterministic, stratified, blind to names, and never through equal bytes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgcls.data.source import DataConfig
from imgcls.data.sources.csv import CsvConfig
from imgcls.data.sources.folder import FolderConfig
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


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (DataConfig(), r" Give data of several classes\.$"),
        (FolderConfig(root="x"), r"one sub-folder a class: is data\.root a level too deep\?$"),
        (CsvConfig(table="x"), r"is data\.label_column the right one\?$"),
    ],
)
def test_one_class_only_is_an_error_with_the_hint_of_its_source(config: DataConfig, hint: str) -> None:
    with pytest.raises(UserError, match=r"one class only \('c0'\); a classifier needs at least two\..*" + hint):
        split(manifest([9]), config)


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


def test_a_class_that_is_a_copy_of_another_is_an_error() -> None:
    rows = [{"id": f"{label}/{k}", "label": label, "content": f"{k}"} for label in range(2) for k in range(9)]
    with pytest.raises(UserError, match=r"has 0 different images of its own .* in another class too"):
        split(Manifest.build(rows, classes=["a", "b"]), DataConfig(tiny_classes="train"))


# --- tiny classes


def test_tiny_classes_give_their_images_to_train_then_val_which_is_told() -> None:
    result = split(manifest([3, 2, 1, 9], copies=2), DataConfig(tiny_classes="train"))
    sides = result.frame.groupby("label")["split"].unique().map(sorted).to_dict()
    assert sides == {0: ["test", "train", "val"], 1: ["train", "val"], 2: ["train"], 3: ["test", "train", "val"]}
    assert result.notices == (
        "tiny classes, 2 in all, have too few different images (c1: 2, c2: 1): the splits train, test, val need at "
        "least 3; they go to train first, then val, then test",
    )


def test_the_error_for_a_tiny_class_names_the_field_and_counts_the_others() -> None:
    with pytest.raises(
        UserError, match=r"'c1' has 2 .* \(2 classes have too few\)\. .* set data\.tiny_classes to train"
    ):
        split(manifest([5, 2, 1]), DataConfig())


def test_where_no_class_is_tiny_nothing_is_told_and_the_rule_does_not_count() -> None:
    first, second = (split(manifest([5, 9]), DataConfig(tiny_classes=rule)) for rule in ("error", "train"))
    assert first.frame.equals(second.frame)
    assert first.notices == second.notices == ()


def test_a_tiny_class_in_groups_keeps_its_last_group_in_train() -> None:
    rows = [
        {"id": f"{g}/{k}", "label": k % 2, "content": f"{g}-{k}", "group": f"g{g}"} for g in range(9) for k in range(4)
    ]
    rows += [{"id": "rare", "label": 2, "content": "rare", "group": "g0"}]
    for seed in range(12):
        config = DataConfig(tiny_classes="train", test_fraction=0.3, val_fraction=0.3, split_seed=seed)
        result = split(Manifest.build(rows, classes=["a", "b", "rare"]), config)
        assert set(result.frame[result.frame["group"] == "g0"]["split"]) == {"train"}
        assert (result.frame.groupby("group")["split"].nunique() == 1).all()
        assert result.notices == tuple(
            f"the split {name} has no images of 1 of 3 classes (rare): whole groups are dealt"
            for name in ("test", "val")
        )


def test_groups_that_are_each_the_last_of_a_class_cannot_be_held_out() -> None:
    rows = [{"id": f"{g}", "label": g, "content": f"{g}", "group": f"g{g}"} for g in range(4)]
    with pytest.raises(UserError, match="no group can go to test: each is the last with images of some class"):
        split(Manifest.build(rows, classes=list("abcd")), DataConfig(tiny_classes="train"))


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


# --- what holds for any data


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of three classes with copies inside and across classes, perhaps in groups."""
    num = draw(st.integers(20, 60))
    has_groups = draw(st.booleans())
    rows = []
    for k in range(num):
        content = f"own{k}" if k < 15 else f"any{draw(st.integers(0, num))}"
        group = f"g{draw(st.integers(0, 9))}" if has_groups and draw(st.integers(0, 3)) else ""
        label = k % 3 if k < 15 else draw(st.integers(0, 2))
        rows.append({"id": f"Dir/{k:03d}.PNG", "label": label, "content": content, "group": group})
    return rows


FIELDS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"split_seed": st.integers(0, 3), "tiny_classes": st.sampled_from(["error", "train"])},
    optional={"fold": st.sampled_from(["1 of 2", "2 of 3"]), "test_fraction": st.sampled_from([0.0, 0.3])},
)


def splittable(
    rows: list[dict[str, Any]], fields: dict[str, Any], classes: Sequence[str] = ("b", "a", "C")
) -> Manifest:
    try:
        return split(Manifest.build(rows, classes=classes), DataConfig(**fields))
    except UserError:
        assume(False)
        raise


@given(tables(), FIELDS)
@settings(max_examples=60, deadline=None)
def test_equal_bytes_and_groups_are_never_on_two_sides(rows: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    frame = splittable(rows, fields).frame
    assert set(frame["split"]) <= {"train", "val", "test"}
    assert (frame.groupby("content")["split"].nunique() == 1).all()
    groups = frame[frame["group"] != ""]
    assert (groups.groupby("group")["split"].nunique() == 1).all()


@given(tables(), FIELDS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_paths_case_and_the_names_of_classes_and_groups_do_not_count(
    rows: list[dict[str, Any]], fields: dict[str, Any], random: Any
) -> None:
    first = splittable(rows, fields)
    to = random.sample(range(3), 3)
    other = [
        {**row, "id": f"dir/{random.random()}/{k}", "path": f"/x/{k}", "label": to[row["label"]],
         "group": row["group"] and f"H{row['group'].upper()}"}
        for k, row in enumerate(random.sample(rows, len(rows)))
    ]  # fmt: skip
    second = split(Manifest.build(other, classes=["x", "Y", "z"]), DataConfig(**fields))
    pairs = [sorted(zip(m.frame["content"], m.frame["split"], strict=True)) for m in (first, second)]
    assert pairs[0] == pairs[1]


@given(tables(), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_folds_of_any_data_are_a_partition(rows: list[dict[str, Any]], seed: int) -> None:
    rows = [{**row, "group": ""} for row in rows]
    fields = {"split_seed": seed, "test_fraction": 0.2}
    folds = [splittable(rows, {**fields, "fold": f"{i} of 3"}) for i in (1, 2, 3)]
    held = [set(fold.part("val").ids) for fold in folds]
    test = set(splittable(rows, fields).part("test").ids)
    assert all(set(fold.part("test").ids) == test for fold in folds)
    assert sum(map(len, held)) == len(set.union(*held)) == len(rows) - len(test)


@pytest.mark.parametrize("fields", [{}, {"fold": "3 of 5"}])
@pytest.mark.parametrize("groups", [0, 20, 10_000])
def test_thirty_thousand_images_of_a_thousand_classes_are_split_in_about_a_second(
    fields: dict[str, Any], groups: int
) -> None:
    rows = [
        {"id": f"{k:06d}", "label": k % 1000, "content": f"{k}", "group": f"g{k // 7 % groups}" if groups else ""}
        for k in range(30_000)
    ]
    before = Manifest.build(rows, classes=[f"c{k}" for k in range(1000)])
    begin = time.process_time()
    counts = split(before, DataConfig(**fields)).counts()
    assert time.process_time() - begin < 5  # 0.1 to 0.3 s on an idle core
    assert all(counts.values())
