"""From the name of a model to the model: a run, a version or an alias of the registry, or a folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from imgcls.data.augment import AugmentConfig
from imgcls.errors import UserError
from imgcls.inference.classifier import SPEC
from imgcls.inference.ensemble import ENSEMBLE, Ensemble, Model, load_model, members_of
from imgcls.inference.views import Combine, Kind, Views
from imgcls.jobs.console import Console
from imgcls.recipe import Recipe, resolve
from imgcls.tracking.model import CLASSIFIER, download_classifier
from imgcls.tracking.model_files import digest_of_run
from imgcls.tracking.registry import read_alias
from imgcls.tracking.store import artifact, connect

_EXPECTED = (
    f"a run id, runs:/<run id>, models:/<name>/<version>, models:/<name>@<alias>, or a folder with {SPEC} and "
    "model.safetensors"
)
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib"}


@dataclass(frozen=True)
class Opened:
    """A model that was found.

    Attributes:
        model: on the CPU, in evaluation mode.
        address: what will always name it: runs:/<id>/model, models:/<name>/<version>, models:/<model id>, or a folder.
        model_id: its LoggedModel; None for a folder.
        run_id: the run that made it; None for a folder.
    """

    model: Model
    address: str
    model_id: str | None = None
    run_id: str | None = None
    _given: Recipe | None = field(default=None, repr=False)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run that made it.

        Raises:
            UserError: it is not known, as of a folder.
        """
        if self._given is not None:
            return self._given
        if self.run_id is None:
            raise UserError(
                f"the model {self.address} is a folder, which does not say what data it was trained on. Name the data "
                "(--data.root FOLDER), or give the model by its run or its name in the registry."
            )
        with artifact(self.run_id, "recipe.yaml") as path:
            return resolve(path).recipe

    @property
    def digest(self) -> str | None:
        """The digest of the data set that its run read, a deleted one too; None where that is not known.

        Raises:
            UserError: the store does not answer.
        """
        return None if self.run_id is None else digest_of_run(connect(), self.run_id)


def open_model(source: str, console: Console) -> Opened:
    """The model that is named.

    Args:
        source: a run id, runs:/<run id>[/model], models:/<name>/<version>, models:/<name>@<alias>, models:/<model id>;
            or a folder that `Classifier.save` wrote, one of a downloaded MLflow model, or a file in it.
        console: where it is told.

    Raises:
        UserError: there is no such model, or it is not one of imgcls.
    """
    if re.fullmatch(r"[0-9a-f]{32}", source) or source.startswith(("runs:", "models:")):
        if found_alias := re.fullmatch(r"models:/+([^/@]+)@([^/@]+)", source):
            source = read_alias(
                connect(), *found_alias.groups()
            ).uri  # its errors say which names and aliases there are
        with download_classifier(source) as found:
            opened = Opened(load_model(found.folder), found.pinned, found.model_id, found.run_id)
    else:
        try:
            folder = _folder(Path(source))
        except OSError as error:
            why = error.strerror
            raise UserError(f"the model {source} cannot be looked for: {why}. Expected {_EXPECTED}.") from error
        opened = Opened(load_model(folder), str(folder.absolute()))
    families = ", ".join(dict.fromkeys(member.config.family for member in members_of(opened.model)))
    size = " and ".join(str(one) for one in sorted({m.preprocessing.image_size for m in members_of(opened.model)}))
    what = f"{len(members_of(opened.model))} models ({families})" if isinstance(opened.model, Ensemble) else families
    console.say(f"model {opened.address}: {what}, {len(opened.model.classes):,} classes, {size} px")
    return opened


def _folder(path: Path) -> Path:
    """The folder that a saved classifier lies in."""
    if path.is_file():
        if path.suffix in _PICKLES:
            raise UserError(
                f"{path} is a file of weights ({path.suffix}), which does not say what its classes and preprocessing "
                "are, and may hold code that would be run when it is read. Give the run that made it, its name in the "
                f"registry, or a folder with {SPEC} and model.safetensors."
            )
        path = path.parent
    places = [path, path / "artifacts" / CLASSIFIER, path / CLASSIFIER]
    found = next((place for place in places if any((place / name).is_file() for name in (ENSEMBLE, SPEC))), None)
    if found is None:
        there = "holds no saved classifier" if path.is_dir() else "is not there"
        raise UserError(f"the model {path} {there}. Expected {_EXPECTED}.")
    return found


def open_views(num: int, kind: Kind, combine: Combine, models: Sequence[Opened]) -> list[Views]:
    """The views that each of some models looks at.

    Raises:
        UserError: there are not so many of this kind, or they are those of a training that is not known.
    """
    plain = Views(num, kind, combine)
    if not plain.needs_training():
        return [plain] * len(models)
    return [Views(num, kind, combine, augment=_augment(opened)) for opened in models]


def _augment(opened: Opened) -> AugmentConfig:
    if opened.run_id is None:
        raise UserError(
            f"the model {opened.address} is a folder, which does not say how its training varied the images. Give the "
            "model by its run or its name in the registry, or take views of the kind crops or flips."
        )
    return opened.recipe.augment
