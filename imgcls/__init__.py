"""imgcls: image-classification training jobs as tracked, comparable MLflow runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.jobs.evaluate import EvaluateResult as EvaluateResult
    from imgcls.jobs.evaluate import evaluate as evaluate
    from imgcls.jobs.promote import PromoteResult as PromoteResult
    from imgcls.jobs.promote import promote as promote
    from imgcls.jobs.refit import RefitResult as RefitResult
    from imgcls.jobs.refit import refit as refit
    from imgcls.jobs.train import TrainResult as TrainResult
    from imgcls.jobs.train import train as train
    from imgcls.jobs.tune import TuneResult as TuneResult
    from imgcls.jobs.tune import tune as tune

__version__ = "0.1.0"
__all__ = [
    "EvaluateResult", "PromoteResult", "RefitResult", "TrainResult", "TuneResult", "__version__", "evaluate", "promote",
    "refit", "train", "tune",
]  # fmt: skip

# Torch and MLflow take seconds to import, so the public names are loaded when they are first used.
_LAZY = {
    "EvaluateResult": "imgcls.jobs.evaluate",
    "evaluate": "imgcls.jobs.evaluate",
    "PromoteResult": "imgcls.jobs.promote",
    "promote": "imgcls.jobs.promote",
    "RefitResult": "imgcls.jobs.refit",
    "TrainResult": "imgcls.jobs.train",
    "TuneResult": "imgcls.jobs.tune",
    "refit": "imgcls.jobs.refit",
    "train": "imgcls.jobs.train",
    "tune": "imgcls.jobs.tune",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'imgcls' has no attribute {name!r}")
