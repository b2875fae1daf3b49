"""The verb `promote` in this process: what is promoted, what is refused, and what is left of one that was cut off."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.jobs import promote as job
from imgcls.jobs import promote_evidence as evidence
from imgcls.jobs.console import Console
from imgcls.jobs.installable import check_installable
from imgcls.jobs.open_model import open_model
from imgcls.jobs.promote import PromoteResult, promote
from imgcls.recipe import resolve
from imgcls.tables import Predictions
from imgcls.tracking.promotion import history, move_alias, rollback
from imgcls.tracking.registry import Version, find_alias, read_alias, register, versions
from imgcls.tracking.store import Store, connect
from tests.jobs.test_train import SMALL, runs, use_store
from tests.tracking.test_promotion import Stopping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


FIELDS = {**SMALL, "train.batch_size": 128}
ANY_RECALL = {"promote.max_recall_fall": 1}
"""A poor model that calls every image a 3 finds every 3, which no good one does."""


@pytest.fixture(scope="module")
def trained(folder_of_the_store: Path) -> Iterator[dict[str, str]]:
    """Run ids: `poor` knows next to nothing, `good` and `better` (one of more channels) most digits."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "trained")
        recipes = {
            "poor": {"optim.lr": 1e-6, "train.epochs": 1},
            "good": {"optim.lr": 0.01, "train.epochs": 4, "model.channels": 16},
            "better": {"optim.lr": 0.01, "train.epochs": 6, "model.channels": 16},
        }
        yield {
            name: imgcls.train("digits", {**FIELDS, **fields}, quiet=True).run_id for name, fields in recipes.items()
        }


@pytest.fixture(autouse=True)
def _store(
    trained: dict[str, str],  # noqa: ARG001  (made first, in a store of the module's own)
    folder_of_the_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)


def promoted(run_id: str, name: str, **options: Any) -> PromoteResult:
    return promote(run_id, name=name, quiet=True, **options)


def champion(name: str) -> Version:
    return read_alias(connect(), name)


def artifact(run_id: str | None, path: str, folder: Path) -> Path:
    return Path(connect().client.download_artifacts(run_id, path, str(folder)))


# --- what comes of it


