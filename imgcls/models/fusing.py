"""Batch norms multiplied into the convolutions before them: what is not trained is computed in fewer steps."""

import copy
import warnings

from torch import nn
from torch.fx.experimental.optimization import fuse


def fused(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose convolutions hold the batch norms that follow them.

    Its outputs are those of the module but for rounding (Jacob et al. 2018, arXiv:1712.05877, section 3.2). A module
    whose flow torch.fx cannot follow is copied as it is.
    """
    twin = copy.deepcopy(module).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.fx, about what it leaves as it is
            found: nn.Module = fuse(twin, inplace=True)
    except Exception:  # tracing runs the module's own code, which may do anything, to the copy too
        return copy.deepcopy(module).eval()
    return found.eval()
