"""Sizes, docstrings, and that every recipe field is described and used."""

import ast
from collections.abc import Iterator

from tests.house.parsed import Module, fields, package_modules, section_classes

MOST_MODULE_LINES = 450
MOST_FUNCTION_LINES = 80
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def too_long(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        lines = len(module.text.splitlines())
        if lines > MOST_MODULE_LINES:
            found.append(f"{module.name} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    found.append(f"{module.name}.{node.name} has {lines} lines")
    return found


def undocumented(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        if not ast.get_docstring(module.tree):
            found.append(module.name)
        found += [f"{module.name}.{name}" for name, node in public(module.tree) if not ast.get_docstring(node)]
    return found


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions, classes, and public classes' methods and properties, whose names have no underscore before them."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def undescribed_fields(modules: list[Module]) -> list[str]:
    return [
        f"{name}.{field}"
        for name, node in section_classes(modules).items()
        for field, text in fields(node).items()
        if not text.strip()
    ]


def unread_fields(modules: list[Module]) -> list[str]:
    """Fields of the recipe's classes that no code outside the class that has them reads as an attribute."""
    sections = section_classes(modules)
    reads: dict[str, set[str]] = {}
    for module in modules:
        for owner, node in _attributes(module.tree, ""):
            reads.setdefault(node.attr, set()).add(owner)
    return [
        f"{name}.{field}"
        for name, node in sections.items()
        for field in fields(node)
        if not reads.get(field, set()) - {name}
    ]


def _attributes(node: ast.AST, owner: str) -> Iterator[tuple[str, ast.Attribute]]:
    """(the class around it, attribute read) of everything below the node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield owner, child
        yield from _attributes(child, child.name if isinstance(child, ast.ClassDef) else owner)


def test_no_module_and_no_function_is_too_long() -> None:
    assert too_long(package_modules()) == []


def test_everything_public_has_a_docstring() -> None:
    assert undocumented(package_modules()) == []


def test_every_recipe_field_has_a_description() -> None:
    assert undescribed_fields(package_modules()) == []


def test_every_recipe_field_is_read_somewhere() -> None:
    assert unread_fields(package_modules()) == []


def test_the_recipe_classes_are_found_in_every_part_of_the_house() -> None:
    names = set(section_classes(package_modules()))
    assert {"DataConfig", "FolderConfig", "AugmentConfig", "PlainCNNConfig", "OptimConfig", "Recipe"} <= names


def test_the_length_check_finds_a_long_module_and_a_long_function() -> None:
    text = "def f():\n" + "    x = 1\n" * 80 + "\n" * 400
    assert too_long([Module.of("m", text)]) == ["m has 481 lines", "m.f has 81 lines"]


def test_the_docstring_check_finds_what_lacks_one() -> None:
    text = "class A:\n    def f(self): ...\n    def _g(self): ...\nclass _B:\n    def f(self): ...\nasync def h(): ..."
    assert undocumented([Module.of("m", text)]) == ["m", "m.A", "m.A.f", "m.h"]


def test_the_field_checks_find_a_field_without_description_and_one_that_is_never_read() -> None:
    text = """
class DataConfig(Section):
    used: int
    '''It is.'''
    unused: int = 3
    '''Only its own class looks at it.'''
    written: int = 3

    def check(self):
        return self.unused

class FolderConfig(DataConfig):
    root: str
    '''A folder.'''

def scan(config):
    config.written = 4
    return config.used
"""
    modules = [Module.of("m", text)]
    assert undescribed_fields(modules) == ["DataConfig.written"]
    assert unread_fields(modules) == ["DataConfig.unused", "DataConfig.written", "FolderConfig.root"]
