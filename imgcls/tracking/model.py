"""Logging a saved classifier as MLflow's model of a run: code-based pyfunc, weights without pickle."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL_NAME = "model"
PACKAGE = Path(__file__).resolve().parents[1]
# What the model's code imports. The package itself travels with the model, so it is not among them.
REQUIREMENTS = (
    "albumentations", "mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "psutil", "pyarrow", "pydantic",
    "safetensors", "torch", "torchvision",
)  # fmt: skip


def requirements() -> list[str]:
    """The pinned packages that a logged model needs, as pip requirements."""
    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def log_model(client: Any, run_id: str, folder: Path, *, top_k: int) -> None:
    """Log the classifier saved in `folder` as the LoggedModel `model` of the run.

    A LoggedModel of the run that an earlier, interrupted call left unfinished is removed, and one that is complete is
    not logged again.
    """
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    experiment_id = client.get_run(run_id).info.experiment_id
    earlier = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    for model in earlier:
        if str(model.status) == "READY":
            return
        client.delete_logged_model(model.model_id)
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
        Model.log(
            artifact_path=None,
            name=MODEL_NAME,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_type="image-classifier",
            python_model=str(PACKAGE / "tracking" / "pyfunc.py"),
            artifacts={"classifier": str(folder)},
            code_paths=[str(PACKAGE)],
            signature=signature,
            pip_requirements=requirements(),
            metadata={"top_k": top_k},
        )
