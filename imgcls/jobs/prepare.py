"""From a recipe to data, batches and a network, before there is a run: what every job that trains begins with."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from imgcls.data.augment import (
    Pipeline,
    Preprocessing,
    evaluation_pipeline,
    preprocessing,
    resolve_image_size,
    training_pipeline,
)
from imgcls.data.balance import class_weights
from imgcls.data.images import Images
from imgcls.data.loading import Loader, resolve_num_workers, resolve_prefetch
from imgcls.data.report import Report
from imgcls.data.resident import ResidentLoader, Shifts, shifts_of
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.reading import Shelf, decode, of_each, pooled, read, tell, tell_skipped
from imgcls.jobs.weights import normalization_of, open_weights, with_defaults
from imgcls.models.describe import check_contracts, describe
from imgcls.models.family import StagedModel, build
from imgcls.models.freezing import in_words, thaw_schedule
from imgcls.models.weights import Pretrained, WeightsReport, load_weights
from imgcls.recipe import Recipe, Resolved
from imgcls.tables import Manifest, Split
from imgcls.training.choose import Choice, choose_plan, given_plan
from imgcls.training.fit import check_training, micro_batch_of, seed_all
from imgcls.training.measure import Job
from imgcls.training.plan import Plan, resolve_device
from imgcls.training.processes import ALONE, Group, check_shares
from imgcls.training.views import Situation, choose_views, output_bytes


@dataclass(frozen=True)
class Prepared:
    """Everything that is made, and can fail, before there is a run.

    Attributes:
        resolved: the recipe as it was given.
        recipe: the same with `auto` values replaced, so that it gives the same plan again.
        plan: where and how to compute.
        measured: a row for each plan that was measured; none where the training is short or the plan is given.
        manifest: the images, split.
        preprocessing: what happens to every image.
        train: training batches.
        val: validation batches; None where all but the test images are trained on.
        whole_val: the same, not shared with other processes.
        test: batches of the test images, for a refit, which reads them once; None for all others.
        model: the network, on the CPU.
        class_weights: (C,) weight of each class.
        report: what the check of the data found; None where there was none.
        weights: what became of each tensor of the pretrained weights; None without such.
        architecture: what `models.describe` says of the network.
        num_views: of how many variations of each training image the frozen stages' outputs are kept; 0 keeps none.
    """

    resolved: Resolved
    recipe: Recipe
    plan: Plan
    measured: pd.DataFrame
    manifest: Manifest
    preprocessing: Preprocessing
    train: Loader
    val: Loader | None
    whole_val: Loader | None
    test: Loader | None
    model: StagedModel
    class_weights: npt.NDArray[np.float64]
    report: Report | None
    weights: WeightsReport | None
    architecture: pd.DataFrame
    num_views: int


def prepare_together(resolved: Resolved, console: Console, group: Group, *, plan: Plan | None = None) -> Prepared:
    """`prepare` in every process of a group: in the first one before the others, which then find what it has decoded.

    Raises:
        UserError: in the first process where that failed: what `prepare` raises; or the others see other data.
        SystemExit: 2, where another process failed.
    """
    if group.size == 1:
        return prepare(resolved, console, plan=plan)
    if not group.is_first:
        if group.wait_for("prepared") != "ok":
            raise SystemExit(2)
        plan = Plan(**json.loads(group.wait_for("plan")))  # what one has measured counts for all
    try:
        prepared = group.agree(lambda: prepare(resolved, console, group, plan=plan)) if not group.is_first else None
        if prepared is None:
            mine = prepare(resolved, console, group, plan=plan)
            group.announce("plan", json.dumps(mine.plan.as_dict()))
            group.announce("prepared")
            prepared = group.agree(lambda: mine)
    except UserError as error:
        if group.is_first:
            group.announce("prepared", str(error))
        raise
    digests = group.gather(prepared.manifest.digest)
    if len(set(digests)) > 1 and group.is_first:
        raise UserError(
            f"the {group.size} processes see different data (digests {', '.join(digests)}); expected the same files "
            "everywhere. Give all machines the same folder."
        )
    return prepared


def prepare(
    resolved: Resolved,
    console: Console,
    group: Group = ALONE,
    *,
    plan: Plan | None = None,
    shelf: Shelf | None = None,
    refits: Manifest | None = None,
) -> Prepared:
    """All of a training but the run; with this plan, or the machine's.

    Args:
        resolved, console: the recipe, and where it is told.
        group: the processes that train together.
        plan: how to compute; None is what the recipe says, or the fastest here.
        shelf: what earlier trainings of this process, as a sweep's worker, have read.
        refits: the images as an earlier training had them split. Now those for validation are trained on, too; what
            preprocessing measures on the training images stays what it was.

    Raises:
        UserError: the data, the device or the model is not as it must be.
    """
    shelf = Shelf() if shelf is None else shelf
    recipe = resolved.recipe
    tell(resolved.notices, console)
    device = plan.device if plan is not None else resolve_device(recipe.train.device, recipe.train.plan)
    _check_processes(recipe, group, device, console)
    recipe, pretrained = _with_weights(recipe, console)
    split_up, report = shelf.get(
        recipe.data.model_dump_json(), lambda: read(recipe, refits, console, with_report=group.is_first)
    )
    manifest = split_up if refits is None else pooled(split_up)
    _enough_for_each(manifest, group)
    size = resolve_image_size(recipe.augment, split_up.part("train"))
    recipe = recipe.replace({"augment.image_size": size})
    seed_all(recipe.train.seed)
    model, loaded = _build(recipe, manifest.classes, pretrained)
    architecture = _checked(model, recipe, size)
    channels = recipe.data.channels
    opened = shelf.get(
        f"{manifest.digest} at {size} px, {recipe.data.model_dump_json()}", lambda: decode(manifest, recipe, console)
    )
    images = of_each(opened, manifest)
    steps = preprocessing(
        recipe.augment,
        size=size,
        channels=channels,
        train_images=of_each(opened, split_up)["train"],
        train=split_up.part("train"),
        weights=normalization_of(pretrained),
    )
    random_steps = training_pipeline(recipe.augment, size=size, channels=channels, mean=steps.mean)
    weights = _class_weights(manifest, recipe)
    chances = weights[manifest.part("train").labels] if recipe.data.balance == "oversample" else None
    train_loader = _loader("train", images["train"], random_steps, manifest, recipe, device, group, chances)
    fixed_steps = evaluation_pipeline(size, steps.eval_crop)
    name: Split = "val" if refits is None else "test"
    whole = shared = _loader(name, images[name], fixed_steps, manifest, recipe, device, ALONE)
    if group.size > 1:
        shared = _loader(name, images[name], fixed_steps, manifest, recipe, device, group)
    val_loader, whole_val, test_loader = (shared, whole, None) if refits is None else (None, None, whole)
    choice = _plan(model, recipe, device, train_loader, steps, group, manifest, plan)
    plan = choice.plan
    recipe = recipe.replace({"train.plan": plan.as_config()})
    _tell_prepared(recipe, manifest, architecture, model, choice, group, console)
    if loaded is not None:
        console.say(loaded.summary)
    num_views = _views(model, recipe, manifest, plan, group, console)
    measured = pd.DataFrame([asdict(row) for row in choice.rows])
    return Prepared(
        resolved, recipe, plan, measured, manifest, steps, train_loader, val_loader, whole_val, test_loader, model,
        weights, report, loaded, architecture, num_views,
    )  # fmt: skip


def _tell_prepared(
    recipe: Recipe,
    manifest: Manifest,
    architecture: pd.DataFrame,
    model: StagedModel,
    choice: Choice,
    group: Group,
    console: Console,
) -> None:
    """What is trained on what, and how."""
    where = f"{choice.plan}{f' in {group.size} processes' if group.size > 1 else ''}"
    console.say(
        f"{len(manifest):,} images of {len(manifest.classes):,} classes ({_counts(manifest)}) at "
        f"{recipe.augment.image_size} px; {recipe.model.family} with {_parameters(model, architecture)} on {where}"
    )
    for line in choice.lines:
        console.say(line)
    tell_skipped(manifest, console)


def _check_processes(recipe: Recipe, group: Group, device: str, console: Console) -> None:
    check_shares(
        group.size,
        batch_size=recipe.train.batch_size,
        sync_batch_norm=recipe.train.sync_batch_norm,
        on_gpu=device == "cuda",
        micro_batch=micro_batch_of(recipe.train),
    )
    if recipe.train.sync_batch_norm and group.size == 1:
        console.say("note: train.sync_batch_norm changes nothing in one process, which has all images of a batch")


def _enough_for_each(manifest: Manifest, group: Group) -> None:
    num_train = manifest.counts()["train"]
    if group.size > 1 and num_train < 2 * group.size:
        raise UserError(
            f"there are {num_train} training images for {group.size} processes; expected two at least for each. Lower "
            "train.processes."
        )


def _counts(manifest: Manifest) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in manifest.counts().items())


def _plan(
    model: StagedModel,
    recipe: Recipe,
    device: str,
    train: Loader,
    steps: Preprocessing,
    group: Group,
    manifest: Manifest,
    given: Plan | None,
) -> Choice:
    """The execution plan: as given, or measured on copies of the model where that pays."""
    if given is not None and not group.is_first:
        return Choice(given)  # as the first process found it
    job = Job(
        model=model,
        optim=recipe.optim,
        preprocessing=steps,
        image_size=steps.image_size,
        batch_size=min(recipe.train.batch_size, train.num_images) // group.size,
        num_classes=len(manifest.classes),
        num_steps=recipe.train.epochs * len(train),
        num_compiles=1 + len(recipe.train.unfreeze),
    )
    return choose_plan(job, device, recipe.train.plan) if given is None else given_plan(job, given)


def _views(model: StagedModel, recipe: Recipe, manifest: Manifest, plan: Plan, group: Group, console: Console) -> int:
    """Of how many variations of each training image the frozen stages' outputs are kept; 0 keeps none."""
    if group.size > 1:
        if isinstance(recipe.train.cache_features, int):
            raise UserError(
                f"train.cache_features is {recipe.train.cache_features}, but features of frozen stages are kept in a "
                f"training by one process only, and there are {group.size}. Set it to off, or train.processes to 1."
            )
        if recipe.train.cache_features == "off" or not group.is_first:
            return 0
    size, channels, counts = recipe.augment.image_size, recipe.data.channels, manifest.counts()
    assert size != "auto"
    train, frozen = recipe.train, model.freeze_depth > 0
    situation = Situation(
        model,
        epochs=min(train.unfreeze, default=train.epochs + 1) - 1,
        varied=recipe.augment.is_varied,
        mixes=bool(recipe.augment.mixup or recipe.augment.cutmix),
        output_bytes=output_bytes(model, plan.precision, channels=channels, image_size=size) if frozen else 0,
        image_bytes=size**2 * channels,
        num_train=counts["train"],
        num_val=counts["val"],
        budget=int(recipe.data.store_budget * 2**30),
    )
    choice = choose_views(train.cache_features, situation)
    if choice.note:
        console.say(f"note: {choice.note}")
    if choice.num_views and group.size > 1:
        console.say(
            f"note: {group.size} processes compute the frozen stages in every epoch; one process (train.processes 1) "
            "would keep what they give of the images (train.cache_features)"
        )
        return 0
    return choice.num_views


