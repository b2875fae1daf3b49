"""A trained model evaluated as a user does it: through `mlflow run`, and with what a user gets wrong."""

import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import CHECKOUT, Finished, Spawn, imgcls

pytestmark = pytest.mark.slow


def test_through_mlflow_run_it_is_the_run_that_mlflow_made(digits: Finished, spawn: Spawn, tmp_path: Path) -> None:
    client, run_id = digits.runs.client, digits.run.info.run_id
    client.create_experiment("project evaluate", artifact_location=str(tmp_path / "artifacts"))
    child = spawn(
        str(Path(sys.executable).with_name("mlflow")), "run", str(CHECKOUT), "-e", "evaluate", "--env-manager", "local",
        "--experiment-name", "project evaluate", "-P", f"model=runs:/{run_id}/model", "-P", "split=val", "-P", "tta=2",
        MLFLOW_TRACKING_URI=digits.runs.uri,
    )  # fmt: skip
    assert child.wait() == 0, child.err
    run = digits.runs.only("project evaluate")
    assert (run.info.status, run.data.tags["imgcls.verb"]) == ("FINISHED", "evaluate")
    assert run.data.tags["imgcls.model_run"] == run_id
    assert (run.data.params["evaluate.split"], run.data.params["evaluate.tta"]) == ("val", "2")
    assert run.data.metrics["val/acc"] > 0.5
    assert {"evaluation_val.md", "predictions/val.parquet", "plots/roc_val.png"} <= digits.runs.artifacts(run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "models:/nothing@champion"), "there is no registered model 'nothing'"),
        (("--model", "RUN", "--data.root", "/nowhere"), "/nowhere"),
        (("--model", "RUN", "--optim.lr", "1"), "optim.lr cannot be given beside a model"),
        (("--model", "RUN", "--tta", "11"), "found 11 views of the kind crops; expected 1 to 10"),
        (("digits", "--model", "RUN"), "found 'digits' beside the model, which has its own recipe"),
    ],
)
def test_a_mistake_ends_with_2_and_one_paragraph_and_makes_no_run(
    digits: Finished, spawn: Spawn, words: tuple[str, ...], message: str
) -> None:
    given = [digits.run.info.run_id if word == "RUN" else word for word in words]
    child = spawn(
        *imgcls("evaluate", *given), MLFLOW_TRACKING_URI=digits.runs.uri, MLFLOW_EXPERIMENT_NAME="evaluate mistakes"
    )
    assert child.wait() == 2, child.err
    assert message in child.err
    assert "Traceback" not in child.err
    assert digits.runs.of("evaluate mistakes") == []
