"""Kept outputs of frozen stages: they train as images do, and one file is shared by all to whom it belongs."""

import errno
import json
import multiprocessing as mp
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.data import cache
from imgcls.data.augment import AugmentConfig, Preprocessing, evaluation_pipeline, training_pipeline
from imgcls.data.loading import Batches, Loader
from imgcls.models.family import StagedModel
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.tables import Row
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.features import FeatureLoader, Features, NotKept, Subject
from imgcls.training.fit import TrainConfig, fit, seed_all
from imgcls.training.keeper import LAST
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan

COUNT, TRAIN, CLASSES = 26, 17, 2
LABELS = np.arange(COUNT, dtype=np.int64) % CLASSES
NOISE = np.random.default_rng(0).normal(0, 40, (COUNT, 8, 8, 1))
IMAGES = list(np.clip(NOISE + 90 + 60 * LABELS[:, None, None, None], 0, 255).astype(np.uint8))
CONTENTS = [f"{number:032x}" for number in range(COUNT)]
STEPS = Preprocessing(1, 8, (0.5,), (0.25,))
FP32 = Plan("cpu", "fp32")
PLAIN = AugmentConfig(preset="none", horizontal_flip=False)
LIGHT = AugmentConfig(preset="light")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda _file: None)


def network(depth: int = 3, *, seed: int = 0) -> StagedModel:
    """Three blocks with batch norm whose statistics are not those of fresh weights, and a head with dropout."""
    seed_all(seed)
    config = PlainCNNConfig(num_blocks=3, channels=4, dropout=0.3)
    model = build_plaincnn(config, num_classes=CLASSES, in_channels=1, image_size=8)
    model.train()(torch.randn(8, 1, 8, 8))
    model.freeze(depth)
    return model


def train_loader(
    config: AugmentConfig = LIGHT, *, seed: int = 0, batch_size: int = 4, count: int = TRAIN, **fields: Any
) -> Loader:
    varied = training_pipeline(config, size=8, channels=1)
    images, labels = IMAGES[:count], LABELS[:count]
    return Loader(images, labels, varied, batch_size=batch_size, seed=seed, shuffle=True, **fields)


def val_loader() -> Loader:
    return Loader(IMAGES[TRAIN:], LABELS[TRAIN:], evaluation_pipeline(8), batch_size=5)


def subject(loader: Loader, contents: Sequence[str] | None = None, **variation: Any) -> Subject:
    return Subject(loader, CONTENTS[: loader.num_images] if contents is None else contents, variation, "train images")


def features(model: StagedModel, **fields: Any) -> Features:
    given: dict[str, Any] = {
        "architecture": {"family": "plaincnn"}, "preprocessing": STEPS, "plan": FP32, "budget": 10**9
    }  # fmt: skip
    return Features(model, **{**given, **fields})


def cached(model: StagedModel, images: Loader, numbers: Sequence[int], plan: Plan = FP32) -> FeatureLoader:
    kept = features(model, plan=plan)
    return FeatureLoader(model, images, [kept.view(subject(images), number) for number in numbers])


def trained(
    folder: Path, model: StagedModel, train: Batches, val: Batches, *, plan: Plan = FP32, **config: Any
) -> tuple[list[Row], dict[str, Any]]:
    """(rows without times, weights) of a training."""
    folder.mkdir()
    torch.manual_seed(1)
    rows = list(
        fit(
            model, train, val, config=TrainConfig(**{"epochs": 3, **config}), optim=OptimConfig(lr=0.02),
            preprocessing=STEPS, plan=plan, checkpoints=folder,
        )
    )  # fmt: skip
    kept = [{name: value for name, value in row.items() if name not in ("seconds", "images_per_s")} for row in rows]
    return kept, Checkpoint.load(folder / LAST).model


