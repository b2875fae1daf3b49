"""`registry show` and `registry rollback` in this process, on a real SQLite store of models without files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.jobs import registry as job
from imgcls.tracking.promotion import history, move_alias
from imgcls.tracking.registry import read_alias, record_verdict, register, versions
from imgcls.tracking.store import Store, connect
from tests.jobs.test_train import use_store
from tests.tracking.test_promotion import PASSED, REFUSED, Stopping, new_run, promoted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture
def store(folder_of_the_store: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of all tests of this module."""
    use_store(monkeypatch, folder_of_the_store, "registry")
    return connect()


def test_show_prints_each_version_with_its_state_and_reason_and_the_history(store: Store) -> None:
    made = promoted(store, "animals", 2)
    refused = register(store, new_run(store), "animals")
    record_verdict(store, refused, REFUSED, against=made[1])
    text = job.show("animals")
    lines = text.splitlines()
    assert lines[0] == "animals, versions"
    assert lines[1].split() == ["version", "aliases", "state", "verdict", "created", "(UTC)", "run"]
    assert lines[2].split()[:3] == ["1", "–", "replaced"]
    assert lines[2].endswith(made[0].run_id)
    assert lines[3] == "    replaced by version 2 (promotion): better"
    assert lines[4].split()[:3] == ["2", "champion", "champion"]
    assert lines[6].split()[:6] == ["3", "–", "rejected", "refused", "(against", "2)"]
    assert lines[7] == "    acc is 0.5, too little"
    assert lines[8:10] == ["", "history"]
    assert lines[11].split()[3:6] == ["champion", "promotion", "1"]
    assert lines[13].split()[3:7] == ["champion", "promotion", "2", "1"]
    assert lines[14] == "    better"


def test_nothing_is_wider_than_120_columns_and_a_long_reason_is_cut_after_three_lines(store: Store) -> None:
    [first] = promoted(store, "wide", 1)
    second = register(store, new_run(store), "wide")
    record_verdict(store, second, PASSED, against=first)
    for alias in ("shadow-of-the-champion", "another-long-alias", "and-a-third-one"):
        move_alias(store, "wide", alias, second.version, expected=None, reason="because of this " * 60)
    text = job.show("wide")
    assert max(len(line) for line in text.splitlines()) <= 120
    told = [line for line in text.splitlines() if line.startswith("    ")]
    assert sum("because of this" in line for line in told) == 4 * 3
    assert sum(line.endswith(" …") for line in told) == 4
    found = json.loads(job.show("wide", as_json=True))
    assert found["history"][1]["reason"].count("because") == 60


def test_json_has_all_that_is_known(store: Store) -> None:
    made = promoted(store, "json", 2)
    record_verdict(store, made[1], PASSED, against=made[0])
    found = json.loads(job.show("json", as_json=True))
    assert found["name"] == "json"
    second = found["versions"][1]
    assert second.pop("created").endswith("+00:00")
    assert second == {
        "version": "2",
        "aliases": ["champion"],
        "state": "champion",
        "verdict": "passed",
        "reason": "all 1 gates are passed",
        "against_version": "1",
        "gates": {"acc": "0.93 (wanted >= 0.9): passed"},
        "run_id": made[1].run_id,
        "model_id": made[1].model_id,
    }
    assert [move["replaced"] for move in found["history"]] == [None, "1"]


def test_a_model_without_a_promotion_says_so(store: Store) -> None:
    register(store, new_run(store), "fresh")
    assert job.show("fresh").endswith("\nno alias of it was ever moved\n")
    store.client.delete_model_version("fresh", "1")
    assert job.show("fresh").startswith("fresh has no version\n")
    with pytest.raises(UserError, match="unknown registered model 'frsh'"):
        job.show("frsh")


def test_a_rollback_says_what_returns_and_is_in_the_history(store: Store) -> None:
    promoted(store, "back", 2)
    said = job.rollback("back", reason="cats are dogs")
    assert said == "version 1 of back is the champion again, in the place of version 2    models:/back@champion"
    assert read_alias(store, "back").version == "1"
    assert "rollback" in job.show("back")
    assert "    cats are dogs\n" in job.show("back")
    with pytest.raises(UserError, match="has no earlier version to return to"):
        job.rollback("back", reason="once more")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrong", {"reason": " "}, r"needs a reason \(--reason TEXT\)"),
        ("a/b", {"reason": "x"}, "MLflow refuses the model name"),
        ("wrong", {"reason": "x", "alias": "champ"}, "has no alias 'champ'.*Did you mean 'champion'"),
        ("wrnog", {"reason": "x"}, "unknown registered model 'wrnog'"),
    ],
)
def test_a_rollback_of_what_is_not_there_is_refused(
    store: Store, name: str, options: dict[str, Any], message: str
) -> None:
    if "wrong" not in [model.name for model in store.client.search_registered_models()]:
        promoted(store, "wrong", 2)
    with pytest.raises(UserError, match=message):
        job.rollback(name, **options)
    assert read_alias(store, "wrong").version == "2"


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before it was done", "after it was done"])
def test_a_rollback_cut_off_at_any_step_goes_one_back_when_it_is_run_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """Where the alias had moved already, the same command again must not go two back."""
    name = f"cut off {done}"
    promoted(store, name, 3)
    for calls in range(1, 60):
        broken = Stopping(store.client, calls, done=done)
        monkeypatch.setattr(job, "connect", lambda broken=broken: replace(store, client=broken))
        try:
            job.rollback(name, reason="bad")
        except UserError as error:
            assert "the server is gone" in str(error)  # noqa: PT017
        monkeypatch.setattr(job, "connect", connect)
        if not broken.stopped:
            break
        finished = history(store, name)["kind"].tolist()[-1] == "rollback" and read_alias(store, name).version == "2"
        moves = store.client.get_registered_model(name).tags
        if not (finished and '"done": true' in moves[max(tag for tag in moves if tag.startswith("imgcls.move."))]):
            job.rollback(name, reason="bad")
        assert read_alias(store, name).version == "2"
        assert [v.tags["promotion"] for v in versions(store, name)] == ["replaced", "champion", "replaced"]
        move_alias(store, name, "champion", "3", expected="2", reason="for the next step")
    assert calls > 10