@pytest.fixture(scope="module")
def first(trained: dict[str, str], folder_of_the_store: Path) -> Iterator[PromoteResult]:
    """A first promotion."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "first")
        yield promoted(trained["good"], "first", overrides={"promote.min_metrics": {"acc": 0.2}})


def test_the_first_of_a_name_is_held_against_its_own_gates_alone(
    first: PromoteResult,
    trained: dict[str, str],
) -> None:
    assert (first.outcome, first.version, first.replaced) == ("promoted", "1", None)
    assert first.verdict is not None
    gates = {gate.name: gate for gate in first.verdict.gates}
    assert gates["acc"].passed
    assert gates["gain"].sentence == "there is no champion to compare with: not applicable"
    assert gates["installable"].figure == 1.0
    assert 0 < (gates["latency_ms"].figure or 0) < 1000
    now = champion("first")
    assert (now.run_id, now.tags["promotion"], now.tags["promotion.verdict"]) == (
        trained["good"], "champion", "passed",
    )  # fmt: skip
    assert now.tags["promotion.reason"].endswith("; all 8 gates are passed")


def test_its_run_has_every_figure_the_report_and_the_predictions(
    first: PromoteResult,
    trained: dict[str, str],
    tmp_path: Path,
) -> None:
    run = connect().client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["imgcls.verb"], tags["imgcls.verdict"]) == ("promote", "promoted")
    assert tags["imgcls.promote.candidate_run"] == trained["good"]
    assert tags["imgcls.promote.candidate_version"] == "1"
    assert "imgcls.promote.champion_run" not in tags
    assert run.data.params["promote.min_metrics"] == '{"acc": 0.2}'
    assert (run.data.params["promote.name"], run.data.params["promote.alias"]) == ("first", "champion")
    metrics = run.data.metrics
    own = Predictions.from_parquet(artifact(first.run_id, "predictions/candidate.parquet", tmp_path))
    assert metrics["gate/acc"] == metrics["candidate/acc"] == (own.predicted == own.labels).mean()
    assert (len(own.ids), own.split) == (359, "test")
    assert {"gate/ece", "gate/model_mb", "gate/latency_ms", "gate/installable"} <= metrics.keys()
    assert metrics["test/reads"] == first.reads
    assert "imgcls.test_digest" in tags
    gates = pd.read_csv(artifact(first.run_id, "gates.csv", tmp_path))
    assert gates["gate"].tolist() == [
        "acc", "gain", "class_recall", "ece", "model_mb", "latency_ms", "same_data", "installable",
    ]  # fmt: skip
    report = artifact(first.run_id, "report.md", tmp_path).read_text()
    assert report.startswith(f"# first@champion: the run {trained['good']}, the first\n\n**Passed**: ")
    recipe = artifact(first.run_id, "recipe.yaml", tmp_path)
    assert (
        f"# Repeat it with: imgcls promote --run {trained['good']} --name first --promote.min_metrics "
        in recipe.read_text()
    )
    assert resolve(recipe).recipe.promote.min_metrics == {"acc": 0.2}
    assert not Path("outputs").exists()


def test_the_size_is_that_of_the_files_of_the_model(first: PromoteResult) -> None:
    location = connect().client.get_logged_model(champion("first").model_id).artifact_location
    files = [path for path in Path(location.removeprefix("file://")).rglob("*") if path.is_file()]
    metrics = connect().client.get_run(first.run_id).data.metrics
    assert metrics["gate/model_mb"] == sum(path.stat().st_size for path in files) / 1e6


def test_the_predictions_are_those_of_the_served_model(first: PromoteResult, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    own = Predictions.from_parquet(artifact(first.run_id, "predictions/candidate.parquet", tmp_path))
    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    images = [scans[int(name.rpartition("/")[2])] for name in own.ids]
    model = open_model("models:/first@champion", Console(quiet=True)).model
    np.testing.assert_allclose(model.probabilities(images), own.probs, atol=1e-5)


def test_no_training_has_the_gates_among_its_params(trained: dict[str, str]) -> None:
    params = connect().client.get_run(trained["good"]).data.params
    assert not [name for name in params if name.startswith(("promote.", "search."))]


def test_a_worse_one_is_refused_and_tagged_and_the_champion_stays(
    trained: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    promoted(trained["good"], "worse")
    result = promote(trained["poor"], name="worse")
    assert (result.outcome, result.version, result.replaced) == ("refused", "2", None)
    assert champion("worse").version == "1"
    refused = versions(connect(), "worse")[1]
    assert (refused.aliases, refused.tags["promotion"]) == ((), "rejected")
    assert "worse by more than chance" in refused.tags["promotion.reason"]
    assert refused.tags["promotion.against_run"] == trained["good"]
    run = connect().client.get_run(result.run_id)
    assert (run.info.status, run.data.tags["imgcls.verdict"]) == ("FINISHED", "refused")
    assert run.data.tags["mlflow.note.content"].startswith("refused: accuracy -0.")
    assert run.data.tags["imgcls.promote.champion_run"] == trained["good"]
    told = capsys.readouterr().out
    assert "\nrefused: accuracy -0." in told
    assert "It is version 2 of worse, tagged as rejected; version 1 stays the champion\n" in told
    assert "gain" in told
    changes = pd.read_csv(artifact(result.run_id, "tables/comparison.csv", tmp_path))
    assert len(changes) == 10
    both = [
        Predictions.from_parquet(artifact(result.run_id, f"predictions/{name}.parquet", tmp_path))
        for name in ("candidate", "champion")
    ]
    assert both[0].ids == both[1].ids
    gain = run.data.metrics["gate/gain"]
    assert gain == pytest.approx(
        np.mean(both[0].predicted == both[0].labels) - np.mean(both[1].predicted == both[1].labels)
    )


@pytest.mark.slow
def test_a_better_one_wins_and_the_history_says_why(trained: dict[str, str]) -> None:
    promoted(trained["poor"], "wins")
    result = promoted(trained["good"], "wins", overrides={"promote.min_gain": 0.1, **ANY_RECALL})
    assert (result.outcome, result.version, result.replaced) == ("promoted", "2", "1")
    assert champion("wins").version == "2"
    table = history(connect(), "wins")
    assert table["version"].tolist() == ["1", "2"]
    assert table["reason"].iloc[1].startswith("acc 0.")
    assert "the champion's 0." in table["reason"].iloc[1]
    assert versions(connect(), "wins")[0].tags["promotion"] == "replaced"


@pytest.mark.slow
def test_what_the_gates_refuse_is_promoted_by_force_with_its_reason_and_can_be_taken_back(
    trained: dict[str, str],
) -> None:
    promoted(trained["good"], "forced")
    result = promoted(trained["poor"], "forced", force="the good one is too slow")
    assert (result.outcome, result.replaced) == ("forced", "1")
    assert champion("forced").version == "2"
    assert "rejected" not in champion("forced").tags.values()
    table = history(connect(), "forced")
    assert table["kind"].tolist() == ["promotion", "forced"]
    assert table["reason"].iloc[1].startswith("the good one is too slow (against the gates: accuracy -0.")
    tags = connect().client.get_run(result.run_id).data.tags
    assert (tags["imgcls.verdict"], tags["imgcls.promote.force"]) == ("forced", "the good one is too slow")
    assert rollback(connect(), "forced", expected="2", reason="it is wrong").version == "1"


@pytest.mark.slow
def test_a_force_that_is_not_needed_is_a_promotion(trained: dict[str, str]) -> None:
    assert promoted(trained["good"], "no need", force="I am sure").outcome == "promoted"
    assert history(connect(), "no need")["kind"].tolist() == ["promotion"]


@pytest.mark.slow
def test_the_champion_again_changes_nothing_and_makes_no_run(
    trained: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    promoted(trained["good"], "again")
    before, num = history(connect(), "again"), len(runs())
    result = promote(trained["good"], name="again")
    assert (result.outcome, result.version, result.run_id) == ("champion", "1", None)
    assert "version 1 of again, the model of this run, is the champion already\n" in capsys.readouterr().out
    assert history(connect(), "again").equals(before)
    assert len(runs()) == num


@pytest.mark.slow
def test_another_alias_has_a_champion_of_its_own(trained: dict[str, str]) -> None:
    promoted(trained["good"], "aliases")
    result = promoted(trained["poor"], "aliases", alias="shadow")
    assert (result.outcome, result.replaced) == ("promoted", None)
    assert (champion("aliases").version, read_alias(connect(), "aliases", "shadow").version) == ("1", "2")


@pytest.mark.slow
def test_a_refit_counts_no_image_twice_and_its_logged_predictions_are_taken(
    trained: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refitted = imgcls.refit(trained["good"], quiet=True)
    monkeypatch.setattr(evidence, "predict_images", lambda *_, **_options: pytest.fail("it predicts"))
    result = promote(refitted.run_id, name="refitted")
    assert f"the candidate's predictions are those that its run {refitted.run_id} has logged" in capsys.readouterr().out
    assert connect().client.get_run(result.run_id).data.metrics["candidate/acc"] == refitted.test["acc"]


# --- what cannot be compared


@pytest.mark.slow
def test_other_classes_are_refused_and_named(trained: dict[str, str]) -> None:
    fewer = {**FIELDS, "data.classes": ["0", "1", "2"], "train.epochs": 1, "optim.lr": 0.03}
    run = imgcls.train("digits", fewer, quiet=True)
    promoted(trained["good"], "classes")
    result = promoted(run.run_id, "classes")
    assert result.outcome == "refused"
    assert result.verdict is not None
    assert (
        "challenger and champion cannot be compared: their classes differ: the candidate does not know '3', '4', '5', "
        "'6', '7' and 2 more"
    ) in result.verdict.reason
    assert champion("classes").version == "1"


@pytest.mark.slow
def test_test_images_that_the_champion_was_trained_on_are_counted_and_told(
    trained: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    other = imgcls.train("digits", {**FIELDS, "data.split_seed": 1, "train.epochs": 2, "optim.lr": 0.03}, quiet=True)
    promoted(other.run_id, "seen")
    result = promote(trained["better"], name="seen")
    contents = {}
    for split, run_id in (("train", other.run_id), ("test", trained["better"])):
        table = pd.read_csv(artifact(run_id, "tables/split.csv", tmp_path))
        contents[split] = set(table["content"][table["split"] == split])
    num = len(contents["train"] & contents["test"])
    assert num > 100
    assert f"the champion was trained on {num} of the 359 test images, which favours it" in capsys.readouterr().out
    assert result.verdict is not None
    [same] = [gate for gate in result.verdict.gates if gate.name == "same_data"]
    assert f"trained on {num} of the 359 test images" in same.sentence
    assert same.passed


def test_a_champion_that_cannot_be_opened_is_an_error_unless_the_promotion_is_forced(
    trained: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promoted(trained["good"], "lost")
    real = open_model

    def opened(source: str, *rest: Any) -> Any:
        if source.startswith("models:/lost"):
            raise UserError("its files are gone.")
        return real(source, *rest)

    monkeypatch.setattr(job, "open_model", opened)
    num = len(runs())
    with pytest.raises(
        UserError, match=r"version 1 of lost, cannot be opened: its files are gone\. Mend that, or.*--f"
    ):
        promoted(trained["better"], "lost")
    assert len(runs()) == num
    result = promoted(trained["better"], "lost", force="the files are gone")
    assert result.outcome == "forced"
    assert result.verdict is not None
    assert "cannot be compared: the champion cannot be opened: its files are gone." in result.verdict.reason


# --- what a user may get wrong


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("nonsense", {}, r"found 'nonsense'; expected a run id"),
        ("0" * 32, {}, r"there is no run 0{32}"),
        ("good", {"name": "a/b"}, "MLflow refuses the model name 'a/b'"),
        ("good", {"alias": "latest"}, "is reserved by MLflow"),
        ("good", {"force": " "}, "--force needs a reason"),
        ("good", {"texts": {"promote.min_gian": "1"}}, r"unknown field 'promote\.min_gian'.*Did you mean"),
        ("good", {"texts": {"promote.min_gain": "-1"}}, r"promote\.min_gain: found -1"),
        ("good", {"texts": {"optim.lr": "1"}}, r"optim\.lr cannot be given beside a model"),
        ("empty", {}, r"has no model 'model': it has none"),
    ],
)
def test_a_mistake_is_told_before_there_is_a_run(
    run: str,
    options: dict[str, Any],
    message: str,
    trained: dict[str, str],
) -> None:
    store = connect()
    target = {**trained, "empty": ""}.get(run, run)
    if run == "empty":
        target = store.client.create_run(store.experiment_id).info.run_id
        store.client.set_terminated(target)
    num = len(runs())
    with pytest.raises(UserError, match=message):
        promote(target, **{"name": "mistakes", "quiet": True, **options})
    assert len(runs()) == num
    assert find_alias(store, "mistakes") is None


@pytest.mark.slow
def test_other_images_than_those_of_the_run_are_refused(
    trained: dict[str, str],
    make_folder: Callable[..., Path],
) -> None:
    texts = {"data.source": "folder", "data.root": str(make_folder())}
    with pytest.raises(UserError, match=r"photos are not those that the model .*name the folder with the ima"):
        promoted(trained["good"], "others", texts=texts)
    assert find_alias(connect(), "others") is None


# --- two at once, and a store that stops


@pytest.mark.slow
def test_an_alias_that_moved_in_between_is_an_error_and_nothing_is_moved(
    trained: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promoted(trained["poor"], "race")
    real = evidence.hold

    def meanwhile(*args: Any) -> Any:
        other = register(connect(), trained["better"], "race")
        move_alias(connect(), "race", "champion", other.version, expected="1", reason="I was faster")
        return real(*args)

    monkeypatch.setattr(job, "hold", meanwhile)
    with pytest.raises(UserError, match=r"names version 2 now \(promotion .* I was faster\); .*run it again"):
        promoted(trained["good"], "race", overrides=ANY_RECALL)
    assert champion("race").run_id == trained["better"]
    [failed] = [run for run in runs() if run.info.status == "FAILED"]
    assert "names version 2 now" in failed.data.tags["imgcls.error"]
    assert "imgcls.verdict" not in failed.data.tags


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a promotion reads and measures is kept from the first one: only the registry is asked again."""
    kept: dict[str, Any] = {}

    def once(name: str) -> None:
        real = getattr(job, name)

        def call(*args: Any, **options: Any) -> Any:
            key = f"{name} {args[0] if name == 'open_model' else ''}"
            if key not in kept:
                kept[key] = real(*args, **options)
            return kept[key]

        monkeypatch.setattr(job, name, call)

    for name in ("open_model", "find_subject", "gather", "_recipe_name", "environment", "seen_by"):
        once(name)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("done", [False, True], ids=["before it was done", "after it was done"])
