"""Going on with a training that was interrupted: its recipe, its newest checkpoint, and whether they still fit."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared
from imgcls.recipe import Recipe, Resolved, diff, resolve
from imgcls.tables import Manifest
from imgcls.tracking import resume as tracking
from imgcls.tracking.resume import Interrupted
from imgcls.tracking.run import TrackedRun
from imgcls.training.checkpoint import Checkpoint, newest
from imgcls.training.keeper import BEST, LAST, REWIND, newest_in
from imgcls.training.plan import Plan

FREE = (
    "data.check", "data.num_workers", "data.prefetch", "data.root", "data.store_budget", "train.checkpoint_minutes",
    "train.device", "train.output_dir",
)  # fmt: skip
"""Fields that another value may have when a training goes on: they do not change what it gives. (Data that were moved
are known by their digest; another device computes alike but for the last digits, which is told.)"""
UPLOAD_MINUTES = 10.0
UPLOAD_SHARE = 0.05


@dataclass(frozen=True)
class Resumption:
    """What a training goes on from.

    Attributes:
        found: its run.
        resolved: its recipe, with what was overridden now.
        checkpoint: its newest state.
        folder: where its checkpoints are, which the run's work folder gets.
        work: the run's work folder from now on.
    """

    found: Interrupted
    resolved: Resolved
    checkpoint: Checkpoint
    folder: Path
    work: Path

    @property
    def plan(self) -> Plan | None:
        """How the run has computed so far; None where that is not to be had here."""
        plan = Plan(**self.checkpoint.plan)
        return plan if _is_device(plan.device, self.resolved.recipe) else None

    def reattach(self) -> TrackedRun:
        """The run, RUNNING again, with the checkpoints in its work folder."""
        run = tracking.reattach(self.found, self.work)
        target = run.file(f"{tracking.CHECKPOINTS}/{LAST}").parent
        if target != self.folder:
            for path in self.folder.glob("*.pt"):
                shutil.copyfile(path, target / path.name)
        return run


def find(
    target: str, overrides: Mapping[str, Any] | None = None, *, texts: Mapping[str, str] | None = None
) -> Resumption:
    """What there is of the run to go on with.

    Args:
        target: a run id, a run's work folder, or a checkpoint in it.
        overrides, texts: other values for fields that do not change what a training gives; see `resolve`.

    Raises:
        UserError: there is no such run, it is finished, deleted or in work, it has no checkpoint that can be read, or a
            field that decides what the training gives is overridden.
    """
    found = tracking.find(target)
    resolved = _recipe(found, overrides, texts)
    work = _work_folder(found, resolved.recipe, {**(overrides or {}), **(texts or {})})
    folder = tracking.local_checkpoints(found)
    if found.file is not None:
        checkpoint = Checkpoint.load(found.file)
        if checkpoint.averaged:
            raise UserError(
                f"{found.file} holds averaged weights (train.averaging is {resolved.recipe.train.averaging}), from "
                f"which no training goes on; expected the weights that were trained. {LAST} has them: imgcls train "
                f"--resume {found.run_id}"
            )
        assert folder is not None
        return Resumption(found, _planned(resolved, checkpoint), checkpoint, folder, work)
    last = None if folder is None else newest([folder / LAST])
    if folder is None or last is None or (last[1].rows and not (folder / BEST).exists()):
        folder = folder or work / "artifacts" / tracking.CHECKPOINTS
        tracking.download_checkpoints(found, folder, damaged=(LAST,) if last is None else ())
    taken = newest_in(folder)
    if taken is None:
        averaged = " but averages of weights, from which no training goes on" if (folder / BEST).exists() else ""
        raise UserError(
            f"the run {found.run_id} has no checkpoint that can be read{averaged}, neither in {folder} nor among its "
            "artifacts: it ended before its training began, or they were removed or damaged. Start it again: imgcls "
            "train RECIPE"
        )
    return Resumption(found, _planned(resolved, taken[1]), taken[1], folder, work)


def _is_device(device: str, recipe: Recipe) -> bool:
    """Whether the training goes on where it was."""
    return recipe.train.device in ("auto", device) and (device == "cpu" or torch.cuda.is_available())


def _planned(resolved: Resolved, checkpoint: Checkpoint) -> Resolved:
    """The recipe, with this machine's own plan where the training goes on on another device than it was on.

    Its `train.plan` is what was chosen there, which this device may not have (fp16 on a CPU) or be slow with.
    """
    was = Plan(**checkpoint.plan)
    if _is_device(was.device, resolved.recipe):
        return resolved
    notice = f"the run was computed on {was}, a plan of another device; a plan for this one is chosen anew"
    return Resolved(resolved.recipe.replace({"train.plan": "auto"}), resolved.name, (*resolved.notices, notice))


def _recipe(found: Interrupted, overrides: Mapping[str, Any] | None, texts: Mapping[str, str] | None) -> Resolved:
    """The run's recipe with the overrides, of which none may decide what the training gives."""
    with tracking.artifact_file(found, "recipe.yaml") as path:
        own = resolve(path)
        resolved = resolve(path, overrides, texts=texts)
    changed = [(name, old, new) for name, old, new in diff(own.recipe, resolved.recipe) if name not in FREE]
    if changed:
        name, old, new = changed[0]
        advice = f"Start a new run for that: imgcls train RECIPE --{name} {json.dumps(new)}"
        if name == "train.epochs":
            advice = (
                "The learning rate's schedule follows from it. Finish this run, then train its network further in a "
                f"new one: imgcls train RECIPE --model.weights runs:/{found.run_id}"
            )
        raise UserError(
            f"{name}: found {json.dumps(new)} to go on with, but the run {found.run_id} has {json.dumps(old)}, and "
            f"what it gives depends on it. {advice}. Only these may be other: {', '.join(FREE)}."
        )
    return Resolved(resolved.recipe, found.tags.get("imgcls.recipe", own.name), resolved.notices)


