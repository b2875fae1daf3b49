"""Logging a saved classifier as MLflow's model of a run: code-based pyfunc, weights without pickle."""

import base64
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imgcls.errors import UserError
from imgcls.inference.ensemble import families_of
from imgcls.tracking.store import Store, connect, first_line

MODEL_NAME = "model"
CLASSIFIER = "classifier"
"""The folder below a logged model's `artifacts` that the saved classifier lies in: MLflow keeps the name of the folder
that was logged."""
IMAGE_CELLS = "encoded bytes (JPEG, PNG, ...), their base64 text, or (H, W[, 3]) pixels from 0 to 255"
"""What a cell of the column `image` may be, of which the signature can only say that it is anything."""
PACKAGE = Path(__file__).resolve().parents[1]
# What the model's code imports. The package itself travels with the model, so it is not among them.
REQUIREMENTS = (
    "albumentations", "filelock", "mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "psutil", "pyarrow",
    "pydantic", "safetensors", "torch", "torchvision",
)  # fmt: skip


def requirements(*families: str) -> list[str]:
    """The packages that a logged model of these families needs, as pip requirements pinned to what is installed.

    One that is installed under another name (opencv-python, say) is named without a version.
    """
    pinned = []
    for name in (*REQUIREMENTS, *(["timm"] if any(family.startswith("timm:") for family in families) else [])):
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
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType, Array

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "label", required=False),
        ColSpec(DataType.double, "probability", required=False),
        ColSpec(Array(DataType.string), "top_labels"),
        ColSpec(Array(DataType.double), "top_probabilities"),
        ColSpec(DataType.string, "error", required=False),
    ]
    # A `binary` column would refuse pixels, and would let one cell that is no base64 spoil the whole request.
    inputs = Schema([ColSpec(AnyType(), "image")])  # type: ignore[no-untyped-call]
    signature = ModelSignature(inputs=inputs, outputs=Schema(outputs))
    with _quiet():
        mlflow.pyfunc.save_model(
            str(local),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=run_id,
                metadata={"top_k": top_k, "image": IMAGE_CELLS},
            ),
            python_model=str(PACKAGE / "tracking" / "pyfunc.py"),
            artifacts={CLASSIFIER: str(folder)},
            code_paths=[str(PACKAGE)],
            signature=signature,
            input_example=pd.DataFrame({"image": [base64.b64encode(_grey_png()).decode()]}),
            pip_requirements=requirements(*families_of(folder)),
        )


def _grey_png() -> bytes:
    """An image for the example of a request that MLflow shows beside a model: one of the user's is not ours to show."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow says at every model that it looks at its example, in a way that pandas 3 warns of."""
    logger = logging.getLogger("mlflow.pyfunc")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(before)


def _best_metrics(client: Any, run: Any, model_id: str) -> list[Any]:
    """The run's `best/...` figures as the model's; with their own times, so that the run gets none twice."""
    from mlflow.entities import Metric

    names = [name for name in run.data.metrics if name.startswith("best/")]
    found = [metric for name in names for metric in client.get_metric_history(run.info.run_id, name)]
    return [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run.info.run_id) for m in found]


@dataclass(frozen=True)
class Downloaded:
    """A logged model's classifier as a local folder.

    Attributes:
        folder: with what `Classifier.save` wrote.
        model_id: the LoggedModel.
        pinned: an address that will always mean this very model.
        run_id: the run that made it; None where the store does not say.
    """

    folder: Path
    model_id: str
    pinned: str
    run_id: str | None


@contextmanager
def download_classifier(source: str) -> Iterator[Downloaded]:
    """A local copy of the classifier in one's own earlier model; none of the model's code is read.

    Args:
        source: a run id, runs:/<run id>[/model], models:/<name>/<version>, models:/<name>@<alias> or
            models:/<model id>.

    Raises:
        UserError: there is no such run or model, or imgcls did not log it.
    """
    import mlflow

    store = connect()
    with TemporaryDirectory(prefix="imgcls-") as temporary:
        model, pinned = _find_model(store, source)
        address = f"{model.artifact_location.rstrip('/')}/artifacts/{CLASSIFIER}"
        try:
            local = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=temporary)
        except Exception as error:
            raise UserError(
                f"the model {source} ({model.model_id} in {store.uri}) has no classifier of imgcls that can be read: "
                f"{first_line(error)}. Give a model that `imgcls train` logged, or a file of weights."
            ) from error
        yield Downloaded(Path(local), model.model_id, pinned, model.source_run_id)


def _find_model(store: Store, source: str) -> tuple[Any, str]:
    """The LoggedModel that the source names, and the address that stays."""
    try:
        if found := re.fullmatch(r"(?:runs:/+)?([0-9a-f]{32})(?:/(\w+))?/?", source):
            return model_of_run(store, found[1], found[2] or MODEL_NAME), f"runs:/{found[1]}/{found[2] or MODEL_NAME}"
        if found := re.fullmatch(r"models:/+(m-[0-9a-f]{32})", source):
            return store.client.get_logged_model(found[1]), source
        if found := re.fullmatch(r"models:/+([^/@]+)(?:/(\d+)|@([^/@]+))", source):
            name, number, alias = found.groups()
            client = store.client
            version = (
                client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
            )
            return _model_of_version(store, version), f"models:/{name}/{version.version}"
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"there is no model {source} in {store.uri}: {first_line(error)}. Give a run id from `imgcls ui`, or "
            "models:/<name>/<version> or models:/<name>@<alias> of the registry; MLFLOW_TRACKING_URI names the store."
        ) from error
    raise UserError(
        f"{source!r} names no model. Expected runs:/<run id>, models:/<name>/<version>, models:/<name>@<alias> or "
        "models:/<model id>, with 32 hexadecimal digits as an id."
    )


def model_of_run(store: Store, run_id: str, name: str) -> Any:
    """The run's complete LoggedModel of this name.

    Raises:
        UserError: it has none.
    """
    run = store.client.get_run(run_id)
    query = f"source_run_id = '{run_id}'"
    models = store.client.search_logged_models([run.info.experiment_id], filter_string=query)
    ready = [model for model in models if str(model.status).endswith("READY")]
    for model in ready:
        if model.name == name:
            return model
    has = f"its models are {', '.join(model.name for model in ready)}" if ready else "it has none"
    raise UserError(
        f"the run {run_id} (status {run.info.status}) has no model {name!r}: {has}. Give a run that finished, or a "
        "file of weights, such as the artifact checkpoints/best.pt of a run that did not."
    )


def _model_of_version(store: Store, version: Any) -> Any:
    """The LoggedModel that a version of a registered model was made from."""
    found = re.search(r"m-[0-9a-f]{32}", f"{version.model_id or ''} {version.source or ''}")
    if found is None:
        raise UserError(
            f"the version {version.version} of the model {version.name} was made of {version.source} and not of a "
            "logged model. Give one that `imgcls train` logged."
        )
    return store.client.get_logged_model(found[0])
