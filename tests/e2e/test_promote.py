"""The life of a registered model through the real commands, on a real server over SQLite and over PostgreSQL."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from tests.e2e.conftest import CHECKOUT, Server, Spawn, imgcls, open_runs
from tests.e2e.test_serve import ask, png
from tests.postgres import postgres_server

pytestmark = pytest.mark.slow

SMALL = ("--model.num_blocks", "1", "--model.channels", "16", "--augment.image_size", "8", "--train.batch_size", "128")
MODELS = {
    "poor": ("--train.epochs", "1", "--optim.lr", "1e-6"),
    "good": ("--train.epochs", "5", "--optim.lr", "0.01"),
    "worse": ("--train.epochs", "1", "--optim.lr", "1e-6", "--train.seed", "1"),
}


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that is started."""
    with ExitStack() as stack:
        backend = None
        if request.param == "postgres":  # the driver that the extra installs; SQLAlchemy 2.1 would take another one
            address = stack.enter_context(postgres_server("mlflow"))
            backend = address.replace("postgresql://", "postgresql+psycopg2://")
        folder = tmp_path / "server"
        folder.mkdir()
        one = Server(folder, backend)
        stack.callback(one.stop)
        one.start()
        yield one


def test_models_are_promoted_replaced_refused_and_taken_back(registry: Server, spawn: Spawn, tmp_path: Path) -> None:
    here = {"MLFLOW_TRACKING_URI": registry.uri, "MLFLOW_EXPERIMENT_NAME": "life", "PYTHONPATH": str(CHECKOUT)}
    here["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    runs = open_runs(registry.uri)
    runs.client.create_experiment("life")
    jobs = {name: spawn(*imgcls("train", "digits", *SMALL, *fields), **here) for name, fields in MODELS.items()}
    ids = {}
    for name, child in jobs.items():
        assert child.wait(240) == 0, child.err
        ids[name] = child.wait_for(r"/runs/([0-9a-f]{32})\n").group(1)

    def champion() -> str:
        return str(runs.client.get_model_version_by_alias("animals", "champion").run_id)

    first = spawn(*imgcls("promote", "--run", ids["poor"], "--name", "animals"), **here)
    assert first.wait() == 0, first.err
    assert "promoted: version 1 of animals is the champion now    models:/animals@champion\n" in first.out
    assert champion() == ids["poor"]

    mlflow = str(Path(sys.executable).with_name("mlflow"))
    words = ["-P", f"run={ids['good']}", "-P", "name=animals", "-P", "promote.min_gain=0.05"]
    words += ["-P", "promote.max_recall_fall=1"]  # one that calls every image a 3 finds every 3
    second = spawn(
        mlflow, "run", str(CHECKOUT), "-e", "promote", "--env-manager", "local", "--experiment-name", "life", *words,
        "-P", f"train.output_dir={tmp_path / 'out puts'}", **here,
    )  # fmt: skip
    assert second.wait() == 0, second.out
    assert champion() == ids["good"]
    [run] = [run for run in runs.of("life") if run.data.tags.get("mlflow.project.entryPoint") == "promote"]
    assert (run.info.status, run.data.tags["imgcls.verdict"]) == ("FINISHED", "promoted")
    assert run.data.metrics["gate/gain"] > 0.05
    assert {"report.md", "gates.csv", "predictions/candidate.parquet", "predictions/champion.parquet"} <= (
        runs.artifacts(run)
    )

    _use_the_champion(spawn, tmp_path, here)

    third = spawn(*imgcls("promote", "--run", ids["worse"], "--name", "animals"), **here)
    assert third.wait() == 4, third.err
    assert re.search(r"^refused: .*accuracy -0\.\d+ against the champion .*tagged as rejected", third.out, re.MULTILINE)
    assert champion() == ids["good"]

    back = spawn(*imgcls("registry", "rollback", "animals", "--reason", "cats are dogs"), **here)
    assert back.wait() == 0, back.err
    assert back.out.startswith("version 1 of animals is the champion again, in the place of version 2")
    assert champion() == ids["poor"]

    shown = spawn(*imgcls("registry", "show", "animals", "--json"), **here)
    assert shown.wait() == 0, shown.err
    found = json.loads(shown.out)
    assert [version["state"] for version in found["versions"]] == ["champion", "replaced", "rejected"]
    assert [(m["kind"], m["version"], m["replaced"]) for m in found["history"]] == [
        ("promotion", "1", None), ("promotion", "2", "1"), ("rollback", "1", "2"),
    ]  # fmt: skip
    assert runs.client.search_runs([run.info.experiment_id], "attributes.status = 'RUNNING'") == []


def _use_the_champion(spawn: Spawn, tmp_path: Path, here: dict[str, str]) -> None:
    """It is evaluated, predicted with and served by its alias."""
    evaluated = spawn(*imgcls("evaluate", "--model", "models:/animals@champion", "--json"), **here)
    assert evaluated.wait() == 0, evaluated.err
    assert json.loads(evaluated.out)["figures"]["acc"]["value"] > 0.5
    photos = tmp_path / "photos"
    photos.mkdir()
    scans = np.round(load_digits().images[:5] * (255 / 16)).astype(np.uint8)
    for number, pixels in enumerate(scans):
        (photos / f"{number}.png").write_bytes(png(pixels))
    output = str(tmp_path / "labels.csv")
    predicted = spawn(
        *imgcls("predict", str(photos), "--model", "models:/animals@champion", "--output", output), **here
    )
    assert predicted.wait() == 0, predicted.err
    table = pd.read_csv(tmp_path / "labels.csv", dtype={"label": str})
    assert table["id"].tolist() == [f"{number}.png" for number in range(5)]
    server = spawn(*imgcls("serve", "models:/animals@champion", "--port", "0", "--threads", "1"), **here)
    port = int(server.wait_for(r"serving at http://127\.0\.0\.1:(\d+)\n")[1])
    answers = [ask(port, "/predict", png(pixels), "image/png")[1] for pixels in scans]
    assert [answer["label"] for answer in answers] == table["label"].tolist()
    assert np.allclose([answer["probability"] for answer in answers], table["probability"], atol=1e-4)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM
