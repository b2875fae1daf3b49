"""MixUp and CutMix: training images of a batch mixed with each other."""

from collections.abc import Sequence

import torch
from torch import nn

from imgcls.data.augment import AugmentConfig


class Mixing:
    """MixUp or CutMix of whole batches, behind the normalisation, as torchvision's training script has them.

    Args:
        transforms: torchvision's transforms, of which each batch that is mixed gets one at random.
        prob: the share of the batches that are mixed, above 0 to 1.
    """

    def __init__(self, transforms: Sequence[nn.Module], *, prob: float) -> None:
        self._transforms, self._prob = list(transforms), prob

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch with itself, shifted by one image.

        Args:
            inputs: (B, C, H, W) the network's input.
            labels: (B,) int64.
            seed: decides all that is random here; the generators of others stay as they are.

        Returns:
            The inputs, and (B, num_classes) float32 shares of each class that sum to 1; or, of a batch that is left as
            it is, both as they came.
        """
        # torchvision draws from torch's generator of the CPU, whatever the device, so a GPU is not waited for.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if torch.rand(()).item() >= self._prob:
                return inputs, labels
            chosen = int(torch.randint(len(self._transforms), ()))
            mixed: tuple[torch.Tensor, torch.Tensor] = self._transforms[chosen](inputs, labels)
        return mixed


def build_mixing(config: AugmentConfig, *, num_classes: int) -> Mixing | None:
    """The recipe's MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), or None
    where it has neither."""
    if not config.mixup and not config.cutmix:
        return None
    from torchvision.transforms import v2

    transforms = []
    if config.mixup:
        transforms.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        transforms.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return Mixing(transforms, prob=config.mix_prob)