def _work_folder(found: Interrupted, recipe: Recipe, given: Mapping[str, Any]) -> Path:
    """Where the run was, unless it is to be elsewhere now."""
    if found.folder is not None and "train.output_dir" not in given:
        return found.folder
    return (Path(recipe.train.output_dir) / found.run_id).absolute()


def about(prepared: Prepared) -> dict[str, str]:
    """What a checkpoint says of its training, for telling whether another may go on from it."""
    return {
        "data": prepared.manifest.digest,
        "split": _split_digest(prepared.manifest),
        "recipe": json.dumps(prepared.recipe.flat()),
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
    }


def check(resumption: Resumption, prepared: Prepared, console: Console) -> None:
    """Hold what was prepared against what the checkpoint is of; tells what may change the last digits.

    Raises:
        UserError: the images, their split or the recipe are other ones.
    """
    was, now = resumption.checkpoint.about, about(prepared)
    run_id = resumption.found.run_id
    if was["data"] != now["data"]:
        raise UserError(
            f"the images are not those of the run {run_id}: found the digest {now['data']} in "
            f"{prepared.recipe.data.origin}, expected {was['data']}. Put back what was changed, or name the folder "
            "with the images of then (--data.root); for other images start a new run."
        )
    if was["split"] != now["split"]:
        raise UserError(
            f"the images are those of the run {run_id}, but in another order or split: found {now['split']}, expected "
            f"{was['split']}. Put back the split's table or the code of then; else start a new run."
        )
    before, after = json.loads(was["recipe"]), json.loads(now["recipe"])
    free = {*FREE, "train.plan"}  # another device has another plan, which is told below
    other = [name for name in {**before, **after} if name not in free and before.get(name) != after.get(name)]
    if other:
        name = other[0]
        raise UserError(
            f"the recipe is not that of the checkpoint: {name} is {json.dumps(after.get(name))}, expected "
            f"{json.dumps(before.get(name))}. Put back the run's recipe.yaml; for another recipe start a new run."
        )
    plan = Plan(**resumption.checkpoint.plan)
    for what, old, new in (
        ("computed on", str(plan), str(prepared.plan)),
        ("computed with torch", was["torch"], now["torch"]),
        ("computed with threads:", was["threads"], now["threads"]),
    ):
        if old != new:
            console.say(f"note: the run was {what} {old}, now {new}; figures may differ in their last digits")


def _split_digest(manifest: Manifest) -> str:
    """Of the images' order, labels and splits, which decide what a batch holds."""
    table = manifest.frame[["id", "label", "split"]].to_csv(index=False)
    return hashlib.blake2b(table.encode(), digest_size=16).hexdigest()


class Uploads:
    """Sends checkpoints to the run while it is trained.

    On this machine the work folder always has the newest one, so that copies on the server are for the loss of the
    machine. Each costs a transfer that training waits for: they are sent at most every 10 minutes, and so seldom that
    this takes at most a twentieth of the time; and whatever there is is sent at the end, by a stop or an error too.
    `best.pt` goes before `last.pt`, which so never is of a later epoch than the best one that is there.

    Args:
        run: the run.
        clock: seconds.
    """

    def __init__(self, run: TrackedRun, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._next = clock() + 60 * UPLOAD_MINUTES
        self._sent: dict[str, int] = {}

    def now_and_then(self) -> None:
        """Send what is new, where it is time."""
        begin = self._clock()
        if begin < self._next:
            return
        for name in (BEST, REWIND, LAST):
            path = self._run.file(f"{tracking.CHECKPOINTS}/{name}")
            if path.exists() and self._sent.get(name) != path.stat().st_mtime_ns:
                self._sent[name] = path.stat().st_mtime_ns
                self._run.log_file(f"{tracking.CHECKPOINTS}/{name}")
        took = self._clock() - begin
        self._next = begin + took + max(60 * UPLOAD_MINUTES, took / UPLOAD_SHARE)
