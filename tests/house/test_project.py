"""The files around the package agree with it: README, MLproject, conda.yaml, pyproject.toml, the recipes."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from imgcls.cli import cli
from tests.house.parsed import ROOT

RECIPES = sorted((ROOT / "experiments").glob("*.yaml"))
PROMISES = ("Source:", "Expect:", "Hardware:", "Command:")
HEAVY = (
    "torch",
    "torchvision",
    "mlflow",
    "optuna",
    "albumentations",
    "cv2",
    "matplotlib",
    "sklearn",
    "pandas",
    "pyarrow",
)
LOCAL = ("/" + "work/", "pypi" + ".org", "files.python" + "hosted", "/tmp" + "/v/")
"""What only means something on the machine that the code was written on."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command below the group: ("train",), ("recipe", "show"), …"""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def undocumented(group: click.Group, readme: str) -> list[str]:
    words = [" ".join(["imgcls", *path]) for path in commands(group)]
    return [command for command in words if not re.search(rf"\b{re.escape(command)}\b", readme)]


def project_problems(project: Mapping[str, Any], known: set[tuple[str, ...]]) -> list[str]:
    """What is wrong with an MLproject: parameters that reach no command, null defaults, commands that are no verb."""
    found = [f"no entry point {name}" for name in ("main", "train") if name not in project["entry_points"]]
    for name, entry in project["entry_points"].items():
        command, parameters = entry["command"], entry.get("parameters", {})
        found += [f"{name}: {{{p}}} is not in the command" for p in parameters if f"{{{p}}}" not in command]
        found += [f"{name}: {{{p}}} is no parameter" for p in re.findall(r"{(\w+)}", command) if p not in parameters]
        found += [f"{name}: the default of {p} is null" for p, v in parameters.items() if _is_null(v)]
        words = shlex.split(command)
        verb = tuple(words[3:])
        if words[:3] != ["python", "-m", "imgcls"] or not any(verb[: len(path)] == path for path in known):
            found.append(f"{name}: {command!r} is no command of imgcls")
    return found


def _is_null(parameter: object) -> bool:
    return parameter is None or (
        isinstance(parameter, dict) and "default" in parameter and parameter["default"] is None
    )


def recipe_head(text: str) -> str:
    """The comment that a file opens with."""
    lines = text.splitlines()
    end = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def local_mentions(files: Mapping[str, str]) -> list[str]:
    return [f"{name}: {needle}" for name, text in files.items() for needle in LOCAL if needle in text]


def test_every_command_stands_in_the_readme() -> None:
    assert undocumented(cli, (ROOT / "README.md").read_text(encoding="utf-8")) == []


def test_every_command_and_option_says_what_it_does() -> None:
    silent = []
    for path in commands(cli):
        command: click.Command = cli
        for word in path:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        silent += [" ".join(path)] * (not command.help)
        silent += [f"{' '.join(path)} {p.name}" for p in command.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


def test_every_project_parameter_reaches_a_command_that_exists() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    assert project_problems(project, set(commands(cli))) == []


def test_the_conda_environment_has_the_dependencies_of_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))["dependencies"]
    assert [entry["pip"] for entry in conda if isinstance(entry, dict)] == [project["dependencies"]]
    assert f"python{project['requires-python']}" in conda


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_package_loads(path: Path) -> None:
    from imgcls.recipe import resolve

    needs_root = "source: folder" in path.read_text(encoding="utf-8")
    assert resolve(path, {"data.root": "photos"} if needs_root else {}).notices == ()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_promises(path: Path) -> None:
    head = recipe_head(path.read_text(encoding="utf-8"))
    assert [word for word in PROMISES if word not in head] == []


def test_there_are_recipes_to_check() -> None:
    assert {"digits", "folder"} <= {path.stem for path in RECIPES}


def test_no_committed_file_mentions_a_place_on_the_machine_it_was_written_on() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 20
    files = {name: (ROOT / name).read_text(encoding="utf-8", errors="replace") for name in names}
    assert local_mentions(files) == []


def test_no_help_imports_anything_heavy() -> None:
    program = f"""
import sys
from imgcls.cli import cli
for path in {[(), *commands(cli)]!r}:
    cli.main([*path, "--help"], standalone_mode=False)
    for name in {HEAVY!r}:
        if name in sys.modules:
            sys.exit(f"imgcls {{' '.join(path)}} --help has imported {{name}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage:") == 1 + len(list(commands(cli)))


@pytest.mark.slow
def test_a_job_starts_without_what_only_some_of_its_figures_need() -> None:
    program = """
import sys
import imgcls.jobs.train
for name in ("scipy.stats", "scipy.optimize", "matplotlib.pyplot"):
    if name in sys.modules:
        sys.exit(f"imgcls.jobs.train has imported {name}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_check_finds_a_command_that_is_not_there() -> None:
    @click.group()
    def group() -> None: ...

    @group.command("show")
    def show() -> None: ...

    assert undocumented(group, "imgcls showing, imgcls  show") == ["imgcls show"]


def test_the_project_check_finds_what_is_wrong() -> None:
    project = {
        "entry_points": {
            "main": {
                "parameters": {"recipe": {"default": None}, "lost": {"default": 1}, "required": "string"},
                "command": "python -m imgcls trian {recipe} {extra} {required}",
            }
        }
    }
    assert project_problems(project, {("train",)}) == [
        "no entry point train",
        "main: {lost} is not in the command",
        "main: {extra} is no parameter",
        "main: the default of recipe is null",
        "main: 'python -m imgcls trian {recipe} {extra} {required}' is no command of imgcls",
    ]


def test_the_head_of_a_recipe_ends_where_its_comment_ends() -> None:
    assert recipe_head("# one\n# two\n\n# three\ndata:\n") == "# one\n# two"


def test_the_mention_check_finds_one() -> None:
    assert local_mentions({"a": "x", "b": f"see {LOCAL[0]}shared"}) == [f"b: {LOCAL[0]}"]