def _with_weights(recipe: Recipe, console: Console) -> tuple[Recipe, Pretrained | None]:
    """The pretrained weights, and the recipe with what they decide."""
    weights = open_weights(recipe.model, console)
    for notice in weights.notices if weights is not None else ():
        console.say(f"note: {notice}")
    return with_defaults(recipe, weights, console), weights


def _build(
    recipe: Recipe, classes: tuple[str, ...], pretrained: Pretrained | None
) -> tuple[StagedModel, WeightsReport | None]:
    """The network on the CPU, with the pretrained weights in it where there are such."""
    size, channels = recipe.augment.image_size, recipe.data.channels
    assert size != "auto"
    model = build(recipe.model, num_classes=len(classes), in_channels=channels, image_size=size)
    if pretrained is None:
        return model, None
    return model, load_weights(model, pretrained, config=recipe.model, classes=classes)


def _checked(model: StagedModel, recipe: Recipe, image_size: int) -> pd.DataFrame:
    """The network's description, after it was held against what the recipe asks of it."""
    thaw_schedule(recipe.train.unfreeze, model.stage_names, recipe.model.freeze_depth)
    check_training(recipe.train, recipe.optim, model)
    table = describe(model, image_size=image_size, in_channels=recipe.data.channels)
    check_contracts(recipe.model, table, image_size=image_size)
    return table


