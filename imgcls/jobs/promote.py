"""The verb `promote`: a run's model becomes the one that an alias names, where its recipe's gates let it through."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imgcls.errors import UserError
from imgcls.evaluation.gates import Verdict
from imgcls.jobs.console import Console
from imgcls.jobs.evaluation_data import NO_USE, Subject, find_subject, seen_by
from imgcls.jobs.open_model import Opened, open_model
from imgcls.jobs.promote_evidence import Evidence, gather, hold, log_evidence, tell
from imgcls.jobs.record import before_run, common_tags, log_data, report_end, within_run
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.surroundings import environment
from imgcls.jobs.test_reading import count_read
from imgcls.recipe import Recipe, Resolved, diff, resolve
from imgcls.tracking import run as tracking
from imgcls.tracking.model_files import digest_of_run
from imgcls.tracking.promotion import move_alias
from imgcls.tracking.read import FoundRun, read_run
from imgcls.tracking.registry import CHAMPION, Version, check_alias, check_name, find_alias, record_verdict, register
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.store import Store, connect
from imgcls.training.plan import Device, PlanConfig, resolve_device

Outcome = Literal["promoted", "forced", "refused", "champion"]
SHOWS = "the report and the gates' figures"
VERDICT_TAG = "imgcls.verdict"
_OWN = ("promote.", "train.output_dir")
"""Fields that are not find_subject's."""
_REPEATED = ("promote.", "data.", "train.device")
"""Fields that stand in the command that does it again, where they are not the run's own."""


@dataclass(frozen=True)
class PromoteResult:
    """What a promotion gives.

    Attributes:
        outcome: `promoted`; `forced`, against the gates; `refused`; or `champion`, where it is that already.
        name: the registered model.
        alias: the alias that it was to get.
        version: the candidate's version.
        candidate_run: the run that made it.
        replaced: the version that the alias named before; None where there was none, or it was not moved.
        run_id: the promotion's own run; None where the candidate is the champion already.
        verdict: what the gates say; None in the same case.
        reads: how often the test set has been read, this time included; None where that could not be counted.
        unsent: a folder with what the tracking server could not take, or None where all is complete.
    """

    outcome: Outcome
    name: str
    alias: str
    version: str
    candidate_run: str
    replaced: str | None = None
    run_id: str | None = None
    verdict: Verdict | None = None
    reads: int | None = None
    unsent: Path | None = None


def promote(
    run: str,
    *,
    name: str,
    alias: str = CHAMPION,
    force: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    device: Device = "auto",
    quiet: bool = False,
) -> PromoteResult:
    """Register a run's model, and let the alias name it where it passes the gates of its recipe's `promote` section.

    It is held against the version that the alias names now, on the test images of the run that made the candidate. A
    candidate that is refused stays a version, tagged as rejected with the reason. What was found is an MLflow run.

    Args:
        run: the id of the run that made the model (also runs:/<id>).
        name: the registered model; made where there is none.
        alias: such as `champion`.
        force: why the alias is to move whatever the gates say; None: it is not.
        overrides: dotted field names to values: of `promote`, `data` (where images were moved), train.output_dir.
        texts: the same with values as typed on a command line, read as YAML.
        device: where to compute and to measure the latency.
        quiet: print nothing.

    Raises:
        UserError: there is no such run, it has no model, its test images are not there or are other ones now, the alias
            was moved meanwhile, or the store fails. The alias is where it was then, or where it goes; the same call
            again finishes it.
        KeyboardInterrupt: Ctrl-C; the run is KILLED and the alias is not moved.
    """
    try:
        with Signals() as signals:
            return run_promote(
                run, Console(quiet=quiet), signals, name=name, alias=alias, force=force, texts=texts,
                overrides=overrides, device=device,
            )  # fmt: skip
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


@dataclass(frozen=True)
class _Task:
    """What is to be decided.

    Attributes:
        name, alias, force: see `promote`.
        candidate: the model.
        champion: the version that the alias names now; None: there is none.
        rival: its model; None: there is none, or it cannot be compared.
        incomparable: why the champion that there is cannot be compared; "" where it can.
        subject: the test images.
        resolved: the candidate's recipe, with the gates.
        device: where to compute.
    """

    name: str
    alias: str
    force: str | None
    candidate: Opened
    champion: Version | None
    rival: Opened | None
    incomparable: str
    subject: Subject
    resolved: Resolved
    device: str

    @property
    def repeat(self) -> str:
        """The command that does it."""
        words = ["imgcls", "promote", "--run", str(self.candidate.run_id), "--name", self.name]
        if self.alias != CHAMPION:
            words += ["--alias", self.alias]
        recipe = self.resolved.recipe
        there = recipe.flat()
        for field, _, value in diff(self.candidate.recipe, recipe):
            if field.startswith(_REPEATED) and field not in NO_USE and field in there:
                words += [f"--{field}", json.dumps(value, ensure_ascii=False)]
        return shlex.join([*words, *(["--force", self.force] if self.force else [])])

    @property
    def tags(self) -> dict[str, str]:
        found = {
            "imgcls.promote.name": self.name,
            "imgcls.promote.alias": self.alias,
            "imgcls.promote.candidate_run": str(self.candidate.run_id),
            "imgcls.promote.candidate_model": str(self.candidate.model_id),
        }
        if self.champion is not None:
            found["imgcls.promote.champion_run"] = self.champion.run_id
            found["imgcls.promote.champion_version"] = self.champion.version
        return found


