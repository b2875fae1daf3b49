"""Registries of plug-ins and their errors."""

import pytest

from imgcls.errors import UserError
from imgcls.plugins import Registry, nearest, unknown_name


def registry() -> Registry[int]:
    numbers: Registry[int] = Registry("number")
    numbers.register("three")(3)
    numbers.register("One")(1)
    numbers.register("two")(2)
    return numbers


def test_a_registered_item_is_found_by_its_name() -> None:
    assert registry().get("two") == 2
    assert registry().names() == ["One", "three", "two"]


def test_register_gives_back_what_it_decorates() -> None:
    def item() -> None: ...

    functions: Registry[object] = Registry("function")
    assert functions.register("item")(item) is item


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        registry().get("thre")
    assert str(caught.value) == "unknown number 'thre'; known: One, three, two. Did you mean 'three'?"


def test_a_name_like_no_other_gets_no_guess() -> None:
    assert str(unknown_name("number", "zzz", ["two", "one"])) == "unknown number 'zzz'; known: one, two."


def test_a_name_registered_twice_is_a_bug() -> None:
    numbers = registry()
    with pytest.raises(ValueError, match="number 'two' is registered twice") as caught:
        numbers.register("two")(22)
    assert not isinstance(caught.value, UserError)
    assert numbers.get("two") == 2


def test_the_nearest_name_ignores_case_but_keeps_the_known_spelling() -> None:
    assert nearest("RESNET", ["ResNet18", "plaincnn"]) == "ResNet18"
    assert nearest("", ["a"]) is None
    assert nearest("a", []) is None