def test_a_store_that_stops_at_any_step_leaves_all_or_nothing_and_the_same_again_finishes_it(
    trained: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    done: bool,
) -> None:
    name = f"stops {done}"
    promoted(trained["poor"], name)
    promoted(trained["good"], f"warm {done}")
    whole = connect()
    steps = 0
    for calls in range(2 if done else 1, 100, 3):
        broken = Stopping(whole.client, calls, done=done)
        monkeypatch.setattr(job, "connect", lambda broken=broken: replace(whole, client=broken))
        with suppress(UserError):
            assert promoted(trained["good"], name).outcome == "promoted"
            assert champion(name).run_id == trained["good"]
        monkeypatch.setattr(job, "connect", connect)
        assert champion(name).run_id in (trained["poor"], trained["good"])
        assert not [run for run in runs() if run.info.status == "RUNNING"]
        if not broken.stopped:
            break
        steps += 1
        assert promoted(trained["good"], name).outcome in ("promoted", "champion")
        _check_whole(whole, name, trained)
        assert rollback(whole, name, expected="2", reason="for the next step").version == "1"
    else:
        pytest.fail("it never comes to an end")
    assert steps > 8


def _check_whole(store: Store, name: str, trained: dict[str, str]) -> None:
    assert champion(name).run_id == trained["good"]
    found = versions(store, name)
    assert [version.tags["promotion"] for version in found] == ["replaced", "champion"]
    table = history(store, name)
    assert table["state"].tolist()[-1] == "done"
    assert "unrecorded" not in table["kind"].tolist()
    assert table["version"].tolist()[-1] == "2"


