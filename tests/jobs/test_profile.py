"""The verbs `profile`, `lr-find` and `batch-find`, in this process, and what a profile concludes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from imgcls.cli import cli
from imgcls.errors import UserError
from imgcls.jobs import lr_find, profile
from imgcls.jobs.profile_report import Facts, Profile, as_json, as_text, diagnose
from imgcls.jobs.signals import Stopped
from imgcls.tracking.store import connect
from imgcls.training.lr_find import range_test
from imgcls.training.throughput import Rates

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's own
]

SMALL = ("--model.num_blocks", "1", "--model.channels", "4", "--augment.image_size", "8")
FACTS = Facts("cpu", "cpu bf16", "bf16", 2, 0, False, 64, 1000, 10)


@pytest.fixture(autouse=True)
def _store(folder_of_the_store: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(folder_of_the_store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder_of_the_store}/runs.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)


def only_run() -> Any:
    store = connect()
    [run] = store.client.search_runs([store.experiment_id])
    return store.client.get_run(run.info.run_id)


def downloaded(run: Any, artifact: str, folder: Path) -> Path:
    return Path(connect().client.download_artifacts(run.info.run_id, artifact, str(folder)))


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def profiled(
    compute: float, data: float, loop: float, *, overhead: float = 0.0, facts: Facts = FACTS, turns: int = 3
) -> Profile:
    return Profile(facts, [Rates(compute, data, loop)] * turns, [overhead] * turns, [500.0] * turns)


# --- what a profile concludes


@pytest.mark.parametrize(
    ("profile", "bottleneck", "setting"),
    [
        (profiled(100, 5000, 98), "compute", "train.batch_size"),
        (profiled(100, 5000, 98, facts=replace(FACTS, precision="fp32")), "compute", "train.plan"),
        (profiled(100, 50, 40), "data", "data.num_workers"),
        (profiled(100, 50, 40, facts=replace(FACTS, num_workers=1)), "data", "augment.preset"),
        (profiled(100, 50, 40, facts=replace(FACTS, decodes=True)), "data", "data.store_budget"),
        (profiled(100, 300, 75), "overlap", "data.num_workers"),
        (profiled(100, 300, 75, facts=replace(FACTS, num_workers=1)), "overlap", "data.prefetch"),
        (profiled(100, 300, 75, facts=replace(FACTS, decodes=True)), "overlap", "data.store_budget"),
        (profiled(100, 5000, 70, overhead=4.0), "tracking", "train.output_dir"),
        (profiled(100, 5000, 70, overhead=1.0), "overlap", "data.num_workers"),
    ],
)
def test_the_bottleneck_and_the_setting_follow_from_the_rates(profile: Profile, bottleneck: str, setting: str) -> None:
    found = diagnose(profile)
    assert (found.bottleneck, found.setting) == (bottleneck, setting)
    assert setting in found.advice


@pytest.mark.parametrize(("cores", "workers", "more"), [(8, 0, 1), (8, 2, 4), (8, 5, 7)])
def test_beside_a_gpu_more_workers_are_advised_while_there_are_cores(cores: int, workers: int, more: int) -> None:
    facts = replace(FACTS, device="cuda", cores=cores, num_workers=workers)
    assert f"data.num_workers {more} (now {workers})" in diagnose(profiled(1000, 500, 450, facts=facts)).advice


def test_the_table_is_of_medians_and_names_the_ratio_and_its_range() -> None:
    turns = [Rates(100, 5000, 90), Rates(110, 5100, 107.8), Rates(105, 5200, 101.85)]
    found = Profile(FACTS, turns, [0.1, 0.3, 0.2], [400.0, 450.0, 500.0])
    assert as_text(found) == (
        "                                           images/s\n"
        "(a) compute alone, on one batch                 105\n"
        "(b) data alone, to the input                  5,100\n"
        "(c) the real loop, tracked                      102\n"
        "    evaluation, apart from it                   450\n"
        "(c) / min(a, b) = 0.970 (0.900 to 0.980 in 3 turns)\n"
        "(c) / (1 / (1/a + 1/b)) = 0.990: no process makes batches, so data and compute take turns\n"
        "an epoch of 1,000 images: 9.8 s, 0.20 s of it for checkpoints and tracking; measured on 10 batches of 64 a "
        "turn"
    )
    assert "take turns" not in as_text(replace(found, facts=replace(FACTS, num_workers=2)))


def test_the_json_has_every_figure() -> None:
    found = profiled(100, 300, 75)
    report = json.loads(json.dumps(as_json(found, diagnose(found))))
    assert report["ratio"] == pytest.approx(0.75)
    assert report["serial_ratio"] == pytest.approx(1.0)
    assert (report["compute_images_per_s"], report["data_images_per_s"], report["loop_images_per_s"]) == (100, 300, 75)
    assert (report["bottleneck"], report["setting"], report["num_workers"]) == ("overlap", "data.num_workers", 0)
    assert len(report["turns"]) == 3


# --- the verbs


def test_a_profile_prints_its_table_and_is_a_run(tmp_path: Path) -> None:
    result = command("profile", "digits", "--seconds", "0.5", "--turns", "2", *SMALL)
    assert result.exit_code == 0
    assert "(c) / min(a, b) = " in result.output
    assert "in 2 turns" in result.output
    assert "bottleneck: " in result.output
    run = only_run()
    assert (run.info.status, run.data.tags["imgcls.verb"]) == ("FINISHED", "profile")
    assert run.data.params["train.batch_size"] == "64"
    figures = run.data.metrics
    rates = [figures[f"profile/{part}_images_per_s"] for part in ("compute", "data", "loop")]
    assert min(rates) > 0  # which is the greatest, other work on the machine may turn round
    assert figures["profile/ratio"] > 0.1
    assert "best/val_acc" not in figures, "it is no training to compare with others"
    table = pd.read_csv(downloaded(run, "tables/profile.csv", tmp_path))
    assert table["turn"].tolist() == [1, 2]
    assert (table[["compute", "data", "loop", "evaluation_images_per_s"]] > 0).all(axis=None)
    assert not (Path.cwd() / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cached", ["auto", "off"])
def test_a_profile_says_where_a_training_would_keep_features(cached: str) -> None:
    network = ("--model.num_blocks", "2", "--model.channels", "4", "--model.freeze_depth", "1")
    images = ("--augment.image_size", "8", "--augment.preset", "none")
    words = ("--train.epochs", "30", "--train.cache_features", cached)
    result = command("profile", "digits", *network, *images, *words, "--seconds", "0.2", "--turns", "1")
    assert result.exit_code == 0
    assert ("what is measured here is one with --train.cache_features off" in result.stdout) == (cached == "auto")


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    result = command("profile", "--json", "--seconds", "0.2", "--turns=1", "digits", *SMALL)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    run = only_run()
    assert report.pop("run_id") == run.info.run_id
    assert json.loads(downloaded(run, "profile.json", tmp_path).read_text()) == report
    assert report["images_per_epoch"] == 1079
    assert report["ratio"] == pytest.approx(
        report["loop_images_per_s"] / min(report["compute_images_per_s"], report["data_images_per_s"])
    )


def test_a_range_test_prints_a_rate_and_is_a_run_with_a_figure(tmp_path: Path) -> None:
    result = command("lr-find", "digits", "--steps", "40", "--model.channels", "8", "--augment.image_size", "8")
    assert result.exit_code == 0
    run = only_run()
    assert (run.info.status, run.data.tags["imgcls.verb"]) == ("FINISHED", "lr_find")
    assert f"suggestion: --optim.lr {run.data.metrics['lr_find/suggestion']:.2g} (" in result.output
    assert run.data.params["lr_find.steps"] == "40"
    table = pd.read_csv(downloaded(run, "tables/lr_find.csv", tmp_path))
    assert list(table) == ["step", "lr", "loss", "smoothed_loss"]
    history = connect().client.get_metric_history(run.info.run_id, "train/loss")
    assert [item.value for item in sorted(history, key=lambda item: item.step)] == pytest.approx(table["loss"])
    assert downloaded(run, "plots/lr_find.png", tmp_path).stat().st_size > 5000


def test_without_descent_there_is_no_suggestion_and_no_error() -> None:
    result = command("lr-find", "digits", "--steps", "10", "--lowest", "1e-9", "--highest", "1e-8", *SMALL)
    assert result.exit_code == 0
    assert "no suggestion: the loss did not fall by 5% at any rate from 1.0e-09 to 1.0e-08" in result.output
    assert "lr_find/suggestion" not in only_run().data.metrics


def test_rates_that_make_no_test_are_refused_before_there_is_a_run() -> None:
    with pytest.raises(UserError, match=r"the rates go from 1 to 0\.1"):
        command("lr-find", "digits", "--lowest", "1", "--highest", "0.1", *SMALL)
    store = connect()
    assert store.client.search_runs([store.experiment_id]) == []


def test_a_search_for_a_batch_size_prints_a_table_and_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.training.batch_find.LEAST_SECONDS", 0.01)
    result = command("batch-find", "digits", "--most", "40", *SMALL)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    start = lines.index("batch size   images/s   memory")
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == ["8", "16", "32", "40"]
    run = only_run()
    assert run.data.tags["imgcls.verb"] == "batch_find"
    assert run.data.metrics["batch_find/largest"] == 40
    assert f"suggestion: --train.batch_size {run.data.metrics['batch_find/fastest']:.0f} (the fastest)" in result.output
    assert len(pd.read_csv(downloaded(run, "tables/batch_find.csv", tmp_path))) == 4


@pytest.mark.parametrize(("verb", "job", "name"), [("profile", profile, "fit"), ("lr-find", lr_find, "range_test")])
def test_a_stop_kills_the_run(verb: str, job: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **_options: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr(job, name, stop)
    with pytest.raises(Stopped):
        command(verb, "digits", *SMALL)
    run = only_run()
    assert (run.info.status, run.data.tags["imgcls.stopped_by"]) == ("KILLED", "stopped by SIGTERM")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["profile", "--seconds", "0"], "0.0 is not in the range"),
        (["profile", "--turns", "0"], "0 is not in the range"),
        (["batch-find", "--most", "1"], "1 is not in the range"),
        (["lr-find", "--steps", "many"], "'many' is not a valid integer"),
    ],
)
def test_an_option_out_of_range_is_a_mistake(words: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_one_process_is_measured_whatever_the_recipe_asks_for_and_it_says_so() -> None:
    result = command("batch-find", *SMALL, "--most", "2", "--train.processes", "2")
    assert "note: train.processes is 2, but this measures one process with whole batches" in result.output
    assert result.exit_code == 0


def test_a_range_test_computes_with_the_threads_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return range_test(*args, **options)

    monkeypatch.setattr(lr_find, "range_test", spy)
    plan = "{precision: fp32, layout: nchw, compile: false, threads: 2}"
    assert command("lr-find", *SMALL, "--steps", "10", "--train.plan", plan).exit_code == 0
    assert seen == [2]
