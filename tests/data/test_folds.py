"""k folds: a partition, the same test split, balanced classes, whole groups, and what is refused."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from imgcls.data.source import DataConfig, parse_fold
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.tables import Manifest


def manifest(counts: Sequence[int], *, given: Mapping[int, str] | None = None, groups: int = 0) -> Manifest:
    """`counts[label]` different images of each class, number k in group k % groups; `given` numbers have that split."""
    rows = [
        {
            "id": f"{label}/{number:04d}",
            "label": label,
            "content": f"{label}-{number}",
            "split": (given or {}).get(number, ""),
            "group": f"g{number % groups}" if groups else "",
        }
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    return Manifest.build(rows, classes=[f"c{k}" for k in range(len(counts))])


def folds_of(before: Manifest, count: int, **fields: object) -> list[Manifest]:
    return [
        split(before, DataConfig.model_validate({"fold": f"{i} of {count}", **fields})) for i in range(1, count + 1)
    ]


def ids(result: Manifest, name: str) -> list[str]:
    return result.part(name).ids


def assert_partition(dealt: Sequence[Manifest]) -> None:
    """Every image that is not test is in val of exactly one fold, and in train of the others."""
    tests = [ids(result, "test") for result in dealt]
    assert all(test == tests[0] for test in tests)
    validated = sorted(name for result in dealt for name in ids(result, "val"))
    assert validated == sorted(set(dealt[0].ids) - set(tests[0]))
    assert all(ids(result, "val") and ids(result, "train") for result in dealt)


@pytest.mark.parametrize("text", ["2 of 5", "2/5", " 02 / 5", "2of5"])
def test_a_fold_is_kept_as_i_of_k(text: str) -> None:
    assert DataConfig(fold=text).fold == "2 of 5"
    assert parse_fold(text) == (2, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 of 5", "from 1 to 5, found 0"), ("6/5", "from 1 to 5, found 6"), ("1/1", "at least two folds"),
        ("1/0", "at least two folds"), ("2", "i of k or i/k"), ("-1/5", "i of k"), ("1.5/3", "i of k"), ("", "i of k"),
    ],
)  # fmt: skip
def test_what_is_no_fold_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(fold=text)


def test_the_folds_are_a_partition_of_what_is_not_test() -> None:
    assert_partition(folds_of(manifest([23, 40, 7]), 3))


def test_the_test_split_is_that_of_no_folds() -> None:
    before = manifest([23, 40, 7])
    config = DataConfig(test_fraction=0.2, split_seed=5)
    for result in folds_of(before, 4, test_fraction=0.2, split_seed=5):
        assert ids(result, "test") == ids(split(before, config), "test")


def test_the_test_split_of_groups_is_that_of_no_folds() -> None:
    before = manifest([30, 30], groups=10)
    for result in folds_of(before, 3, test_fraction=0.2):
        assert ids(result, "test") == ids(split(before, DataConfig(test_fraction=0.2)), "test")


def test_every_class_is_spread_evenly_over_the_folds() -> None:
    for result in folds_of(manifest([25, 50, 11]), 5, test_fraction=0):
        of_class = np.bincount(result.part("val").labels, minlength=3)
        assert of_class[0] == 5
        assert of_class[1] == 10
        assert of_class[2] in (2, 3)


def test_the_odd_images_of_many_classes_do_not_all_go_to_the_first_fold() -> None:
    sizes = [result.counts()["val"] for result in folds_of(manifest([4] * 30), 3, test_fraction=0)]
    assert sizes == [40, 40, 40]


def test_another_seed_gives_other_folds() -> None:
    first, second = (ids(folds_of(manifest([30, 30]), 2, split_seed=seed)[0], "val") for seed in (0, 1))
    assert first != second


def test_a_given_test_split_stays_and_a_given_val_is_pooled_which_is_told() -> None:
    given = {**dict.fromkeys(range(12), "train"), **dict.fromkeys(range(12, 15), "val"), 15: "test"}
    dealt = folds_of(manifest([16, 16], given=given), 5)
    assert_partition(dealt)
    assert ids(dealt[0], "test") == ["0/0015", "1/0015"]
    assert [result.counts()["val"] for result in dealt] == [6] * 5
    assert dealt[0].notices == (
        "data.fold: the given val split (6 images) is pooled with train and dealt into 5 folds",
    )


def test_where_only_val_is_given_no_test_is_taken() -> None:
    dealt = folds_of(manifest([10, 10], given={**dict.fromkeys(range(8), "train"), 8: "val", 9: "val"}), 2)
    assert_partition(dealt)
    assert dealt[0].counts() == {"train": 10, "val": 10, "test": 0}


def test_equal_bytes_are_in_one_fold() -> None:
    rows = [{"id": f"{k:02d}", "label": k // 3 % 2, "content": f"{k // 3}"} for k in range(60)]
    for result in folds_of(Manifest.build(rows, classes=["a", "b"]), 4, test_fraction=0):
        assert (result.frame.groupby("content")["split"].nunique() == 1).all()


def test_no_group_is_on_two_sides_of_a_fold_and_the_classes_are_balanced() -> None:
    dealt = folds_of(manifest([60, 60, 20], groups=20), 5, test_fraction=0)
    assert_partition(dealt)
    for result in dealt:
        assert (result.frame.groupby("group")["split"].nunique() == 1).all()
        assert np.bincount(result.part("val").labels).tolist() == [12, 12, 4]


def test_groups_of_unequal_sizes_and_classes_give_folds_near_one_another() -> None:
    generator = np.random.default_rng(0)
    rows = [
        {"id": f"{group}/{k:03d}", "label": int(label), "content": f"{group}-{k}", "group": f"g{group}"}
        for group in range(60)
        for k, label in enumerate(generator.choice(4, generator.integers(1, 40), p=generator.dirichlet(np.ones(4))))
    ]
    before = Manifest.build(rows, classes=list("abcd"))
    for seed in range(3):
        dealt = folds_of(before, 5, test_fraction=0, split_seed=seed)
        assert_partition(dealt)
        counts = np.array([np.bincount(result.part("val").labels, minlength=4) for result in dealt])
        assert (counts.max(axis=0) < 1.3 * counts.mean(axis=0)).all()


def test_group_folds_depend_on_contents_and_seed_not_on_names() -> None:
    before = manifest([30, 24], groups=6)
    columns = zip(before.labels.tolist(), before.frame["content"], before.frame["group"], strict=True)
    rows = [
        {"id": f"{1000 - k}", "label": label, "content": content, "group": f"X{group}"}
        for k, (label, content, group) in enumerate(columns)
    ]
    other = Manifest.build(rows[::-1], classes=["z", "a"])
    by_content = [
        dict(zip(m.frame["content"], m.frame["split"], strict=True))
        for m in (folds_of(before, 3)[1], folds_of(other, 3)[1], folds_of(before, 3, split_seed=1)[1])
    ]
    assert by_content[0] == by_content[1] != by_content[2]


def test_a_class_with_fewer_images_than_folds_is_an_error_that_names_the_way_out() -> None:
    message = r"the class 'c1' has 4 different images of its own, but the 5 folds .* need at least 5\. .*tiny_classes"
    with pytest.raises(UserError, match=message):
        folds_of(manifest([20, 4]), 5, test_fraction=0)


def test_tiny_classes_are_in_as_many_folds_as_they_have_images_and_always_in_train() -> None:
    dealt = folds_of(manifest([20, 3, 1]), 5, test_fraction=0, tiny_classes="train")
    validated = np.array([np.bincount(result.part("val").labels, minlength=3) for result in dealt])
    assert validated.sum(axis=0).tolist() == [20, 3, 0]
    assert validated[:, 1].max() == 1
    assert all(set(result.part("train").labels.tolist()) == {0, 1, 2} for result in dealt)
    assert dealt[0].notices == (
        "tiny classes, 2 in all, have too few different images (c1: 3, c2: 1): the 5 folds of data.fold need at least "
        "5; they are in val in as many folds as they have images, and in train in every fold",
    )


def test_fewer_groups_than_folds_are_an_error() -> None:
    with pytest.raises(UserError, match=r"of 3 groups, but the 4 folds of data\.fold need at least 4"):
        folds_of(manifest([30, 30], groups=3), 4, test_fraction=0)


def one_group_class() -> Manifest:
    """Class b is in the group g0 alone."""
    rows = [{"id": f"{k:02d}", "label": 0, "content": f"a{k}", "group": f"g{k % 8}"} for k in range(40)]
    rows += [{"id": f"b{k}", "label": 1, "content": f"b{k}", "group": "g0"} for k in range(3)]
    return Manifest.build(rows, classes=["a", "b"])


def test_a_class_of_one_group_is_an_error_or_its_group_stays_in_train() -> None:
    with pytest.raises(UserError, match=r"groups of the class 'b' \(1 such classes\) are all in one of the 4 folds"):
        folds_of(one_group_class(), 4, test_fraction=0)
    dealt = folds_of(one_group_class(), 4, test_fraction=0, tiny_classes="train")
    for result in dealt:
        assert set(result.frame[result.frame["group"] == "g0"]["split"]) == {"train"}
        assert result.notices == ("the split val has no images of 1 of 2 classes (b): whole groups are dealt",)
    assert sum(result.counts()["val"] for result in dealt) == 35


def test_a_fold_beside_a_table_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"each gives a split\. Set data\.fold or data\.split_from to null"):
        DataConfig(fold="1 of 2", split_from="split.csv")
