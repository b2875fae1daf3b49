"""From a recipe to data, batches and a network, before there is a run: what every job that trains begins with."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls.data.augment import (
    Pipeline,
    Preprocessing,
    evaluation_pipeline,
    preprocessing,
    resolve_image_size,
    store_size,
    training_pipeline,
)
from imgcls.data.balance import class_weights
from imgcls.data.check import drop_unreadable
from imgcls.data.images import Images, open_images
from imgcls.data.loading import Loader, resolve_num_workers
from imgcls.data.source import scan
from imgcls.data.split import split
from imgcls.jobs.console import Console
from imgcls.models.family import StagedModel, build, num_parameters
from imgcls.recipe import Recipe, Resolved
from imgcls.tables import SPLITS, Manifest, Split
from imgcls.training.device import Plan, resolve_plan
from imgcls.training.fit import seed_all


@dataclass(frozen=True)
class Prepared:
    """Everything that is made, and can fail, before there is a run.

    Attributes:
        resolved: the recipe as it was given.
        recipe: the same with `auto` values replaced.
        plan: where and how to compute.
        manifest: the images, split.
        preprocessing: what happens to every image.
        train: training batches.
        val: validation batches.
        model: the network, on the CPU.
        class_weights: (C,) weight of each class.
    """

    resolved: Resolved
    recipe: Recipe
    plan: Plan
    manifest: Manifest
    preprocessing: Preprocessing
    train: Loader
    val: Loader
    model: StagedModel
    class_weights: npt.NDArray[np.float64]


def prepare(resolved: Resolved, console: Console) -> Prepared:
    """All of a training but the run.

    Raises:
        UserError: the data, the device or the model is not as it must be.
    """
    recipe = resolved.recipe
    for notice in resolved.notices:
        console.say(f"note: {notice}")
    plan = resolve_plan(recipe.train.device, recipe.train.precision)
    manifest = scan(recipe.data)
    if recipe.data.on_bad_image == "skip":
        manifest = drop_unreadable(manifest, progress=lambda done, total: console.count("checking images", done, total))
    manifest = split(manifest, recipe.data)
    size = resolve_image_size(recipe.augment, manifest.part("train"))
    recipe = recipe.replace({"augment.image_size": size})
    seed_all(recipe.train.seed)
    model = build(recipe.model, num_classes=len(manifest.classes), in_channels=recipe.data.channels, image_size=size)
    images = {name: _open(name, manifest, recipe, console) for name in SPLITS}
    channels = recipe.data.channels
    steps = preprocessing(
        recipe.augment, size=size, channels=channels, train_images=images["train"], train=manifest.part("train")
    )
    random_steps = training_pipeline(recipe.augment, size=size, channels=channels, mean=steps.mean)
    weights = _class_weights(manifest, recipe)
    chances = weights[manifest.part("train").labels] if recipe.data.balance == "oversample" else None
    train_loader = _loader("train", images["train"], random_steps, manifest, recipe, plan, chances)
    val_loader = _loader("val", images["val"], evaluation_pipeline(size), manifest, recipe, plan)
    total, _ = num_parameters(model)
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest.counts().items())
    console.say(
        f"{len(manifest):,} images of {len(manifest.classes):,} classes ({counts}) at {size} px; "
        f"{recipe.model.family} with {total:,} parameters on {plan}"
    )
    if manifest.skipped:
        first = ", ".join(f"{item.path} ({item.reason})" for item in manifest.skipped[:3])
        count = len(manifest.skipped)
        console.say(f"skipped {count:,} file{'s' * (count != 1)}: {first}{', …' * (count > 3)}")
    return Prepared(resolved, recipe, plan, manifest, steps, train_loader, val_loader, model, weights)


def _class_weights(manifest: Manifest, recipe: Recipe) -> npt.NDArray[np.float64]:
    counts = np.bincount(manifest.part("train").labels, minlength=len(manifest.classes))
    return class_weights(counts, recipe.data.balance, beta=recipe.data.balance_beta)


def _loader(
    name: Split,
    images: Images,
    pipeline: Pipeline,
    manifest: Manifest,
    recipe: Recipe,
    plan: Plan,
    chances: npt.NDArray[np.float64] | None = None,
) -> Loader:
    return Loader(
        images,
        manifest.part(name).labels,
        pipeline,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        shuffle=name == "train",
        chances=chances,
        num_workers=resolve_num_workers(recipe.data.num_workers, device=plan.device),
        pin_memory=plan.device == "cuda",
    )


def _open(name: Split, manifest: Manifest, recipe: Recipe, console: Console) -> Images:
    """The images of a split. Those of the test split are decoded to prove them readable, and not looked at."""
    assert recipe.augment.image_size != "auto"
    return open_images(
        manifest.part(name),
        channels=recipe.data.channels,
        short_side=store_size(recipe.augment.image_size),
        budget_mb=0 if name == "test" else recipe.data.memory_budget_mb,
        progress=lambda done, total: console.count(f"reading {name} images", done, total),
    )