def assert_same_training(
    tmp_path: Path, *, config: AugmentConfig, depth: int, numbers: Sequence[int], plan: Plan = FP32, **more: Any
) -> None:
    """A training with features of these views and one without are the same to the last bit."""
    fields = {name: more.pop(name) for name in ("num_workers", "count") if name in more}
    plain = trained(tmp_path / "plain", network(depth), train_loader(config, **fields), val_loader(), plan=plan, **more)
    model = network(depth)
    train = cached(model, train_loader(config, **fields), numbers, plan)
    kept = features(model, plan=plan)
    val = FeatureLoader(model, val_loader(), [kept.view(subject(val_loader(), CONTENTS[TRAIN:]), 0)])
    found = trained(tmp_path / "kept", model, train, val, plan=plan, **more)
    assert found[0] == plain[0]
    assert all(torch.equal(found[1][name], plain[1][name]) for name in plain[1])


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("plan", [FP32, Plan("cpu", "bf16")], ids=str)
def test_one_view_of_images_that_do_not_vary_trains_to_the_same_bits(tmp_path: Path, depth: int, plan: Plan) -> None:
    # A last batch that is smaller may be rounded in another way: in a view it has other images than in an epoch.
    assert_same_training(tmp_path, config=PLAIN, depth=depth, numbers=[0], plan=plan, count=16)


@pytest.mark.parametrize("depth", [1, 3])
def test_as_many_views_as_epochs_train_to_the_same_bits(tmp_path: Path, depth: int) -> None:
    assert_same_training(tmp_path, config=LIGHT, depth=depth, numbers=[1, 2, 3])


def test_views_are_the_same_with_workers(tmp_path: Path) -> None:
    assert_same_training(tmp_path, config=LIGHT, depth=3, numbers=[1, 2, 3], num_workers=1)


@pytest.mark.parametrize("after", [0, 1])
def test_what_thaws_is_trained_on_images_from_then_on(tmp_path: Path, after: int) -> None:
    assert_same_training(tmp_path, config=LIGHT, depth=3, numbers=[1, 2], epochs=5, unfreeze={3: after})


def test_fewer_views_than_epochs_come_again_in_another_order() -> None:
    model = network()
    loader = cached(model, train_loader(), [1, 2])
    first, third = (list(loader.epoch(epoch)) for epoch in (1, 3))
    rows = [torch.cat([batch.images for batch in epoch]) for epoch in (first, third)]
    assert not torch.equal(rows[0], rows[1])
    both = {tuple(row.tolist()) for epoch in rows for row in epoch}
    assert len(both) == TRAIN  # the 16 of an epoch are of the same 17: one waits for another epoch
    assert [batch.seed for batch in third] == [batch.seed for batch in train_loader().epoch(3)]


def test_an_epoch_can_start_inside() -> None:
    loader = cached(network(), train_loader(), [1])
    whole, rest = list(loader.epoch(2)), list(loader.epoch(2, start=2))
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], rest, strict=True))


def test_images_that_are_drawn_with_replacement_each_have_their_own_outputs() -> None:
    chances = np.array([20.0] + [1.0] * (TRAIN - 1))
    model, drawn = network(), train_loader(PLAIN, chances=chances)
    found = list(cached(model, drawn, [0]).epoch(1))
    expected = list(drawn.epoch(1))
    assert len({tuple(row.tolist()) for batch in expected for row in batch.images.flatten(1)}) < TRAIN - 1
    for batch, images in zip(found, expected, strict=True):
        assert torch.equal(batch.labels, images.labels)
        assert torch.allclose(batch.images, model.frozen_outputs(STEPS.to_input(images.images)), atol=1e-6)


def test_a_view_of_drawn_images_has_them_all_and_is_that_of_images_which_are_not_drawn() -> None:
    chances = np.array([20.0] + [1.0] * (TRAIN - 1))
    model = network()
    drawn, plain = (
        features(model).view(subject(loader), 1) for loader in (train_loader(chances=chances), train_loader())
    )
    rows = list(range(TRAIN))
    assert torch.equal(drawn.gather(rows), plain.gather(rows))
    assert len({tuple(row.tolist()) for row in plain.gather(rows)}) == TRAIN