def _parameters(model: StagedModel, architecture: pd.DataFrame) -> str:
    total, trained = architecture["parameters"].sum(), architecture["trainable"].sum()
    if not model.freeze_depth:
        return f"{total:,} parameters"
    return (
        f"{total:,} parameters, {trained:,} of them trained ({in_words(model.stage_names, model.freeze_depth)} frozen),"
    )


def _class_weights(manifest: Manifest, recipe: Recipe) -> npt.NDArray[np.float64]:
    counts = np.bincount(manifest.part("train").labels, minlength=len(manifest.classes))
    return class_weights(counts, recipe.data.balance, beta=recipe.data.balance_beta)


def _loader(
    name: Split,
    images: Images,
    pipeline: Pipeline,
    manifest: Manifest,
    recipe: Recipe,
    device: str,
    group: Group,
    chances: npt.NDArray[np.float64] | None = None,
) -> Loader:
    assert recipe.augment.image_size != "auto"
    size, resident = recipe.augment.image_size, recipe.data.device == "cuda"
    num_workers = 0 if resident else resolve_num_workers(recipe.data.num_workers, device=device, processes=group.size)
    batch_bytes = recipe.train.batch_size * size**2 * recipe.data.channels
    loader = Loader(
        images,
        manifest.part(name).labels,
        pipeline,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        shuffle=name == "train",
        chances=chances,
        num_workers=num_workers,
        prefetch=resolve_prefetch(recipe.data.prefetch, num_workers=num_workers, batch_bytes=batch_bytes),
        pin_memory=device == "cuda",
        rank=group.rank,
        processes=group.size,
    )
    if not resident:
        return loader
    if device != "cuda":
        raise UserError(
            f"data.device is cuda, but the training is on the {device}; expected both on one device. Set data.device "
            "to cpu, or train.device to cuda where there is a GPU."
        )
    if name != "train" and not pipeline.keeps(size, size):
        raise UserError(
            "data.device is cuda, but augment.eval_crop cuts the validation images; expected 1. Set it to that, or "
            "data.device to cpu."
        )
    shifts = shifts_of(recipe.augment, image_size=size) if name == "train" else Shifts()
    return ResidentLoader(loader, shifts, device=device, image_size=size)
