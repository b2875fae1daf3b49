"""The code of a logged model: MLflow runs this file, with the package's copy inside the model on the path."""

import threading
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

COLUMN = "image"


class ImageClassifier(PythonModel):
    """Labels images.

    Input: a table with a column `image`, each cell encoded bytes (JPEG, PNG, …), their base64 text, or (H, W[, 3])
    uint8 pixels; or {"image": array of shape (N, H, W[, 3])}.

    Output: a table with label, probability, top_labels and top_probabilities (the top k of both by falling
    probability), and error. An image that cannot be read has the reason in `error`, None in label and probability and
    nothing in the lists, and does not keep the others from being labelled; all other rows have None in `error`. It
    is None and not NaN, which `mlflow models serve` would write into its JSON as it is, though JSON knows no NaN.

    `mlflow models serve` takes base64 text and nested lists of pixels in all four of its forms. Under `instances` with
    one object an image MLflow makes one array of all cells, so that there they must all be text or of one size.
    """

    def load_context(self, context: Any) -> None:
        """Read weights, preprocessing and class names."""
        from imgcls.inference.ensemble import load_model

        self._classifier = load_model(Path(context.artifacts["classifier"]))
        # MLflow's server calls from many threads, each of which would have torch start as many of its own.
        self._one_at_a_time = threading.Lock()

    def predict(
        self,
        context: Any,  # noqa: ARG002  (MLflow finds the arguments by their names)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One row an image."""
        from imgcls.inference.labelling import label_images

        cells = list(model_input[COLUMN])
        if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(each, str) for each in cells[0]):
            cells = cells[0]  # what MLflow makes of {"inputs": {"image": ["…", "…"]}} and of {"inputs": ["…", "…"]}
        with self._one_at_a_time:
            labels = label_images(self._classifier, cells)
        columns = {name: pd.Series(values, dtype=object) for name, values in vars(labels).items()}
        if not any(labels.error):
            columns["probability"] = pd.Series(labels.probability, dtype=float)
        return pd.DataFrame(columns)


mlflow.models.set_model(ImageClassifier())
