"""MLflow's model registry: versions of a name made of runs' models, their aliases, and the verdicts on them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from imgcls.errors import UserError
from imgcls.evaluation.gates import Verdict
from imgcls.evaluation.markdown import value_text
from imgcls.plugins import nearest, unknown_name
from imgcls.tracking.model import MODEL_NAME, model_of_run
from imgcls.tracking.read import read_run
from imgcls.tracking.registry_claim import asking, claimed
from imgcls.tracking.store import Store

CHAMPION = "champion"
PROMOTION_TAG = "promotion"
"""On a version: the alias that it has (`champion`), `replaced` after that, or `rejected`."""
GATE_TAG = f"{PROMOTION_TAG}.gate."
MOST_TEXT = 5000
"""Characters of a tag."""
_PAGE = 200


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: the registered model.
        version: its number, as text.
        run_id: the run that made the model; "" where none did.
        model_id: the LoggedModel; "" where it was made of something else.
        created: when, in UTC.
        tags: name -> text; `promotion...` are those of this module.
        aliases: those that name this version.
    """

    name: str
    version: str
    run_id: str
    model_id: str
    created: datetime
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """The address that always means this version."""
        return f"models:/{self.name}/{self.version}"


def register(store: Store, run_id: str, name: str) -> Version:
    """The version of `name` that is the run's model; made where there is none, so calling it again changes nothing.

    Raises:
        UserError: the run has no complete model, MLflow refuses the name, or the store fails.
    """
    run = read_run(store, run_id)
    with asking(store, f"looking for the model of the run {run.run_id}"):
        model = model_of_run(store, run.run_id, MODEL_NAME)
    _create(store, name)
    with claimed(store, name), asking(store, f"making a version of {name!r}"):
        known = [version for version in list_versions(store, name) if version.model_id == model.model_id]
        if known:
            return known[0]
        source = f"models:/{model.model_id}"
        store.client.create_model_version(name, source, run.run_id, model_id=model.model_id, await_creation_for=None)
        return next(version for version in list_versions(store, name) if version.model_id == model.model_id)


def _create(store: Store, name: str) -> None:
    """Make the registered model where it is not there."""
    check_name(name)
    try:
        with store.writing():
            store.client.create_registered_model(name)
    except Exception as error:
        code = getattr(error, "error_code", "")
        if code == "RESOURCE_ALREADY_EXISTS":
            return
        if code == "INVALID_PARAMETER_VALUE":
            raise _refused(name) from error
        with asking(store, f"making the registered model {name!r}"):
            raise


def check_name(name: str) -> None:
    """Whether a registered model can be called so.

    Raises:
        UserError: it cannot.
    """
    if '"' in name and "'" in name:
        raise UserError(f"found the model name {name!r}; expected one without both kinds of quotes.")
    if not name.strip() or {"/", ":"} & {*name}:
        raise _refused(name)


def _refused(name: str) -> UserError:
    return UserError(
        f"MLflow refuses the model name {name!r}; expected one that is not empty and has no '/' and no ':', "
        "such as animals."
    )


def versions(store: Store, name: str) -> list[Version]:
    """All versions of a registered model, the oldest first.

    Raises:
        UserError: there is no such registered model, or the store fails.
    """
    registered_model(store, name)
    with asking(store, f"listing the versions of {name!r}"):
        return list_versions(store, name)


