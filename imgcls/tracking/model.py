"""Logging a saved classifier as MLflow's model of a run: code-based pyfunc, weights without pickle."""

import json
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imgcls.inference.classifier import SPEC

MODEL_NAME = "model"
PACKAGE = Path(__file__).resolve().parents[1]
# What the model's code imports. The package itself travels with the model, so it is not among them.
REQUIREMENTS = (
    "albumentations", "filelock", "mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "psutil", "pyarrow",
    "pydantic", "safetensors", "torch", "torchvision",
)  # fmt: skip


def requirements(family: str = "") -> list[str]:
    """The packages that a logged model of this family needs, as pip requirements pinned to what is installed.

    One that is installed under another name (opencv-python, say) is named without a version.
    """
    pinned = []
    for name in (*REQUIREMENTS, *(["timm"] if family.startswith("timm:") else [])):
        try:
            pinned.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            pinned.append(name)
    return pinned


def log_model(client: Any, run_id: str, folder: Path, *, top_k: int) -> None:
    """Log the classifier saved in `folder` as the LoggedModel `model` of the run.

    What an earlier, interrupted call has done is kept and the rest is done: a run never gets a second model. That is
    why this is in steps of its own and not `mlflow.pyfunc.log_model`, which also puts the model into the process's
    experiment where the run's is another.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    earlier = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    model = next(iter(earlier), None) or client.create_logged_model(
        experiment_id,
        name=MODEL_NAME,
        source_run_id=run_id,
        params=dict(run.data.params),
        model_type="image-classifier",
    )
    if model.status == LoggedModelStatus.READY:
        return
    with TemporaryDirectory(prefix="imgcls-") as temporary:
        local = Path(temporary) / "model"
        _save(model, run_id, folder, local, top_k=top_k)
        client.log_model_artifacts(model.model_id, str(local))
    if model.model_id not in [output.model_id for output in run.outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.log_batch(run_id, metrics=_best_metrics(client, run, model.model_id))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _save(model: Any, run_id: str, folder: Path, local: Path, *, top_k: int) -> None:
    """Write the model's files: MLmodel, the package's code, the classifier."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    family = json.loads((folder / SPEC).read_text(encoding="utf-8"))["model"]["family"]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.string), "top_labels"),
        ColSpec(Array(DataType.double), "top_probabilities"),
    ]
    signature = ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema(outputs))
    with warnings.catch_warnings():
        # MLflow would like an input example, which would put a user's image into the model.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            str(local),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=run_id,
                metadata={"top_k": top_k},
            ),
            python_model=str(PACKAGE / "tracking" / "pyfunc.py"),
            artifacts={"classifier": str(folder)},
            code_paths=[str(PACKAGE)],
            signature=signature,
            pip_requirements=requirements(family),
        )


def _best_metrics(client: Any, run: Any, model_id: str) -> list[Any]:
    """The run's `best/...` figures as the model's; with their own times, so that the run gets none twice."""
    from mlflow.entities import Metric

    names = [name for name in run.data.metrics if name.startswith("best/")]
    found = [metric for name in names for metric in client.get_metric_history(run.info.run_id, name)]
    return [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run.info.run_id) for m in found]
