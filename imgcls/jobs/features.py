"""The frozen stages' outputs of a training: from the recipe to batches of them."""

from dataclasses import dataclass

from imgcls.data.cache import cache_dir, size_text
from imgcls.data.loading import Batches, Loader
from imgcls.data.resident import ResidentLoader
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.models.family import ModelConfig
from imgcls.tables import Split
from imgcls.training.features import FeatureLoader, Features, NotKept, Subject, View

_NOT_OF_STAGES = {*ModelConfig.model_fields, "dropout"} - {"family"}
"""Fields of `model` that change nothing of what frozen stages give, or only by their weights, which are hashed."""
_NOT_OF_PIXELS = {"mixup", "cutmix", "mix_prob", "eval_crop", "normalize"}
"""Fields of `augment` that change no training image, that `Preprocessing` has, or with which nothing is kept."""


SHARED_BATCH = 64
"""Images a batch in which features are computed that trainings with batches of any size share."""


@dataclass(frozen=True)
class Source:
    """Where a training takes its batches from.

    Attributes:
        train, val: images, or features of them; no val where all are trained on.
        about: which features, "" where it takes images.
    """

    train: Batches
    val: Batches | None
    about: str = ""


def open_features(prepared: Prepared, console: Console) -> Source:
    """The batches of a training: features, computed where they are not there yet, where it was decided to keep such.

    Where they cannot be kept after all, which is said, it takes images.
    """
    if not prepared.num_views:
        return Source(prepared.train, prepared.val)
    recipe, model = prepared.recipe, prepared.model
    prepared.plan.place(model)
    until = min(recipe.train.unfreeze, default=recipe.train.epochs + 1) - 1
    # As many views as epochs give the figures of a training without them, to the bit. Fewer are other variations
    # anyway: they are computed as fast as can be, and in batches of one size, so that trials of all sizes share them.
    is_exact = not recipe.augment.is_varied or prepared.num_views >= until
    features = Features(
        model,
        recipe.model.model_dump(mode="json", exclude=_NOT_OF_STAGES),
        prepared.preprocessing,
        prepared.plan,
        budget=int(recipe.data.store_budget * 2**30),
        fuses=not is_exact,
        progress=console.count,
        say=console.say,
    )
    numbers = range(1, prepared.num_views + 1) if recipe.augment.is_varied else (0,)
    subject = _subject(prepared, "train", prepared.train, is_exact=is_exact)
    try:
        views = [features.view(subject, number) for number in numbers]
        val = (
            None
            if prepared.val is None
            else features.view(_subject(prepared, "val", prepared.val, is_exact=is_exact), 0)
        )
    except (NotKept, OSError) as error:
        console.clear()
        reason = error if isinstance(error, NotKept) else f"{cache_dir()} cannot be written ({error.strerror})"
        console.say(f"the frozen stages are computed anew in every epoch, which is slow: {reason}")
        return Source(prepared.train, prepared.val)
    about = _about(model.stage_names[model.freeze_depth - 1], views, val, features.num_computed)
    console.say(f"features of the frozen stages: {about}")
    val_loader = None if prepared.val is None or val is None else FeatureLoader(model, prepared.val, [val])
    return Source(FeatureLoader(model, prepared.train, views), val_loader, about)


def _subject(prepared: Prepared, split: Split, loader: Loader, *, is_exact: bool) -> Subject:
    recipe = prepared.recipe
    if not is_exact:
        loader = loader.rebatched(SHARED_BATCH)
    variation: dict[str, object] = {"evaluation": True}
    if split == "train":
        variation = recipe.augment.model_dump(mode="json", exclude=_NOT_OF_PIXELS)
        if recipe.augment.is_varied:
            variation["seed"] = recipe.train.seed
            if isinstance(loader, ResidentLoader):  # the same variation, drawn in another way
                variation["on_device"] = True
    contents = [str(content) for content in prepared.manifest.part(split).frame["content"]]
    return Subject(loader, contents, variation, f"{split} images of {recipe.data.origin}")


def _about(stage: str, views: list[View], val: View | None, num_computed: int) -> str:
    parts = [*views] if val is None else [*views, val]
    size = size_text(sum(view.num_bytes for view in parts))
    kept = len(parts) - num_computed
    origin = "computed" if not kept else "reused" if not num_computed else f"{kept} of {len(parts)} parts reused"
    return f"{len(views)} view{'s' * (len(views) > 1)} of {stage}, {size}, {origin}"
