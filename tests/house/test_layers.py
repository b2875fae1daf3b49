"""Imports run down, without circles, and each library has one door."""

import pytest

from tests.house.parsed import PACKAGE, Module, dynamic_imports, imports, package_modules

RANKS: dict[str, int] = {
    "errors": 0, "network": 0, "sections": 0, "tables": 0, "plugins": 0,
    "data": 1, "models": 1, "evaluation": 1,
    "training": 2, "inference": 2, "tuning": 2,
    "tracking": 3, "recipe": 4, "jobs": 5, "cli": 6,
}  # fmt: skip
FREE = {PACKAGE, f"{PACKAGE}.__main__"}
"""The public names, loaded when they are used, and `python -m imgcls`."""
DOORS: dict[str, tuple[str, ...]] = {
    "click": ("imgcls.cli",),
    "optuna": ("imgcls.tuning",),
    "mlflow": ("imgcls.tracking",),
    "albumentations": ("imgcls.data.augment",),
    "captum": ("imgcls.inference.explain",),
    "onnx": ("imgcls.inference.export",),
    "onnxruntime": ("imgcls.inference.export",),
    "onnxscript": ("imgcls.inference.export",),
    "matplotlib": ("imgcls.evaluation.plots", "imgcls.inference.explain"),
}


def layer_violations(modules: list[Module]) -> list[str]:
    known = {module.name for module in modules}
    found = []
    for module in modules:
        if module.name in FREE:
            continue
        part = module.name.split(".")[1]
        if part not in RANKS:
            found.append(f"{module.name}: {part} has no place in the layers")
            continue
        for item in imports(module, known):
            parts = item.target.split(".")
            if parts[0] != PACKAGE or len(parts) == 1 or parts[1] == part:
                continue
            below = RANKS.get(parts[1], 99)
            if below > RANKS[part] or (below == RANKS[part] > 0):
                found.append(f"{module.name}:{item.line} imports {item.target}")
    return found


def circles(modules: list[Module]) -> list[str]:
    known = {module.name for module in modules}
    arrows = {
        module.name: sorted({item.target for item in imports(module, known)} & (known - FREE))
        for module in modules
        if module.name not in FREE
    }
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in arrows[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in arrows:
        visit(name, ())
    return found


def door_violations(modules: list[Module]) -> list[str]:
    known = {module.name for module in modules}
    return [
        f"{module.name}:{item.line} imports {item.target}"
        for module in modules
        for item in imports(module, known)
        if (doors := DOORS.get(item.target.split(".")[0])) is not None
        and not any(module.name == door or module.name.startswith(door + ".") for door in doors)
    ]


def test_imports_run_down_only() -> None:
    assert layer_violations(package_modules()) == []


def test_no_module_reaches_itself_through_its_imports() -> None:
    assert circles(package_modules()) == []


def test_every_library_with_a_door_is_imported_there_only() -> None:
    assert door_violations(package_modules()) == []


def test_only_the_public_names_are_imported_by_a_name_made_at_run_time() -> None:
    found = [f"{m.name}:{line}" for m in package_modules() if m.name != PACKAGE for line in dynamic_imports(m)]
    assert found == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("imgcls.data.x", "from imgcls import recipe"),
        ("imgcls.data.x", "import imgcls.jobs.train"),
        ("imgcls.data.x", "from ..models import family"),
        ("imgcls.training.x", "def f():\n    from imgcls.tracking.run import start"),
        ("imgcls.training.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import imgcls.cli"),
        ("imgcls.tables", "import imgcls.data"),
        ("imgcls.misc", ""),
    ],
)
def test_the_layer_check_finds_an_import_upward_or_sideways(name: str, text: str) -> None:
    others = [Module.of(f"imgcls.{part}", "") for part in ("recipe", "models", "models.family", "jobs.train")]
    assert len(layer_violations([Module.of(name, text), *others])) == 1


def test_the_layer_check_lets_imports_run_down_and_inside_a_folder() -> None:
    text = "import torch, imgcls\nfrom imgcls import __version__, tables\nfrom . import y\nfrom .y import z"
    modules = [Module.of("imgcls.data.x", text), Module.of("imgcls.data.y", ""), Module.of("imgcls.tables", "")]
    assert layer_violations(modules) == []


def test_the_circle_check_finds_a_circle_behind_a_lazy_import() -> None:
    modules = [
        Module.of("imgcls.data.a", "import imgcls.data.b"),
        Module.of("imgcls.data.b", "def f():\n    from imgcls.data import a"),
    ]
    assert circles(modules) == ["imgcls.data.a -> imgcls.data.b -> imgcls.data.a"]


def test_the_door_check_finds_an_import_beside_the_door() -> None:
    modules = [
        Module.of("imgcls.jobs.train", "def f():\n    from mlflow.entities import Run"),
        Module.of("imgcls.tracking.run", "import mlflow"),
        Module.of("imgcls.evaluation.plots", "import matplotlib"),
        Module.of("imgcls.evaluation.plotting", "import matplotlib.pyplot"),
    ]
    assert door_violations(modules) == [
        "imgcls.jobs.train:2 imports mlflow.entities",
        "imgcls.evaluation.plotting:1 imports matplotlib.pyplot",
    ]


def test_the_run_time_import_check_finds_one() -> None:
    module = Module.of("imgcls.x", "import importlib\nimportlib.import_module('mlflow')\n__import__('click')")
    assert list(dynamic_imports(module)) == [2, 3]