def list_versions(store: Store, name: str) -> list[Version]:
    """As `versions`, with MLflow's own errors."""
    aliases = aliases_of(store.client.get_registered_model(name))
    quote = '"' if "'" in name else "'"
    found, token = [], None
    while True:
        page = store.client.search_model_versions(f"name = {quote}{name}{quote}", max_results=_PAGE, page_token=token)
        found += [_version(entry, aliases) for entry in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def _version(entry: Any, aliases: Mapping[str, str]) -> Version:
    number = str(entry.version)
    model_id = re.search(r"m-[0-9a-f]{32}", f"{getattr(entry, 'model_id', None) or ''} {entry.source or ''}")
    return Version(
        name=entry.name,
        version=number,
        run_id=entry.run_id or "",
        model_id=model_id[0] if model_id else "",
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        tags=dict(entry.tags),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
    )


def registered_model(store: Store, name: str) -> Any:
    """MLflow's registered model.

    Raises:
        UserError: there is none; the message lists those that there are.
    """
    try:
        return store.client.get_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            with asking(store, f"reading the registered model {name!r}"):
                raise
        with asking(store, "listing the registered models"):
            known = [model.name for model in store.client.search_registered_models(max_results=1000)]
        if not known:
            raise UserError(
                f"there is no registered model {name!r}, nor any other, in {store.uri}. Promote a run first (imgcls "
                "promote), or set MLFLOW_TRACKING_URI to the store that it is in."
            ) from error
        raise unknown_name("registered model", name, known) from error


def aliases_of(model: Any) -> dict[str, str]:
    """Alias -> version of MLflow's registered model."""
    return {str(alias): str(version) for alias, version in dict(model.aliases).items()}


def find_alias(store: Store, name: str, alias: str = CHAMPION) -> Version | None:
    """The version that an alias names; None where there is no such alias, or no such registered model yet.

    Raises:
        UserError: the alias is one that cannot be, or the store fails.
    """
    check_alias(alias)
    with asking(store, f"reading the alias {alias} of {name!r}"):
        try:
            model = store.client.get_registered_model(name)
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return _at(store, name, aliases_of(model), alias)


def _at(store: Store, name: str, aliases: Mapping[str, str], alias: str) -> Version | None:
    if alias not in aliases:
        return None
    return _version(store.client.get_model_version(name, aliases[alias]), aliases)


def read_alias(store: Store, name: str, alias: str = CHAMPION) -> Version:
    """The version that an alias names.

    Raises:
        UserError: there is no such registered model or alias (which there are), or the store fails.
    """
    check_alias(alias)
    aliases = aliases_of(registered_model(store, name))
    if alias not in aliases:
        raise no_alias(name, alias, aliases)
    with asking(store, f"reading the alias {alias} of {name!r}"):
        return _version(store.client.get_model_version(name, aliases[alias]), aliases)


def no_alias(name: str, alias: str, aliases: Mapping[str, str]) -> UserError:
    """The error for an alias that is not there; it lists those that are."""
    there = ", ".join(f"{known} (version {version})" for known, version in sorted(aliases.items()))
    guess = nearest(alias, aliases)
    hint = f" Did you mean {guess!r}?" if guess else " Promote a run to it (imgcls promote)."
    return UserError(
        f"the registered model {name!r} has no alias {alias!r}; {f'it has {there}' if there else 'it has none'}.{hint}"
    )


def check_alias(alias: str) -> None:
    """Whether MLflow takes it as an alias.

    Raises:
        UserError: it is reserved, empty, too long, or has other characters.
    """
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UserError(f"the alias {alias!r} is reserved by MLflow; expected another, such as {CHAMPION}.")
    if not re.fullmatch(r"[\w-]{1,255}", alias):
        raise UserError(
            f"found the alias {alias!r}; expected 1 to 255 letters, digits, underscores and dashes, such as {CHAMPION}."
        )


def record_verdict(
    store: Store, version: Version, verdict: Verdict, *, against: Version | None, forced: bool = False
) -> None:
    """Write a verdict on a version's tags: each gate's figure, both runs, and where it refuses, `rejected` and why.

    A version that has an alias is not called rejected: it serves until another one does.

    Args:
        store: where it is.
        version: the challenger.
        verdict: on it.
        against: the champion that it was held against; None where there was none.
        forced: whether it is promoted whatever the verdict.

    Raises:
        UserError: the store fails.
    """
    wanted = {
        f"{PROMOTION_TAG}.run": version.run_id,
        f"{PROMOTION_TAG}.against_run": against.run_id if against else "",
        f"{PROMOTION_TAG}.against_version": against.version if against else "",
        f"{PROMOTION_TAG}.verdict": "passed" if verdict.passed else "refused",
        f"{PROMOTION_TAG}.reason": verdict.reason,
        f"{PROMOTION_TAG}.time": now_text(),
    }
    for gate in verdict.gates:
        passed = "passed" if gate.passed else "refused"
        wanted[GATE_TAG + gate.name] = f"{value_text(gate.figure)} (wanted {gate.wanted}): {passed}"
    with asking(store, f"writing the verdict on version {version.version} of {version.name!r}"), store.writing():
        client, where = store.client, (version.name, version.version)
        found = client.get_model_version(*where)
        for name in found.tags:
            if name.startswith(GATE_TAG) and name not in wanted:  # of an earlier verdict, by other gates
                client.delete_model_version_tag(*where, name)
        for name, text in wanted.items():
            client.set_model_version_tag(*where, name, text[:MOST_TEXT])
        if not verdict.passed and not forced and not found.aliases:
            client.set_model_version_tag(*where, PROMOTION_TAG, "rejected")
        elif found.tags.get(PROMOTION_TAG) == "rejected":  # by an earlier verdict
            client.delete_model_version_tag(*where, PROMOTION_TAG)


def now_text() -> str:
    """This second in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
