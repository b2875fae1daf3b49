"""Recipes: how values parse, what is overridden, what is refused and with which words, and the way to YAML and back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcls import recipe as recipes
from imgcls.data.source import SOURCES
from imgcls.errors import UserError
from imgcls.models.family import FAMILIES
from imgcls.recipe import Recipe, built_in, diff, json_schema, parse_value, resolve
from imgcls.training.optim import SCHEDULES
from imgcls.training.optimizers import OPTIMIZERS


def error_of(recipe: Any = "digits", overrides: dict[str, Any] | None = None, **words: str) -> str:
    """The message of the error that a recipe with these overrides and typed words gives (`__` for the dot)."""
    return error_of_words({name.replace("__", "."): text for name, text in words.items()}, recipe, overrides)


def error_of_words(words: dict[str, str], recipe: Any = "digits", overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        resolve(recipe, overrides, texts=words)
    return str(caught.value)


def write(text: str, name: str = "mine.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


# --- values as they are typed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 100000.0), (".5", 0.5), ("5.", 5.0), ("-.5e3", -500.0),
        ("3", 3), ("+1", 1), ("-7", -7),
        ("0x10", 16), ("0o17", 15), (".inf", math.inf), ("-.inf", -math.inf),
        ("true", True), ("True", True), ("false", False),
        ("null", None), ("~", None), ("", None),
        ("'1e-3'", "1e-3"), ('"true"', "true"), ("''", ""), ("'it''s'", "it's"), (r'"a\tb"', "a\tb"),
        ("[1, 2]", [1, 2]), ("[1e-3, x, null]", [0.001, "x", None]), ("[]", []),
        ("{a: 1}", {"a": 1}), ("{3: none}", {3: "none"}),
    ],
)  # fmt: skip
def test_a_typed_value_is_read_as_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text, "optim.lr")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "y", "N", "2024-01-01", "2024-01-01 10:00:00", "1:30", "017", "1_000", "0b1", "1.2.3",
     "=", "<<", "resnet18", "né", "/data/a b", "C:\\x", ".", "1e", "e5", "nan", "inf", "None"],
)  # fmt: skip
def test_what_only_yaml_1_1_or_python_takes_for_a_value_stays_a_word(text: str) -> None:
    assert parse_value(text, "data.root") == text


def test_not_a_number_is_read_as_yaml_writes_it() -> None:
    assert math.isnan(parse_value(".nan", "optim.lr"))


@pytest.mark.parametrize("text", ["/photos/set #3", "a # b", "#tag it"])
def test_a_word_with_a_hash_is_not_cut_as_if_it_were_a_comment(text: str) -> None:
    root = resolve(None, texts={"data.root": text}).recipe.flat()["data.root"]
    assert root == str(Path(text).absolute())


@pytest.mark.parametrize(
    "text",
    ["[1, 2", "'x", "a: b: c", "{a: 1, a: 2}", "@x", "*x", "!!python/object:os.system x", "!!int x", "!!bool x",
     "!!timestamp x", "!mine x", "a\x00b", "{[1]: 2}", "--- 1\n--- 2", "[" * 3000, "9" * 5000],
)  # fmt: skip
def test_text_that_is_no_yaml_is_an_error_that_names_the_field_and_the_text(text: str) -> None:
    with pytest.raises(UserError, match="no YAML value") as caught:
        parse_value(text, "optim.lr")
    assert str(caught.value).startswith(f"optim.lr: found {text!r}")
    assert str(caught.value).endswith("Put it in quotes.")


# --- which recipe


def test_the_built_in_recipes_are_known_by_name() -> None:
    assert {"digits", "folder"} <= set(built_in())
    resolved = resolve("digits")
    assert (resolved.name, resolved.notices, resolved.recipe.flat()["data.source"]) == ("digits", (), "digits")


@pytest.mark.parametrize("recipe", [None, "auto"])
def test_without_a_recipe_it_is_digits_and_folder_where_a_root_is_given(recipe: str | None) -> None:
    assert resolve(recipe).name == "digits"
    resolved = resolve(recipe, texts={"data.root": "photos"})
    assert (resolved.name, resolved.notices) == ("folder", ())
    assert resolved.recipe.flat()["data.root"] == str(Path("photos").absolute())


def test_a_file_goes_before_a_built_in_recipe_of_the_same_name() -> None:
    write("train: {epochs: 3}", "digits")
    assert resolve("digits").recipe.train.epochs == 3


def test_a_file_is_named_by_its_stem_and_what_it_leaves_out_has_its_default() -> None:
    resolved = resolve(write("optim:\n  lr: 1e-2\ntrain:\n"))
    assert resolved.name == "mine"
    assert (resolved.recipe.optim.lr, resolved.recipe.train.epochs, resolved.recipe.data.source) == (0.01, 30, "digits")


def test_an_empty_file_is_all_defaults() -> None:
    assert resolve(write("# nothing yet\n")).recipe == resolve({}).recipe


def test_sections_can_be_given_as_a_mapping_which_stays_as_it_is() -> None:
    given = {"optim": {"lr": 0.5}, "train": None}
    resolved = resolve(given, {"optim.lr": 0.25})
    assert (resolved.name, resolved.recipe.optim.lr) == ("inline", 0.25)
    assert given == {"optim": {"lr": 0.5}, "train": None}


def test_a_typed_value_goes_before_an_override_which_goes_before_the_file() -> None:
    path = write("train: {epochs: 3, batch_size: 4, seed: 5}")
    train = resolve(path, {"train.batch_size": 40, "train.seed": 50}, texts={"train.seed": "500"}).recipe.train
    assert (train.epochs, train.batch_size, train.seed) == (3, 40, 500)


def test_a_missing_recipe_names_the_path_the_built_in_ones_and_the_nearest() -> None:
    message = error_of("digts")
    assert message == (
        f"there is no recipe 'digts': no such file ({Path('digts').absolute()}), and the built-in recipes are "
        f"{', '.join(built_in())}. Did you mean 'digits'?"
    )


@pytest.mark.parametrize(
    "text",
    ["just words", "- a\n- b", "optim: 3", "optim: [lr]", "3", "optim.lr: 3"],
)
def test_a_file_without_sections_is_told_what_sections_look_like(text: str) -> None:
    message = error_of(write(text))
    assert message.startswith("the recipe mine.yaml is not made of sections; expected lines like `optim:`")
    assert "Sections: data, augment, model, optim, train, evaluate" in message


@pytest.mark.parametrize("given", [{"optim.lr": 3}, {"optim": 3}, {"optim": ["lr"]}])
def test_a_mapping_without_sections_is_told_what_sections_look_like(given: dict[str, Any]) -> None:
    assert error_of(given).startswith("the recipe is not made of sections; expected")


@pytest.mark.parametrize("text", ["optim: [", "optim:\n\tlr: 3", "optim: {lr: 1, lr: 2}", "a: !!int x", "optim: *x"])
def test_a_file_that_is_no_yaml_is_named(text: str) -> None:
    assert error_of(write(text)).startswith("the recipe mine.yaml is no YAML: ")


def test_a_key_that_stands_twice_is_an_error_with_its_place() -> None:
    message = error_of(write("optim:\n  lr: 0.1\n  momentum: 0\n  lr: 0.2\n"))
    assert "the key 'lr' stands twice" in message
    assert "line 2" in message
    assert "the key 'optim' stands twice" in error_of(write("optim: {}\ntrain: {}\noptim: {}\n"))


def test_a_file_that_is_no_text_is_named() -> None:
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert error_of("mine.yaml").startswith("the recipe mine.yaml cannot be read: ")


# --- what is refused


def test_an_unknown_field_lists_the_fields_of_its_section_and_the_nearest() -> None:
    message = error_of(optim__lrr="0.1")
    assert "unknown field 'optim.lrr'; fields of optim (OptimConfig): optimizer, lr, weight_decay" in message
    assert message.endswith("Did you mean 'optim.lr'?")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("optim.Weight_Dekay", "optim.weight_decay"), ("train.lr", "optim.lr"), ("optim.epochs", "train.epochs"),
     ("model.num_block", "model.num_blocks"), ("train.batchsize", "train.batch_size")],
)  # fmt: skip
def test_the_nearest_field_may_stand_in_another_section(given: str, nearest: str) -> None:
    assert error_of(overrides={given: 1}).endswith(f"Did you mean {nearest!r}?")


def test_a_field_that_is_like_none_gets_no_guess() -> None:
    assert "Did you mean" not in error_of(overrides={"optim.zzzzzzzz": 1})


def test_an_unknown_section_lists_the_sections_and_the_nearest() -> None:
    known = "data, augment, model, optim, train, evaluate, search, promote"
    expected = f"unknown section 'optin'; known: {known}. Did you mean 'optim'?"
    assert error_of(optin__lr="0.1").endswith(expected)
    assert error_of(write("optin: {lr: 0.1}")) == f"recipe mine.yaml: {expected}"


@pytest.mark.parametrize("name", ["lr", "optim.", ".lr", "", ".", "optim..lr"])
def test_a_name_that_is_no_section_and_field_is_refused(name: str) -> None:
    assert error_of(overrides={name: 1}).startswith(f"unknown recipe field {name!r}; expected section.field")


def test_a_field_below_a_value_is_refused() -> None:
    assert error_of(overrides={"optim.lr.x": 1}) == (
        "unknown recipe field 'optim.lr.x': lr is a value, not a group of fields."
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("optim.lr", "fast", "optim.lr: found 'fast', expected a valid number."),
        ("optim.lr", "'0.1'", "optim.lr: found '0.1', expected a valid number."),
        ("optim.lr", "[0.1]", "optim.lr: found [0.1], expected a valid number."),
        ("optim.lr", "true", "optim.lr: found True, expected a valid number."),
        ("optim.lr", "null", "optim.lr: found None, expected a valid number."),
        ("optim.lr", "0", "optim.lr: found 0, expected greater than 0."),
        ("optim.lr", "-1", "optim.lr: found -1, expected greater than 0."),
        ("optim.lr", "1000", "optim.lr: found 1000, expected less than or equal to 100."),
        ("train.epochs", "1.5", "train.epochs: found 1.5, expected a valid integer."),
        ("train.epochs", "0", "train.epochs: found 0, expected greater than or equal to 1."),
        ("train.patience", "0", "train.patience: found 0, expected greater than or equal to 1."),
        ("train.output_dir", "", "train.output_dir: found None, expected a valid string."),
        ("data.root", "''", "data.root: found '', expected at least 1 character."),
        (
            "train.monitor",
            "val/accuracy",
            "train.monitor: found 'val/accuracy', expected 'val/acc', 'val/f1', 'val/loss', 'train/acc' or "
            "'train/loss'. Did you mean 'val/acc'?",
        ),
        (
            "train.micro_batch",
            "0",
            "train.micro_batch: found 0, expected 'auto' or expected greater than or equal to 1.",
        ),
        ("optim.milestones", "3", "optim.milestones: found 3, expected a valid list."),
        ("optim.nesterov", "yes", "optim.nesterov: found 'yes', expected a valid boolean."),
        ("optim.nesterov", "1", "optim.nesterov: found 1, expected a valid boolean."),
        ("data.channels", "2", "data.channels: found 2, expected 1 or 3."),
        (
            "augment.image_size",
            "4",
            "augment.image_size: found 4, expected greater than or equal to 8 or expected 'auto'.",
        ),
        ("data.val_fraction", "1", "data.val_fraction: found 1, expected less than 1."),
        (
            "train.device",
            "cuda0",
            "train.device: found 'cuda0', expected 'auto', 'cpu' or 'cuda'. Did you mean 'cuda'?",
        ),
        ("train.device", "tpu0", "train.device: found 'tpu0', expected 'auto', 'cpu' or 'cuda'."),
        (
            "optim.optimizer",
            "adamm",
            "optim.optimizer: found 'adamm', unknown optimizer 'adamm'; known: adam, adamw, muon, nadam, rmsprop, sgd. "
            "Did you mean 'adam'?",
        ),
        ("model.kernel_size", "4", "model.kernel_size: found 4, expected 1, 3, 5, 7, 9 or 11."),
    ],
)
def test_a_value_that_does_not_fit_names_field_value_and_what_is_allowed(name: str, text: str, expected: str) -> None:
    recipe = {"data": {"source": "folder"}} if name == "data.root" else {}
    assert error_of_words({name: text}, recipe) == f"recipe: {expected}"


@pytest.mark.parametrize("name", ["optim.lr", "optim.warmup_epochs", "optim.final_lr_ratio", "model.dropout"])
@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
def test_infinity_and_not_a_number_are_no_value_of_any_field(name: str, text: str) -> None:
    assert error_of_words({name: text}, {}).startswith(f"recipe: {name}: found ")


def test_fields_that_do_not_fit_together_name_both_and_the_way_out() -> None:
    message = error_of(optim__nesterov="true")
    assert "nesterov is true with optimizer 'adamw'" in message
    assert message.endswith("Set optim.nesterov to false or optim.optimizer to sgd.")


def test_all_problems_are_told_at_once() -> None:
    message = error_of(
        optim__lr="-1", optim__decay="0", train__epochs="0", augment__preset="lite", model__kernel_size="4"
    )
    for part in (
        "optim.lr: found -1",
        "'optim.decay'",
        "train.epochs: found 0",
        "Did you mean 'light'?",
        "kernel_size",
    ):
        assert part in message


def test_an_unknown_family_or_source_lists_the_known_ones() -> None:
    message = error_of(model__family="resnet")
    assert "model.family: unknown model family 'resnet'; known: convnext_{base, " in message
    assert "Did you mean 'resnet50' or 'resnet34' or 'resnet18'?" in message
    known = ", ".join(SOURCES.names())
    assert f"data.source: unknown data source 'foldr'; known: {known}." in error_of(data__source="foldr")
    assert error_of(model__family="[x]") == "model.family: found ['x'], expected a name."


def test_a_required_field_that_is_missing_says_what_it_is_and_how_to_give_it() -> None:
    message = error_of("folder")
    assert "data.root is missing and has no default." in message
    assert message.endswith("Give it with --data.root VALUE.")


# --- sources and families


def test_another_family_drops_the_fields_it_lacks_and_says_so() -> None:
    resolved = resolve("digits", {"model.family": "resnet18"})
    assert resolved.notices == (
        "model.family is now resnet18, which has no model.num_blocks, model.channels: left out",
    )
    model = resolved.recipe.as_dict()["model"]
    assert (model["family"], model["dropout"]) == ("resnet18", 0.2)
    assert "num_blocks" not in model


def test_the_family_that_is_there_already_drops_nothing() -> None:
    resolved = resolve("digits", {"model.family": "plaincnn"})
    assert (resolved.notices, resolved.recipe) == ((), resolve("digits").recipe)


def test_a_field_given_for_a_family_that_lacks_it_is_an_error() -> None:
    message = error_of(model__family="resnet18", model__num_blocks="3")
    assert "unknown field 'model.num_blocks'; fields of model (ResNetConfig): family, " in message
    assert "dropout, stem." in message


def test_a_root_alone_makes_the_source_a_folder_and_keeps_the_rest() -> None:
    resolved = resolve("digits", texts={"data.root": "photos"})
    assert resolved.notices == ("data.root is given, so data.source is folder",)
    flat = resolved.recipe.flat()
    assert (flat["data.source"], flat["data.val_fraction"], flat["model.num_blocks"]) == ("folder", 0.2, 3)


def test_a_table_alone_makes_the_source_csv_and_keeps_the_rest() -> None:
    resolved = resolve("digits", texts={"data.table": "labels.csv"})
    assert resolved.notices == ("data.table is given, so data.source is csv",)
    flat = resolved.recipe.flat()
    assert (flat["data.source"], flat["data.val_fraction"], flat["model.num_blocks"]) == ("csv", 0.2, 3)
    assert flat["data.table"] == str(Path("labels.csv").absolute())


def test_a_table_instead_of_a_recipes_root_drops_the_root_and_says_so() -> None:
    path = write("data: {source: folder, root: photos, val_fraction: 0.3}")
    resolved = resolve(path, texts={"data.table": "labels.csv"})
    assert resolved.notices == (
        "data.table is given, so data.source is csv",
        "data.source is now csv, which has no data.root: left out",
    )
    assert (resolved.recipe.data.source, resolved.recipe.data.val_fraction) == ("csv", 0.3)


@pytest.mark.parametrize("recipe", [None, "auto"])
def test_without_a_recipe_a_table_takes_the_folder_recipe(recipe: str | None) -> None:
    resolved = resolve(recipe, texts={"data.table": "labels.csv"})
    assert (resolved.name, resolved.notices) == ("folder", ("data.table is given, so data.source is csv",))
    assert resolved.recipe.as_dict()["model"]["family"] == "resnet18"
    assert resolve(recipe, texts={"data.source": "csv", "data.table": "x.csv"}).notices == ()


def test_a_root_and_a_table_together_are_an_error() -> None:
    assert "unknown field 'data.root'" in error_of(None, data__root="photos", data__table="labels.csv")


def test_a_root_for_a_source_that_has_none_is_an_error_where_the_source_is_given_too() -> None:
    assert "unknown field 'data.root'" in error_of(data__source="digits", data__root="photos")


def test_another_source_drops_the_root_and_says_so() -> None:
    path = write("data: {source: folder, root: photos}")
    resolved = resolve(path, {"data.source": "digits"})
    assert resolved.notices == ("data.source is now digits, which has no data.root: left out",)
    assert "data.root" not in resolved.recipe.flat()


@pytest.mark.parametrize("text", ["123", "1e-3", "true", "null", "2024-01-01", "[a]", "a: b", "{a: 1}", "0x10", "1.50"])
def test_a_text_field_takes_what_was_typed_as_it_was_typed(text: str) -> None:
    recipe = resolve(None, texts={"data.root": text, "train.output_dir": text}).recipe
    assert recipe.flat()["data.root"] == str(Path(text).absolute())
    assert recipe.train.output_dir == text


def test_quotes_around_a_typed_text_are_yaml_quotes() -> None:
    assert resolve("digits", texts={"train.output_dir": "'1e-3'"}).recipe.train.output_dir == "1e-3"


def test_a_number_in_a_file_is_no_text() -> None:
    assert "train.output_dir: found 123, expected a valid string." in error_of(write("train: {output_dir: 123}"))


# --- the values of a recipe


def test_a_recipe_is_frozen() -> None:
    recipe = resolve("digits").recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 3.0  # type: ignore[misc]


def test_flat_has_every_field_by_its_dotted_name() -> None:
    recipe = resolve("digits").recipe
    flat = recipe.flat()
    assert flat["optim.lr"] == 0.003
    assert flat["train.patience"] is None
    assert len(flat) == sum(len(fields) for fields in recipe.as_dict().values())
    assert json.loads(json.dumps(flat)) == flat


def test_replace_changes_only_what_it_is_given() -> None:
    recipe = resolve("digits").recipe
    other = recipe.replace({"augment.image_size": 32, "optim.lr": 0.5})
    assert diff(recipe, other) == [("augment.image_size", 16, 32), ("optim.lr", 0.003, 0.5)]
    with pytest.raises(UserError, match="expected greater than 0"):
        recipe.replace({"optim.lr": 0})


def test_diff_lists_the_fields_that_differ_and_those_that_one_lacks() -> None:
    left = resolve({"model": {"family": "plaincnn", "dropout": 0.0}}).recipe
    right = resolve({"model": {"family": "resnet18"}, "train": {"patience": 3}}).recipe
    found = diff(left, right)
    assert [row for row in found if row[0] in ("model.family", "model.num_blocks", "model.dropout", "model.stem")] == [
        ("model.family", "plaincnn", "resnet18"),
        ("model.num_blocks", 3, None),
        ("model.dropout", 0.0, "auto"),
        ("model.stem", None, "imagenet"),
    ]
    assert ("train.patience", None, 3) in found
    assert len(found) == len({name for name, _, _ in found})
    assert diff(left, left) == []


def reload(recipe: Recipe) -> Recipe:
    return resolve(write(recipe.to_yaml(), "again.yaml")).recipe


TRICKY = [
    "1e-3", "true", "yes", "null", "~", "", " x ", "a: b", "# c", "a #b", "it's", '"q"', "é日本🦊",
    "a\nb\n", "\t", "-", "- a", "a \u2028 b", "\x85 \n", "\r\n", "\x0b",
    "[a", "{a", "*a", "&a", "!a", "%a", "@a", "|", ">", "0x10", "0o17", "017", "1_000", "2024-01-01", "=", "<<", ".inf",
    ".nan", "\x07", "\x85", "\u2028", "\ufeff", "'", "\\", "a" * 300, "word " * 40,
]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
def test_a_tricky_text_comes_back_from_yaml_as_it_was(text: str) -> None:
    recipe = resolve("folder", {"data.root": f"/photos/{text}", "train.output_dir": text}).recipe
    assert reload(recipe) == recipe


def test_the_yaml_of_a_recipe_is_plain_and_in_the_order_of_the_sections() -> None:
    text = resolve("digits", {"optim.lr": 1e-5}).recipe.to_yaml()
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        "data:", "augment:", "model:", "optim:", "train:", "evaluate:", "search:", "promote:",
    ]  # fmt: skip
    assert yaml.safe_load(text)["optim"]["lr"] == 1e-5
    assert "!!" not in text
    assert "&" not in text


OVERRIDES: dict[str, st.SearchStrategy[Any]] = {
    "optim.lr": st.floats(0, 100, exclude_min=True),
    "optim.weight_decay": st.floats(0, 1),
    "optim.optimizer": st.sampled_from(OPTIMIZERS.names()),
    "optim.schedule": st.sampled_from(sorted({*SCHEDULES.names()} - {"multistep"})),
    "optim.warmup_epochs": st.none() | st.floats(0, 100),
    "train.label_smoothing": st.floats(0, 1, exclude_max=True),
    "train.averaging": st.sampled_from(["none", "ema", "swa"]),
    "train.monitor": st.sampled_from(["val/acc", "val/f1", "val/loss", "train/acc", "train/loss"]),
    "train.epochs": st.integers(1, 100_000),
    "train.seed": st.integers(0, 2**32 - 1),
    "train.patience": st.none() | st.integers(1, 100),
    "train.cache_features": st.sampled_from(["auto", "off"]) | st.integers(1, 100_000),
    "train.output_dir": st.text(min_size=1),
    "augment.image_size": st.just("auto") | st.integers(8, 2048),
    "augment.horizontal_flip": st.booleans(),
    "model.dropout": st.floats(0, 1, exclude_max=True),
    "model.freeze_depth": st.integers(0, 9) | st.sampled_from(["all", "layer3"]),
    "optim.layer_decay": st.floats(0, 1, exclude_min=True),
    "data.val_fraction": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "data.num_workers": st.just("auto") | st.integers(0, 256),
    "data.prefetch": st.just("auto") | st.integers(1, 64),
    "data.store_budget": st.floats(0, 1000),
}


@given(st.fixed_dictionaries({}, optional=OVERRIDES))
@settings(max_examples=60, deadline=None)
def test_any_valid_overrides_are_in_the_recipe_and_come_back_from_yaml(overrides: dict[str, Any]) -> None:
    recipe = resolve("digits", overrides).recipe
    flat = recipe.flat()
    assert {name: flat[name] for name in overrides} == overrides
    assert reload(recipe) == recipe


@given(st.fixed_dictionaries({}, optional={k: v for k, v in OVERRIDES.items() if k != "train.output_dir"}))
@settings(max_examples=60, deadline=None)
def test_a_value_typed_as_json_is_the_value_itself(overrides: dict[str, Any]) -> None:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in overrides.items()}
    assert resolve("digits", texts=texts).recipe == resolve("digits", overrides).recipe


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@settings(max_examples=100, deadline=None)
def test_any_typed_text_is_a_value_or_an_error_for_the_user(text: str) -> None:
    try:
        recipe = resolve("digits", texts={"train.output_dir": text, "optim.lr": text}).recipe
    except UserError:
        return
    assert recipe.optim.lr > 0


# --- the JSON schema


def classes_of(section: dict[str, Any]) -> list[dict[str, Any]]:
    return list(section.get("anyOf", [section]))


def test_the_schema_describes_every_field_of_every_section_and_allows_no_other() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert list(schema["properties"]) == list(Recipe.model_fields)
    for name, section in schema["properties"].items():
        assert section["description"], name
        for cls in classes_of(section):
            assert (cls["type"], cls["additionalProperties"]) == ("object", False)
            assert [field for field, about in cls["properties"].items() if not about.get("description")] == []


def chosen_by(field: dict[str, Any]) -> list[str]:
    """The sources or families that a class of the schema is for."""
    return list(field.get("enum", [field.get("const", field.get("pattern"))]))


def test_the_schema_has_a_class_for_every_source_and_family() -> None:
    properties = json_schema()["properties"]
    sources = {cls["properties"]["source"]["const"] for cls in classes_of(properties["data"])}
    assert sources == set(SOURCES.names())
    families = [cls["properties"]["family"] for cls in classes_of(properties["model"])]
    names = [name for family in families for name in chosen_by(family)]
    assert sorted(names) == sorted([*(name for name in FAMILIES.names() if ":" not in name), "^timm:.+$"])
    assert len(families) < 10


def test_the_schema_says_what_values_are_allowed() -> None:
    optim = json_schema()["properties"]["optim"]["properties"]
    assert (optim["lr"]["exclusiveMinimum"], optim["lr"]["maximum"], optim["lr"]["default"]) == (0, 100, 0.001)
    train = json_schema()["properties"]["train"]["properties"]
    assert train["device"]["enum"] == ["auto", "cpu", "cuda"]


def test_the_schema_wants_nothing_that_may_be_given_on_the_command_line() -> None:
    assert [
        cls for section in json_schema()["properties"].values() for cls in classes_of(section) if "required" in cls
    ] == []


@pytest.mark.parametrize("name", recipes.built_in())
def test_a_built_in_recipe_has_only_keys_of_the_schema(name: str) -> None:
    properties = json_schema()["properties"]
    path = next(folder / f"{name}.yaml" for folder in recipes.BUILT_IN if (folder / f"{name}.yaml").is_file())
    for section, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        chooser = {"data": "source", "model": "family"}.get(section)
        fitting = [
            cls
            for cls in classes_of(properties[section])
            if chooser is None or fields[chooser] in chosen_by(cls["properties"][chooser])
        ]
        assert len(fitting) == 1
        assert set(fields) <= set(fitting[0]["properties"])