def test_the_model_takes_images_again_when_an_epoch_is_left() -> None:
    model = network().eval()
    images = STEPS.to_input(torch.from_numpy(np.stack(IMAGES[:4])))
    before = model(images)
    for batch in cached(model, train_loader(), [1]).epoch(1):
        assert batch.is_features
        assert model(batch.images).shape == (4, CLASSES)
        break
    assert torch.equal(model(images), before)


def test_only_what_the_head_takes_is_kept_where_only_the_head_is_trained() -> None:
    sizes = [features(network(depth)).view(subject(train_loader()), 1).num_bytes for depth in (2, 3)]
    assert sizes == [TRAIN * 8 * 2 * 2 * 4, TRAIN * 16 * 4]


def test_a_second_training_finds_what_the_first_computed() -> None:
    first, second = features(network()), features(network())
    rows = list(range(TRAIN))
    computed = first.view(subject(train_loader()), 1).gather(rows)
    assert torch.equal(second.view(subject(train_loader()), 1).gather(rows), computed)
    assert (first.num_computed, second.num_computed) == (1, 0)
    [entry] = cache.entries("features")
    assert entry.about == "plaincnn up to block3, features of train images, view 1"


def test_the_heads_weights_do_not_count() -> None:
    model = network()
    key = features(model).key(subject(train_loader()), 1)
    torch.nn.init.zeros_(next(model.head.parameters()))
    assert features(model).key(subject(train_loader()), 1) == key


def _other_weight(model: StagedModel) -> None:
    with torch.no_grad():
        next(model.stages["block3"].parameters()).flatten()[0].add_(1e-3)


def _other_statistics(model: StagedModel) -> None:
    next(b for name, b in model.stages["block1"].named_buffers() if name.endswith("running_var")).mul_(1.01)


def _other_form(model: StagedModel) -> None:
    model.stages["block2"] = torch.nn.Sequential(model.stages["block2"], torch.nn.ReLU())


@pytest.mark.parametrize("change", [_other_weight, _other_statistics, _other_form, lambda model: model.freeze(2)])
def test_another_backbone_has_another_key(change: Callable[[StagedModel], None]) -> None:
    model = network()
    key = features(model).key(subject(train_loader()), 1)
    change(model)
    assert features(model).key(subject(train_loader()), 1) != key


