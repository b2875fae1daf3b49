"""What can be done to a run, as JSON-ready operations, which can be kept in a file and applied later."""

import json
from pathlib import Path
from typing import Any

from imgcls.tracking.model import MODEL_NAME, log_model, model_of_run
from imgcls.tracking.store import Store

Operation = dict[str, Any]
"""`op` says which, the rest is its arguments."""
NOTE_TAG = "mlflow.note.content"
"""What MLflow's UI shows as a run's description."""
BATCH = 100
"""Params or tags in a request, at most."""


def apply(store: Store, run_id: str, folder: Path, operation: Operation) -> None:
    """Do one operation on the store."""
    with store.writing():
        _apply(store, run_id, folder, operation)


def _apply(store: Store, run_id: str, folder: Path, operation: Operation) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client, kind = store.client, operation["op"]
    if kind == "metrics":
        metrics = [Metric(*row) for row in operation["metrics"]]
        client.log_batch(run_id, metrics=metrics)
    elif kind == "model_metrics":
        _log_model_metrics(store, run_id, operation)
    elif kind == "link_models":
        from mlflow.entities import LoggedModelInput

        there = {found.model_id for found in client.get_run(run_id).inputs.model_inputs}
        new = [LoggedModelInput(model_id) for model_id in operation["models"] if model_id not in there]
        if new:
            client.log_inputs(run_id, models=new)
    elif kind == "params":
        there = client.get_run(run_id).data.params
        params = [Param(name, value) for name, value in operation["params"].items() if name not in there]
        for begin in range(0, len(params), BATCH):
            client.log_batch(run_id, params=params[begin : begin + BATCH])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in operation["tags"].items()])
    elif kind == "note":
        if not client.get_run(run_id).data.tags.get(NOTE_TAG):
            client.set_tag(run_id, NOTE_TAG, operation["text"])
    elif kind == "artifact":
        path = Path(operation["artifact"])
        parent = path.parent.as_posix()
        client.log_artifact(run_id, str(folder / "artifacts" / path), None if parent == "." else parent)
    elif kind == "dataset":
        _log_dataset(client, run_id, operation)
    elif kind == "model":
        log_model(client, run_id, folder / operation["source"], top_k=operation["top_k"])
    elif kind == "end":
        client.set_terminated(run_id, operation["status"], operation["time"])
    else:
        raise AssertionError(f"unknown operation {kind!r}")


def _log_model_metrics(store: Store, run_id: str, operation: Operation) -> None:
    """Figures of a model on a data set: the run's own, and the LoggedModel's."""
    from mlflow.entities import Metric

    model_id = operation["model_id"] or model_of_run(store, run_id, MODEL_NAME).model_id
    about = {"model_id": model_id, "run_id": run_id}
    about |= {"dataset_name": operation["dataset"]["name"], "dataset_digest": operation["dataset"]["digest"]}
    store.client.log_batch(run_id, metrics=[Metric(*row, **about) for row in operation["metrics"]])


def _log_dataset(client: Any, run_id: str, operation: Operation) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=operation["name"],
        digest=operation["digest"],
        source_type="local",
        source=json.dumps({"uri": operation["source"]}),
        profile=json.dumps(operation["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", operation["context"])])])
