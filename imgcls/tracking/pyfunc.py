"""The code of a logged model: MLflow runs this file, with the package's copy inside the model on the path."""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel

COLUMN = "image"


class ImageClassifier(PythonModel):
    """Labels images.

    Input: a table with a column `image`, each cell encoded bytes (JPEG, PNG, …), their base64 text, or (H, W[, 3])
    uint8 pixels; or {"image": array of shape (N, H, W[, 3])}. Output: a table with label, probability, top_labels and
    top_probabilities, the top k of both by falling probability.
    """

    def load_context(self, context: Any) -> None:
        """Read weights, preprocessing and class names."""
        from imgcls.inference.ensemble import load_model

        self._classifier = load_model(Path(context.artifacts["classifier"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002  (MLflow finds the arguments by their names)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One row an image."""
        probs = self._classifier.probabilities([_image(cell) for cell in model_input[COLUMN]])
        classes = np.array(self._classifier.classes, dtype=object)
        top = np.argsort(-probs, axis=1, kind="stable")[:, : self._classifier.top_k]
        top_probs = np.take_along_axis(probs, top, axis=1).astype(float)
        return pd.DataFrame(
            {
                "label": classes[top[:, 0]],
                "probability": top_probs[:, 0],
                "top_labels": [list(classes[row]) for row in top],
                "top_probabilities": [list(row) for row in top_probs],
            }
        )


def _image(cell: Any) -> Any:
    """A cell as bytes or (H, W[, 3]) uint8 pixels."""
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, str):
        try:
            return base64.b64decode(cell, validate=True)
        except binascii.Error as error:
            raise ValueError(f"an image given as text must be base64, but: {error}") from error
    pixels = np.asarray(cell)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(f"an image must have the shape (H, W), (H, W, 1) or (H, W, 3), found {pixels.shape}")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.integer) or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(f"an image's pixels must be integers from 0 to 255, found {pixels.dtype} values")
        pixels = pixels.astype(np.uint8)
    return pixels


mlflow.models.set_model(ImageClassifier())
