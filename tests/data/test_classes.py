"""`data.classes`: what is kept, renamed and merged; the order in which anything is written never counts."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.data.classes import Classes, read_classes, select_classes
from imgcls.data.source import scan
from imgcls.data.sources.csv import CsvConfig
from imgcls.data.sources.digits import DigitsConfig
from imgcls.data.sources.folder import FolderConfig
from imgcls.errors import UserError
from imgcls.recipe import json_schema, resolve
from imgcls.tables import Manifest


def manifest(*names: str) -> Manifest:
    """Class k has k + 1 images."""
    rows = [{"id": f"{k}/{n}", "label": k, "content": f"{k}-{n}"} for k in range(len(names)) for n in range(k + 1)]
    return Manifest.build(rows, classes=names)


def names_by_content(result: Manifest) -> dict[str, str]:
    return {
        str(content): result.classes[label]
        for content, label in zip(result.frame["content"], result.labels, strict=True)
    }


ANIMALS = manifest("cat", "dog", "fish", "bird")


def test_null_keeps_the_manifest_as_it_is() -> None:
    assert select_classes(ANIMALS, None) is ANIMALS


def test_a_list_keeps_its_classes_in_the_order_of_the_source() -> None:
    for order in itertools.permutations(["fish", "bird", "cat"]):
        result = select_classes(ANIMALS, list(order))
        assert result.classes == ("cat", "fish", "bird")
        assert names_by_content(result) == {
            "0-0": "cat", "2-0": "fish", "2-1": "fish", "2-2": "fish", "3-0": "bird", "3-1": "bird", "3-2": "bird",
            "3-3": "bird",
        }  # fmt: skip


def test_images_of_other_classes_are_left_out_and_counted_by_class() -> None:
    result = select_classes(ANIMALS, ["cat", "bird"])
    assert [(item.path, item.reason, item.num_files) for item in result.skipped] == [
        ("class dog", "2 images left out by data.classes", 2),
        ("class fish", "3 images left out by data.classes", 3),
    ]
    assert len(result) + sum(item.num_files for item in result.skipped) == len(ANIMALS)
    assert list(result.frame.index) == list(range(len(result)))


def test_images_without_a_label_are_left_out_and_counted() -> None:
    rows = [{"id": f"{k}", "label": k - 1, "content": f"{k}"} for k in range(3)]
    result = select_classes(Manifest.build(rows, classes=["a", "b"]), ["a", "b"])
    assert result.ids == ["1", "2"]
    assert [(item.path, item.num_files) for item in result.skipped] == [("class without a name", 1)]


def test_the_digest_is_that_of_data_that_never_had_the_others() -> None:
    assert select_classes(ANIMALS, ["dog", "cat"]).digest == manifest("cat", "dog").digest
    assert select_classes(ANIMALS, ["dog", "cat"]).digest != ANIMALS.digest


def test_a_mapping_renames_and_merges_sorted_by_name_whatever_its_order() -> None:
    pairs = [("pet", ["dog", "cat"]), ("other", ["fish"])]
    for order in itertools.permutations(pairs):
        result = select_classes(ANIMALS, dict(order))
        assert result.classes == ("other", "pet")
        assert names_by_content(result) == {
            "0-0": "pet", "1-0": "pet", "1-1": "pet", "2-0": "other", "2-1": "other", "2-2": "other",
        }  # fmt: skip
        assert [item.path for item in result.skipped] == ["class bird"]


def test_renamed_integers_are_sorted_by_value_and_mixed_names_as_text() -> None:
    assert select_classes(ANIMALS, {"10": ["cat"], "9": ["dog"], "-1": ["fish"]}).classes == ("-1", "9", "10")
    assert select_classes(ANIMALS, {"10": ["cat"], "9": ["dog"], "x": ["fish"]}).classes == ("10", "9", "x")


def test_a_new_name_may_be_the_old_name_of_another_class() -> None:
    result = select_classes(ANIMALS, {"dog": ["cat"], "cat": ["dog"]})
    assert result.classes == ("cat", "dog")
    assert names_by_content(result) == {"0-0": "dog", "1-0": "cat", "1-1": "cat"}


def test_an_unknown_class_is_an_error_with_the_nearest_known() -> None:
    with pytest.raises(UserError, match=r"no class 'fihs'; their 4 classes are cat, .*\. Did you mean 'fish'\?"):
        select_classes(ANIMALS, ["cat", "fihs"])
    with pytest.raises(UserError, match=r"no class 'Cat' \(2 such names\).*Did you mean 'cat'\?"):
        select_classes(ANIMALS, {"a": ["Cat"], "b": ["x"]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "leaves 0 classes"),
        (["cat"], "leaves 1 class;"),
        (["cat", "dog", "cat"], "'cat' is named twice"),
        ([1, "1"], "'1' is named twice"),
        ({}, "leaves 0 classes"),
        ({"pet": ["cat", "dog"]}, "leaves 1 class;"),
        ({"a": "cat", "b": ["dog", "cat"]}, "'cat' is named twice"),
        ({"a": "cat", "b": []}, "'b' has no old name"),
        ({"1": "cat", 1: "dog"}, "every new name once"),
        ([True, "x"], "True is no class name; expected text: put it in quotes"),
        ([1.5, "x"], "1.5 is no class name"),
        (["x", None], "None is no class name"),
        (["x", ""], "'' is no class name"),
        ({"a": ["x"], "b": {"c": "d"}}, "{'c': 'd'} is no class name"),
        ("cat", "expected a list of class names, or a mapping"),
        (3, "expected a list of class names, or a mapping"),
    ],
)
def test_what_names_no_classes_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_classes(value)
    assert message in str(caught.value)
    with pytest.raises(UserError, match=r"data\.classes"):
        resolve("digits", {"data.classes": value})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[cat, dog]", ["cat", "dog"]),
        ("[1, 2]", ["1", "2"]),
        ("[1, '01', 'true']", ["1", "01", "true"]),
        ("{pet: [cat, dog], other: fish}", {"pet": ["cat", "dog"], "other": ["fish"]}),
        ("{7: [1, 2], even: 0}", {"7": ["1", "2"], "even": ["0"]}),
        ("null", None),
    ],
)
def test_it_is_typed_as_yaml_and_comes_back_from_the_recipe_of_a_run(text: str, value: Classes | None) -> None:
    recipe = resolve("digits", texts={"data.classes": text}).recipe
    assert recipe.data.classes == value
    Path("again.yaml").write_text(recipe.to_yaml())
    assert resolve("again.yaml").recipe == recipe
    assert json.loads(json.dumps(recipe.flat()["data.classes"])) == value


def test_the_schema_of_recipes_takes_integers_for_names() -> None:
    section = json_schema()["properties"]["data"]["anyOf"][0]["properties"]["classes"]
    assert section["anyOf"][0]["items"] == {"type": ["string", "integer"]}
    assert section["description"].startswith("Only some classes")


def test_every_scan_has_the_classes_asked_for() -> None:
    result = scan(DigitsConfig(classes=["7", "1"]))
    assert result.classes == ("1", "7")
    assert len(result) == 361
    assert result.images is not None
    rows = result.frame["row"].to_numpy()
    whole = scan(DigitsConfig())
    assert np.array_equal(np.flatnonzero(np.isin(whole.labels, [1, 7])), rows)


# --- class names are sorted once, by the sources


def put(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), sum(name.encode()) % 251).save(path)


def labelled(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.ids, [manifest.classes[k] for k in manifest.labels], strict=True))


def test_the_order_of_a_tables_rows_does_not_count() -> None:
    labels = {"a.png": "dog", "b.png": "cat", "c.png": "Zebra", "d.png": "cat"}
    put(*labels)
    found: list[Any] = []
    for order in itertools.permutations(labels):
        Path("t.csv").write_text("path,label\n" + "".join(f"{name},{labels[name]}\n" for name in order))
        result = scan(CsvConfig(table="t.csv"))
        assert result.classes == ("Zebra", "cat", "dog")
        assert labelled(result) == labels
        found.append(result.digest)
    assert len(set(found)) == 1


def test_integer_labels_keep_their_numeric_order_in_any_order_of_rows() -> None:
    put("a.png", "b.png", "c.png")
    for order in itertools.permutations(["a.png,10", "b.png,9", "c.png,-2"]):
        Path("t.csv").write_text("\n".join(["path,label", *order]))
        assert scan(CsvConfig(table="t.csv")).classes == ("-2", "9", "10")
        assert scan(CsvConfig(table="t.csv", classes=["10", "9"])).classes == ("9", "10")


def test_the_order_in_which_folders_were_made_does_not_count() -> None:
    for k, order in enumerate(itertools.permutations(["b", "a", "C"])):
        put(*(f"r{k}/{name}/1.png" for name in order))
        result = scan(FolderConfig(root=f"r{k}"))
        assert result.classes == ("C", "a", "b")
        assert labelled(result) == {"C/1.png": "C", "a/1.png": "a", "b/1.png": "b"}