def test_whatever_else_changes_the_outputs_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader = network(), train_loader()
    base = features(model)
    keys = [
        base.key(subject(loader, preset="light", seed=0), 1),
        base.key(subject(loader, preset="light", seed=0), 2),
        base.key(subject(loader, preset="light", seed=1), 1),
        base.key(subject(loader, preset="standard", seed=0), 1),
        base.key(subject(loader, CONTENTS[:TRAIN][::-1], preset="light", seed=0), 1),
        base.key(subject(loader, ["f" * 32, *CONTENTS[1:TRAIN]], preset="light", seed=0), 1),
        base.key(subject(train_loader(batch_size=5), preset="light", seed=0), 1),
        features(model, preprocessing=replace(STEPS, mean=(0.4,))).key(subject(loader, preset="light", seed=0), 1),
        features(model, plan=Plan("cpu", "bf16")).key(subject(loader, preset="light", seed=0), 1),
        features(model, architecture={"family": "other"}).key(subject(loader, preset="light", seed=0), 1),
    ]
    monkeypatch.setattr("imgcls.training.features.version", lambda name: f"{name} of tomorrow")
    keys.append(base.key(subject(loader, preset="light", seed=0), 1))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["outputs.bin", "outputs.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_a_damaged_view_is_computed_anew_and_that_is_said(name: str, damage: Callable[[Path], object]) -> None:
    rows = list(range(TRAIN))
    before = features(network()).view(subject(train_loader()), 1).gather(rows)
    [entry] = cache.entries("features")
    damage(entry.path / name)
    said: list[str] = []
    again = features(network(), say=said.append)
    assert torch.equal(again.view(subject(train_loader()), 1).gather(rows), before)
    assert again.num_computed == 1
    assert said == [f"the features of train images, view 1 in {entry.path} were damaged; they are computed anew"]


def test_a_form_that_is_no_form_is_damage() -> None:
    features(network()).view(subject(train_loader()), 1)
    [entry] = cache.entries("features")
    good = {"shape": [TRAIN, 16], "order": [0, 1], "dtype": "float32"}
    assert json.loads((entry.path / "outputs.json").read_text()) == good
    bad: list[Any] = [[], {}, *({**good, name: value} for name, value in (
        ("shape", 3), ("shape", []), ("shape", [TRAIN + 1, 16]), ("order", [0, 0]), ("order", None), ("dtype", "str")
    ))]  # fmt: skip
    for form in bad:
        (entry.path / "outputs.json").write_text(json.dumps(form))
        again = features(network())
        again.view(subject(train_loader()), 1)
        assert again.num_computed == 1


def test_views_used_least_recently_make_room_but_not_those_of_this_training() -> None:
    size = TRAIN * 16 * 4
    old = features(network(seed=1))
    old.view(subject(train_loader()), 1)
    kept = features(network(), budget=int(2.9 * size))
    first = kept.view(subject(train_loader()), 1)
    second = kept.view(subject(train_loader()), 2)
    names = {entry.key for entry in cache.entries("features")}
    assert names == {kept.key(subject(train_loader()), number) for number in (1, 2)}
    with pytest.raises(NotKept, match=r"^they take 1\.1 KiB, more than data\.store_budget leaves, "):
        kept.view(subject(train_loader()), 3)
    assert {entry.key for entry in cache.entries("features")} == names
    for entry in cache.entries("features"):
        cache.remove(entry)
    assert not torch.equal(first.gather([0]), second.gather([0]))  # still mapped


def test_a_disk_without_room_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=2 * 2**30 + 100))
    with pytest.raises(NotKept, match=r"^they take 1\.1 KiB, more than what its disk has to spare, 0\.1 KiB$"):
        features(network()).view(subject(train_loader()), 1)
    assert cache.entries("features") == []


def test_nothing_is_left_of_a_view_that_was_interrupted() -> None:
    def progress(_what: str, done: int, _total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(network(), progress=progress).view(subject(train_loader()), 1)
    assert [path.suffix for path in (cache.cache_dir() / "features").iterdir() if path.is_dir()] == []
    assert features(network()).view(subject(train_loader()), 1).num_bytes == TRAIN * 16 * 4


def test_a_disk_that_fills_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Features, _needed: int, _key: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Features, "_make_room", full)
    with pytest.raises(OSError, match="No space left"):
        features(network()).view(subject(train_loader()), 1)
    assert cache.entries("features") == []
    assert cache.sweep() == 0


def test_images_without_content_hashes_are_not_kept() -> None:
    with pytest.raises(NotKept, match="have no content hashes"):
        features(network()).view(subject(train_loader(), [""] * TRAIN), 1)


def test_progress_counts_the_images() -> None:
    told: list[tuple[str, int, int]] = []
    features(network(), progress=lambda *step: told.append(step)).view(subject(train_loader()), 2)
    assert told[-1] == ("features of train images, view 2", TRAIN, TRAIN)
    assert [done for _, done, _ in told] == [4, 8, 12, 16, 17]


def _compute_in_turn(start: Any, results: Any) -> None:
    torch.set_num_threads(1)
    kept = features(network(), say=lambda _text: None)
    start.wait()
    view = kept.view(subject(train_loader()), 1)
    results.put((kept.num_computed, view.gather(list(range(TRAIN))).numpy().tobytes()))


@pytest.mark.slow
def test_of_two_processes_at_once_one_computes_and_both_have_it() -> None:
    context = mp.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=_compute_in_turn, args=(start, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.set()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(count for count, _ in found) == [0, 1]
    assert found[0][1] == found[1][1]
