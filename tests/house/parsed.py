"""The package as syntax trees: what the house tests look at. Nothing of it is imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "imgcls"


@dataclass(frozen=True)
class Module:
    """A module's dotted name, whether it is a package's `__init__`, its text and its tree."""

    name: str
    is_package: bool
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, name: str, text: str, *, is_package: bool = False) -> "Module":
        return cls(name, is_package, text, ast.parse(text))


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and the line that imports it."""

    target: str
    line: int


def package_modules() -> list[Module]:
    """Every module of the package."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module.of(name, path.read_text(encoding="utf-8"), is_package=is_package))
    return found


def imports(module: Module, known: set[str]) -> Iterator[Import]:
    """Every import in the module, also those in functions and under TYPE_CHECKING.

    `from a import b` counts as `a.b` where that is a known module, else as `a`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(whole if whole in known else base, node.lineno)


def dynamic_imports(module: Module) -> Iterator[int]:
    """The lines that import a module by a name made at run time."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            if name in ("import_module", "__import__"):
                yield node.lineno


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def section_classes(modules: list[Module]) -> dict[str, ast.ClassDef]:
    """The recipe's classes: every class that derives, at any distance, from `Section`."""
    classes = {node.name: node for m in modules for node in ast.walk(m.tree) if isinstance(node, ast.ClassDef)}
    found = {"Section"}
    while True:
        more = {name for name, node in classes.items() if found & {ast.unparse(base) for base in node.bases}}
        if more <= found:
            return {name: classes[name] for name in sorted(found - {"Section"})}
        found |= more


def fields(section: ast.ClassDef) -> dict[str, str]:
    """Field name -> its docstring ("" where it has none)."""
    found = {}
    for node, after in zip(section.body, [*section.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            documented = isinstance(text, ast.Constant) and isinstance(text.value, str)
            found[node.target.id] = str(text.value) if documented and isinstance(text, ast.Constant) else ""
    return found