def run_promote(
    run: str,
    console: Console,
    signals: Signals,
    *,
    name: str,
    alias: str = CHAMPION,
    force: str | None = None,
    texts: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: Device = "auto",
) -> PromoteResult:
    """`promote` with its surroundings given."""
    with before_run(console):
        store = connect()
        candidate, champion = _candidate(store, run, name, alias, force, console)
        if champion is not None and champion.model_id == candidate.model_id:
            return _is_champion(store, champion, candidate, alias, console)
        task = _task(candidate, champion, name, alias, force, console, dict(texts or {}), dict(overrides or {}), device)
        signals.hold()
        tracked = _start(task)
    with within_run(tracked, console, signals, shows=SHOWS):
        _describe(tracked, task)
        reads = count_read(tracked, task.subject.whole, console)
        evidence = _evidence(store, tracked, task, console)
        verdict = hold(evidence, task.resolved.recipe.promote)
        log_evidence(tracked, evidence, verdict, title=_title(task, verdict))
        tell(evidence, verdict, console)
        if tracked.unsent is not None:
            raise UserError(
                f"the report could not be sent to {tracked.store.uri}, and no model is promoted without one. Nothing "
                "was moved; see that the store answers, and run it again."
            )
        signals.raise_if_requested()
        signals.hold()  # from here to the run's end nothing may be left half-way
        version, outcome = _decide(store, task, evidence, verdict)
        tracked.set_tags({VERDICT_TAG: outcome, "imgcls.promote.candidate_version": version.version})
        headline = _headline(task, version, outcome, verdict)
        tracked.describe(headline)
    report_end(tracked, console, headline, shows=SHOWS)
    return PromoteResult(
        outcome=outcome,
        name=name,
        alias=alias,
        version=version.version,
        candidate_run=version.run_id,
        replaced=task.champion.version if task.champion is not None and outcome != "refused" else None,
        run_id=tracked.run_id,
        verdict=verdict,
        reads=reads,
        unsent=tracked.unsent,
    )


def _candidate(
    store: Store, run: str, name: str, alias: str, force: str | None, console: Console
) -> tuple[Opened, Version | None]:
    """The run's model, and the version that the alias names now."""
    if force is not None and not force.strip():
        raise UserError("--force needs a reason, which the history keeps; found an empty one. Say why.")
    check_name(name)
    check_alias(alias)
    found = read_run(store, run)
    champion = find_alias(store, name, alias)
    return open_model(found.run_id, console), champion


def _is_champion(store: Store, champion: Version, candidate: Opened, alias: str, console: Console) -> PromoteResult:
    """Nothing is to be decided; what an earlier promotion that was cut off has left is finished."""
    move_alias(store, champion.name, alias, champion.version, expected=champion.version)
    console.say(f"version {champion.version} of {champion.name}, the model of this run, is the {alias} already")
    return PromoteResult("champion", champion.name, alias, champion.version, str(candidate.run_id))


def _task(
    candidate: Opened,
    champion: Version | None,
    name: str,
    alias: str,
    force: str | None,
    console: Console,
    texts: dict[str, str],
    overrides: dict[str, Any],
    device: Device,
) -> _Task:
    """Everything that can be wrong before there is a run."""
    own_texts = {key: texts.pop(key) for key in list(texts) if key.startswith(_OWN)}
    own = {key: overrides.pop(key) for key in list(overrides) if key.startswith(_OWN)}
    resolved = resolve(candidate.recipe.as_dict(), own, texts=own_texts)
    if "train.device" in {*texts, *overrides}:
        device = resolve(candidate.recipe.as_dict(), overrides, texts=texts).recipe.train.device
    where = resolve_device(device, PlanConfig())
    rival, incomparable = (None, "") if champion is None else _rival(champion, candidate, force, console)
    subject = find_subject([candidate], console, texts=texts, overrides=overrides, part="test", others=False)
    recipe = _with_gates(subject.recipe, resolved.recipe)
    about = Resolved(recipe, _recipe_name(candidate), resolved.notices)
    return _Task(name, alias, force, candidate, champion, rival, incomparable, subject, about, where)


