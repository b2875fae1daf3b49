"""The verb `recipe` as functions: what it prints, and where A and B of a comparison may come from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgcls import recipe as recipes
from imgcls.errors import UserError
from imgcls.jobs import recipes as job

RUN = "0123456789abcdef" * 2


def test_show_is_the_yaml_of_the_resolved_recipe() -> None:
    assert job.show(None, {}) == recipes.resolve("digits").recipe.to_yaml()


def test_show_puts_notices_into_comments_so_that_it_prints_a_recipe() -> None:
    text = job.show("digits", {"data.root": "photos", "model.family": "resnet18"})
    notes = [line for line in text.splitlines() if line.startswith("#")]
    assert notes == [
        "# note: data.root is given, so data.source is folder",
        "# note: model.family is now resnet18, which has no model.num_blocks, model.channels: left out",
    ]
    Path("shown.yaml").write_text(text)
    assert recipes.resolve("shown.yaml").recipe.to_yaml() == text.split("\n", 2)[2]


def test_show_of_a_recipe_that_waits_for_a_root_asks_for_it() -> None:
    with pytest.raises(UserError, match=r"data\.root is missing"):
        job.show("folder", {})


def test_schema_is_indented_json_that_ends_with_a_line() -> None:
    assert json.loads(job.schema()) == recipes.json_schema()
    assert job.schema().startswith('{\n  "$schema"')
    assert job.schema().endswith("}\n")


def test_diff_of_equal_recipes_says_so() -> None:
    assert job.diff("digits", "digits") == "no difference\n"


def test_diff_reads_the_recipe_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    @contextmanager
    def artifact(run_id: str, path: str) -> Iterator[Path]:
        asked.append((run_id, path))
        Path("of-run.yaml").write_text(recipes.resolve("digits", {"optim.lr": 0.5}).recipe.to_yaml())
        yield Path("of-run.yaml")

    monkeypatch.setattr(job, "artifact", artifact)
    assert job.diff(RUN, "digits") == f"field     {RUN}  digits\noptim.lr  0.5{' ' * 31}0.003\n"
    assert asked == [(RUN, "recipe.yaml")]


def test_diff_writes_values_as_yaml_does() -> None:
    Path("a.yaml").write_text("augment: {horizontal_flip: false}\ntrain: {output_dir: é}\n")
    Path("b.yaml").write_text("train: {output_dir: '1e-3'}\noptim: {lr: 1e-5}\n")
    assert job.diff("a.yaml", "b.yaml") == (
        "field                    a.yaml  b.yaml\n"
        "augment.horizontal_flip  false   true\n"
        "optim.lr                 0.001   1e-05\n"
        "train.output_dir         é       1e-3\n"
    )


@pytest.mark.parametrize("name", ["digts", "", RUN[:31], RUN.upper(), "nowhere/mine.yaml"])
def test_a_name_that_is_no_recipe_and_no_run_id_is_told_what_would_be(name: str) -> None:
    with pytest.raises(UserError) as caught:
        job.diff("digits", name)
    assert str(caught.value) == (
        f"{name!r} is neither a recipe file, nor a built-in recipe ({', '.join(recipes.built_in())}), nor a run id "
        "(32 hexadecimal digits)."
    )


def test_a_file_is_preferred_to_the_run_whose_id_is_its_name() -> None:
    Path(RUN).write_text("optim: {lr: 0.5}")
    assert "optim.lr" in job.diff(RUN, "digits")