def test_a_report_that_could_not_be_sent_promotes_nothing(
    trained: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from imgcls.tracking import run as tracking
    from imgcls.tracking.operations import apply

    monkeypatch.setattr(tracking, "GRACE_SECONDS", 0.0)
    real = apply

    def refusing(store: Any, run_id: str, folder: Path, operation: dict[str, Any]) -> None:
        if operation["op"] == "artifact" and operation["artifact"] == "report.md":
            raise ConnectionError("the server is gone")
        real(store, run_id, folder, operation)

    monkeypatch.setattr(tracking, "apply", refusing)
    with pytest.raises(UserError, match=r"no model is promoted without one\. Nothing was moved"):
        promoted(trained["good"], "unsent", overrides={"train.output_dir": "kept"})
    assert find_alias(connect(), "unsent") is None


# --- the latency and the packages


def test_the_latency_is_the_median_of_single_images_and_ends_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    costs = iter([9.0, 9.0, 9.0, 0.5, 0.1, 0.3, 2.4, 0.1])

    class Slow:
        members: tuple[Classifier, ...] = ()

        def probabilities(self, images: list[Any]) -> None:
            assert len(images) == 1
            clock[0] += next(costs)

    monkeypatch.setattr("imgcls.jobs.promote_evidence.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(evidence, "members_of", lambda model: model.members)
    slow: Any = Slow()
    assert evidence.latency(slow, [b"a", b"b"], device="cpu") == pytest.approx(400)


def test_packages_that_are_installed_are_installable_without_asking_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.jobs.installable.subprocess.run", lambda *_, **_o: pytest.fail("it asks pip"))
    wanted = [f"numpy=={np.__version__}", "pandas>=1", "pillow", 'nothing==1; python_version < "3"']
    found = check_installable(wanted)
    assert (found.can, found.how) == (True, "all 4 packages that the model asks for are installed here")


@pytest.mark.parametrize(
    ("code", "stderr", "can", "how"),
    [
        (0, "", True, "but pip finds it"),
        (1, "ERROR: No matching distribution found for numpy==0.0.1", False, "No matching distribution found for num"),
        (1, "WARNING: Retrying (Retry(total=0)) after\nERROR: No matching", None, "no package index answers"),
        (1, "/bin/python: No module named pip", None, "there is no pip to ask"),
    ],
)
def test_pip_is_asked_for_what_is_missing(
    code: int, stderr: str, can: bool | None, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr("imgcls.jobs.installable.subprocess.run", run)
    found = check_installable(["numpy==0.0.1", "pandas", "--index-url=http://x"])
    assert found.can is can
    assert how in found.how
    [command] = asked
    assert command[command.index("--") + 1 :] == ["numpy==0.0.1", "--index-url=http://x"]
    assert "--dry-run" in command


def test_a_pip_that_takes_too_long_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr("imgcls.jobs.installable.subprocess.run", run)
    assert check_installable(["numpy==0.0.1"], limit_s=5).can is None
