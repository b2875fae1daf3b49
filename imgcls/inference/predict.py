"""Probabilities of a model for a loader's images."""

import numpy as np
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batches
from imgcls.inference.classifier import exact_convolutions
from imgcls.tables import Manifest, Predictions


@torch.no_grad()
def predict(
    model: nn.Module, loader: Batches, manifest: Manifest, *, preprocessing: Preprocessing, device: str, split: str
) -> Predictions:
    """The model's probabilities, computed in fp32 as a served model computes them.

    Args:
        model: logits (B, C) from inputs (B, channels, S, S); put into evaluation mode.
        loader: the manifest's images in its order, or what frozen stages gave of them.
        manifest: ids, labels and classes of those images.
        preprocessing: from uint8 batches to inputs.
        device: where the model is.
        split: recorded with the predictions.
    """
    model.eval()
    probs = []
    with exact_convolutions():
        for batch in loader.epoch(0):
            images = batch.images.to(device, non_blocking=True)
            parts = (images,) if batch.is_features else preprocessing.parts(images)
            for part in parts:
                logits = model(part.float() if batch.is_features else preprocessing.to_input(part))
                probs.append(logits.float().softmax(1).cpu().numpy())
    return Predictions(
        ids=manifest.ids,
        probs=np.concatenate(probs).astype(np.float32),
        labels=manifest.labels,
        classes=manifest.classes,
        split=split,
        manifest_digest=manifest.digest,
    )