def _with_gates(recipe: Recipe, given: Recipe) -> Recipe:
    gates = {f"promote.{field}": value for field, value in given.promote.model_dump(mode="json").items()}
    return recipe.replace({**gates, "train.output_dir": given.train.output_dir})


def _recipe_name(candidate: Opened) -> str:
    found: FoundRun = read_run(connect(), str(candidate.run_id))
    return found.tags.get("imgcls.recipe", "recipe")


def _rival(champion: Version, candidate: Opened, force: str | None, console: Console) -> tuple[Opened | None, str]:
    """The champion's model, or why it cannot be compared.

    One that cannot be opened says nothing against the candidate: it is an error, unless the promotion is forced.
    """
    try:
        rival = open_model(champion.uri, console)
    except UserError as error:
        if force is None:
            raise UserError(
                f"the champion, version {champion.version} of {champion.name}, cannot be opened: {error} Mend that, or "
                "replace it without a comparison (--force REASON)."
            ) from error
        return None, f"the champion cannot be opened: {error}"
    lacks = sorted({*rival.model.classes} - {*candidate.model.classes})
    more = sorted({*candidate.model.classes} - {*rival.model.classes})
    if lacks or more:
        parts = [f"the candidate does not know {_some(lacks)}"] * bool(lacks)
        parts += [f"the champion does not know {_some(more)}"] * bool(more)
        return None, f"their classes differ: {', '.join(parts)}"
    return rival, ""


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _start(task: _Task) -> TrackedRun:
    tags = {**common_tags("promote", task.resolved, task.subject.whole), **task.tags}
    if task.force is not None:
        tags["imgcls.promote.force"] = task.force
    folder = Path(task.resolved.recipe.train.output_dir)
    return tracking.start(folder, name=f"promote-{task.name}-{str(task.candidate.run_id)[:8]}", tags=tags)


def _describe(run: TrackedRun, task: _Task) -> None:
    """Log what is known before anything is measured."""
    recipe = task.resolved.recipe
    params = {field: value for field, value in recipe.flat().items() if field.startswith("promote.")}
    about = {"run": task.candidate.run_id, "name": task.name, "alias": task.alias}
    run.log_params({**params, **{f"promote.{key}": value for key, value in about.items()}})
    head = f"# The recipe of the candidate, with its gates.\n# Repeat it with: {task.repeat}\n"
    run.log_text(head + recipe.to_yaml(), "recipe.yaml")
    run.log_text(environment(), "environment.txt")
    log_data(run, recipe.data, task.subject.whole, context="promotion")


def _evidence(store: Store, run: TrackedRun, task: _Task, console: Console) -> Evidence:
    champion = task.champion
    same = seen = None
    if champion is not None:
        digest = digest_of_run(store, champion.run_id) if champion.run_id else None
        same = None if digest is None else digest == task.subject.whole.digest
    if task.rival is not None:
        seen = seen_by([task.rival], task.subject.manifest)
    return gather(
        store, run, task.candidate, task.rival, champion, task.subject.manifest, console,
        device=task.device, incomparable=task.incomparable, same_data=same, seen=seen or 0,
    )  # fmt: skip


def _title(task: _Task, verdict: Verdict) -> str:
    against = "the first" if task.champion is None else f"held against version {task.champion.version}"
    forced = ", forced" if task.force is not None and not verdict.passed else ""
    return f"{task.name}@{task.alias}: the run {task.candidate.run_id}, {against}{forced}"


def _decide(store: Store, task: _Task, evidence: Evidence, verdict: Verdict) -> tuple[Version, Outcome]:
    """Register the candidate, write the verdict on it, and move the alias where it may; in this order."""
    forced = task.force is not None and not verdict.passed
    version = register(store, str(task.candidate.run_id), task.name)
    record_verdict(store, version, verdict, against=task.champion, forced=forced)
    if not verdict.passed and not forced:
        return version, "refused"
    before = None if task.champion is None else task.champion.version
    why = f"{evidence.figures_text}; {verdict.reason}"
    if forced:
        why = f"{task.force} (against the gates: {verdict.reason})"
    kind: Literal["promotion", "forced"] = "forced" if forced else "promotion"
    move_alias(store, task.name, task.alias, version.version, expected=before, reason=why, kind=kind)
    return version, "forced" if forced else "promoted"


def _headline(task: _Task, version: Version, outcome: Outcome, verdict: Verdict) -> str:
    this = f"version {version.version} of {task.name}"
    if outcome == "refused":
        still = f"; version {task.champion.version} stays the {task.alias}" if task.champion is not None else ""
        return f"refused: {verdict.reason}. It is {this}, tagged as rejected{still}"
    was = f", in the place of version {task.champion.version}" if task.champion is not None else ""
    return f"{outcome}: {this} is the {task.alias} now{was}    models:/{task.name}@{task.alias}"
