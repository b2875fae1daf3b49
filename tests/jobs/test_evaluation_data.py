"""Which labelled images a model is held against, without a store: doubles stand for its run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgcls.data.source import scan
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.inference.ensemble import Model
from imgcls.jobs import evaluation_data as module
from imgcls.jobs import reading
from imgcls.jobs.console import Console
from imgcls.jobs.evaluation_data import Subject, find_subject, num_of, seen_by, trained_on
from imgcls.recipe import Recipe, resolve
from imgcls.tables import Manifest
from imgcls.tracking.store import MissingArtifact
from tests.inference.test_classifier import classifier

QUIET = Console(quiet=True)
RUN, OTHER = "a" * 32, "b" * 32


@dataclass
class Made:
    """A model that a run has made of some images."""

    recipe: Recipe
    digest: str | None
    run_id: str | None = RUN
    address: str = f"runs:/{RUN}/model"

    @property
    def model(self) -> Model:
        found = classifier()
        object.__setattr__(found, "classes", ("class0", "class1", "class2"))
        return found


def write_split(manifest: Manifest, path: Path) -> None:
    manifest.frame[["id", "split", "content"]].to_csv(path, index=False)


@pytest.fixture
def made(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A model of three classes, whose run's folder is `photos`, and whose split table its run has."""
    make_folder(classes=3, images=10)
    recipe = resolve("folder", {"data.root": str(tmp_path / "photos")}).recipe
    manifest = split(scan(recipe.data), recipe.data, table=None)
    write_split(manifest, tmp_path / "split.csv")

    @contextmanager
    def artifact(run_id: str, path: str) -> Iterator[Path]:
        assert path == "tables/split.csv"
        if run_id != RUN:
            raise MissingArtifact(f"{run_id} has none")
        yield tmp_path / "split.csv"

    for place in (module, reading):
        monkeypatch.setattr(place, "artifact", artifact)
    return Made(recipe, manifest.digest)


def subject(made: Any, *, part: Any = None, others: bool = True, **texts: Any) -> Subject:
    return find_subject(
        [made], QUIET, texts={name.replace("__", "."): text for name, text in texts.items()}, part=part, others=others
    )


# --- what was trained on


def test_what_models_were_trained_on_is_the_union_of_their_runs_tables(made: Any) -> None:
    whole = subject(made).whole
    folder: Any = Made(made.recipe, None, run_id=None)
    not_ours: Any = Made(made.recipe, None, run_id=OTHER)
    contents = trained_on([made, folder, not_ours])
    assert contents == set(whole.part("train").frame["content"])
    assert num_of(contents, whole) == whole.counts()["train"]
    assert seen_by([made], whole.part("test")) == 0


def test_a_store_that_fails_is_not_taken_for_a_model_that_was_trained_on_nothing(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_words: str) -> Any:
        raise UserError("the tracking store did not give what was asked of it")

    monkeypatch.setattr(module, "artifact", gone)
    with pytest.raises(UserError, match="did not give"):
        trained_on([made])


# --- which images


def test_all_of_its_own_images_are_no_test_though_all_of_others_are(
    made: Any, make_folder: Callable[..., Path]
) -> None:
    assert [subject(made, part=part).split for part in ("train", "val", "test", "all")] == [
        "train", "val", "test", "all"
    ]  # fmt: skip
    other = make_folder(classes=3, images=4, name="other")
    found = subject(made, data__root=str(other))
    assert (found.part, found.split, found.is_own) == ("all", "test", False)


def moved(root: Path) -> Path:
    return root.rename(root.with_name("moved"))


def test_its_own_images_may_lie_elsewhere_by_now(made: Any, tmp_path: Path) -> None:
    before = subject(made).whole.frame[["id", "split"]]
    for others in (True, False):
        found = subject(made, data__root=str(tmp_path / "photos"), others=others)
        assert found.is_own
    root = moved(tmp_path / "photos")
    for others in (True, False):
        found = subject(made, data__root=str(root), part="test", others=others)
        assert found.is_own
        assert found.whole.frame[["id", "split"]].equals(before)


def test_where_only_its_own_will_do_the_classes_of_the_run_stay_those_of_a_folder_that_moved(
    made: Any, tmp_path: Path
) -> None:
    """Else a run of some classes of a folder could not be promoted after the folder moved."""
    recipe = made.recipe.replace({"data.classes": ["class0", "class2"], "data.fold": "1 of 2"})
    some = Made(recipe, scan(recipe.data).digest)
    root = moved(tmp_path / "photos")
    found = subject(some, data__root=str(root), part="test", others=False)
    assert found.is_own
    assert set(found.whole.labels) == {0, 2}
    assert (found.recipe.data.split_from, found.recipe.data.fold) == (RUN, None)


def test_other_images_are_refused_where_only_its_own_will_do_and_the_advice_fits(
    made: Any, make_folder: Callable[..., Path]
) -> None:
    other = make_folder(classes=3, images=4, name="other")
    with pytest.raises(UserError, match=r"^the images in .*other are not those that the model .*made from") as caught:
        subject(made, data__root=str(other), part="test", others=False)
    assert "name the folder with the images of then (--data.root FOLDER)" in str(caught.value)
    assert "--split" not in str(caught.value)


def test_a_part_that_there_is_not_is_told_with_what_can_be_done(made: Any, tmp_path: Path) -> None:
    table = (tmp_path / "split.csv").read_text()
    (tmp_path / "split.csv").write_text(table.replace(",test,", ",val,"))
    with pytest.raises(
        UserError, match=r"have no test split \(they have .*\. Train with one .*, or give another --split"
    ):
        subject(made)
    with pytest.raises(UserError, match=r"have no test split .*Train with one \(data\.test_fraction .* train/\)\.$"):
        subject(made, part="test", others=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split_from", OTHER), ("fold", "1 of 2"), ("val_fraction", "0.5"), ("test_fraction", "0.5"),
        ("split_seed", "3"), ("tiny_classes", "train"), ("channels", "1"), ("balance", "oversample"),
        ("balance_beta", "0.5"), ("check", "off"), ("device", "cuda"), ("num_workers", "2"), ("prefetch", "4"),
        ("store_budget", "1"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_is_refused(made: Any, field: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.{field} changes nothing beside a model: .*\. Leave it out\.$"):
        find_subject([made], QUIET, texts={f"data.{field}": value})


def test_fields_of_its_recipe_are_its_own_but_for_where_to_compute_and_write(made: Any) -> None:
    found = subject(made, train__output_dir="elsewhere", train__device="cpu", evaluate__top_k="2")
    assert (found.recipe.train.output_dir, found.recipe.evaluate.top_k) == ("elsewhere", 2)
    with pytest.raises(
        UserError, match=r"^train\.seed cannot be .* data and evaluate, and train\.device and train\.out"
    ):
        subject(made, train__seed="1")
    with pytest.raises(UserError, match=r"^evaluate\.top_k changes nothing beside a model: the gates name"):
        subject(made, evaluate__top_k="2", part="test", others=False)
