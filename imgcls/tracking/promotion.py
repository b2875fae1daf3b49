"""Moving the alias that serves from one version to another: promotion, rollback, and their history.

The alias is the truth, and moving it is one request: the version, the verdict's tags and the history's entry are
written before, what follows from the move (which version is now called what) after. A process that ends anywhere in
between leaves the alias where it was or where it goes, and the same call again finishes the rest.
"""

import getpass
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from imgcls.errors import UserError
from imgcls.tracking.registry import (
    CHAMPION,
    MOST_TEXT,
    PROMOTION_TAG,
    aliases_of,
    check_alias,
    list_versions,
    no_alias,
    now_text,
    registered_model,
)
from imgcls.tracking.registry_claim import Claim, asking, claimed
from imgcls.tracking.registry_log import Kind, Move, happened, history_table, next_number, previous, read_moves
from imgcls.tracking.store import Store


def move_alias(
    store: Store,
    name: str,
    alias: str,
    version: str,
    *,
    expected: str | None,
    reason: str = "",
    kind: Literal["promotion", "forced"] = "promotion",
) -> Move:
    """Let an alias name a version, where it has not moved since that was decided.

    What an earlier call that was cut off has left is finished first; the same call again finishes itself. An alias that
    is there already stays, and nothing is recorded twice. For what could still go wrong between machines see
    `registry_claim`.

    Args:
        store: where it is.
        name: the registered model.
        alias: such as `champion`.
        version: its new version.
        expected: the version that it named when the decision was made; None where there was no such alias.
        reason: why, for the history.
        kind: whether the gates let it through, or it is forced.

    Raises:
        UserError: the alias has moved meanwhile (where to), is reserved, there is no such model or version, another
            process holds the registered model, or the store fails.
    """
    check_alias(alias)
    registered_model(store, name)
    with claimed(store, name) as claim, asking(store, f"moving the alias {alias} of {name!r}"):
        model = _settle(store, name)
        moves, now = read_moves(model.tags), aliases_of(model).get(alias)
        if now == version:
            last = next((move for move in reversed(moves) if move.alias == alias), None)
            if last is not None and last.version == version and last.done:
                return last
            return _new_move(store, model, alias, version, None, "it was there already", "unrecorded", done=True)
        if now != expected:
            raise _moved(name, alias, now, expected, moves)
        return _move(store, claim, _new_move(store, model, alias, version, expected, reason, kind), name)


def rollback(store: Store, name: str, alias: str = CHAMPION, *, expected: str, reason: str) -> Move:
    """Let an alias name again what it named before the promotion of its present version; twice goes two back.

    Args:
        store: where it is.
        name: the registered model.
        alias: such as `champion`.
        expected: the version that is to be taken back, which the alias names now. Where the last move is the rollback
            from just that version, it is finished if it was cut off, and no second one begun.
        reason: why, for the history.

    Raises:
        UserError: there is no such registered model or alias, it names another version meanwhile, there is none before,
            another process holds the registered model, or the store fails.
    """
    check_alias(alias)
    registered_model(store, name)
    with claimed(store, name) as claim, asking(store, f"rolling back the alias {alias} of {name!r}"):
        model = _settle(store, name)
        moves, aliases = read_moves(model.tags), aliases_of(model)
        last = next((move for move in reversed(moves) if move.alias == alias), None)
        if last and (last.kind, last.replaced, last.version) == ("rollback", expected, aliases.get(alias)):
            return last
        if alias not in aliases:
            raise no_alias(name, alias, aliases)
        if aliases[alias] != expected:
            raise _moved(name, alias, aliases[alias], expected, moves)
        existing = {version.version for version in list_versions(store, name)}
        target = previous(moves, alias, aliases, existing)
        if target is None:
            raise UserError(
                f"the alias {alias} of {name!r} (version {expected}) has no earlier version to return to. Promote "
                "another run to it (imgcls promote)."
            )
        return _move(store, claim, _new_move(store, model, alias, target, expected, reason, "rollback"), name)


def _new_move(
    store: Store,
    model: Any,
    alias: str,
    version: str,
    replaced: str | None,
    reason: str,
    kind: Kind,
    *,
    done: bool = False,
) -> Move:
    run_ids = {}
    for number in filter(None, (version, replaced)):
        try:
            run_ids[number] = store.client.get_model_version(model.name, number).run_id or ""
        except Exception as error:
            if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            if number == version:
                known = ", ".join(found.version for found in list_versions(store, model.name)) or "none"
                raise UserError(
                    f"the registered model {model.name!r} has no version {version}; it has {known}."
                ) from error
    user = ""
    with suppress(Exception):  # a container's user without a name
        user = f"{getpass.getuser()}@"
    return Move(
        number=next_number(model.tags),
        alias=alias,
        kind=kind,
        version=version,
        run_id=run_ids[version],
        replaced=replaced,
        replaced_run_id=run_ids.get(replaced or "", ""),
        reason=reason[: MOST_TEXT // 2],
        time=now_text(),
        by=user + socket.gethostname(),
        done=done,
    )


def _moved(name: str, alias: str, now: str | None, expected: str | None, moves: list[Move]) -> UserError:
    last = next((move for move in reversed(moves) if move.alias == alias and move.version == now), None)
    by = f" ({last.kind} by {last.by} at {last.time}: {last.reason or 'no reason given'})" if last else ""
    is_at = f"names version {now} now{by}" if now else "is not there any more"
    was = f"version {expected}" if expected else "none, when there was no such alias"
    return UserError(
        f"the alias {alias} of {name!r} {is_at}; the decision was made against {was}. Nothing was moved; run it again, "
        "which compares with what is there now."
    )


def _move(store: Store, claim: Claim, move: Move, name: str) -> Move:
    """Entry, alias, and what follows from it; within a claim."""
    client = store.client
    client.set_registered_model_tag(name, move.tag, move.to_json())
    model = client.get_registered_model(name)
    claim.check(model.tags)
    if (now := aliases_of(model).get(move.alias)) != move.replaced:
        raise _moved(name, move.alias, now, move.replaced, [])
    client.set_registered_model_alias(name, move.alias, move.version)
    model = client.get_registered_model(name)
    if (now := aliases_of(model).get(move.alias)) != move.version:
        raise UserError(
            f"the alias {move.alias} of {name!r} was moved to version {move.version}, and by something else to version "
            f"{now} at the same time. Look at `imgcls registry show {name}` and decide again."
        )
    return _follow(store, name, move, aliases_of(model))


def _settle(store: Store, name: str) -> Any:
    """Finish the moves that were cut off after the alias had moved, forget those before; the registered model."""
    model = store.client.get_registered_model(name)
    moves, aliases = read_moves(model.tags), aliases_of(model)
    unfinished = [move for move in moves if not move.done]
    for move in unfinished:
        if happened(move, moves, aliases):
            _follow(store, name, move, aliases)
        else:
            store.client.delete_registered_model_tag(name, move.tag)
    return store.client.get_registered_model(name) if unfinished else model


@contextmanager
def _without_missing() -> Iterator[None]:
    """A version that was deleted needs no tags."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise


def _follow(store: Store, name: str, move: Move, aliases: Mapping[str, str]) -> Move:
    """What the versions are called after a move, and that it is done."""
    with _without_missing():
        if aliases.get(move.alias) == move.version:
            tags = {PROMOTION_TAG: move.alias, f"{PROMOTION_TAG}.time": move.time}
            if move.reason:
                tags[f"{PROMOTION_TAG}.reason"] = move.reason
            for tag, text in tags.items():
                store.client.set_model_version_tag(name, move.version, tag, text)
    if move.replaced is not None:
        with _without_missing():
            was = store.client.get_model_version(name, move.replaced).tags.get(PROMOTION_TAG, move.alias)
            if was == move.alias:  # it may have another alias still
                why = f"replaced by version {move.version} ({move.kind}): {move.reason}".removesuffix(": ")
                store.client.set_model_version_tag(name, move.replaced, f"{PROMOTION_TAG}.reason", why)
                store.client.set_model_version_tag(name, move.replaced, PROMOTION_TAG, "replaced")
    done = replace(move, done=True)
    store.client.set_registered_model_tag(name, done.tag, done.to_json())
    return done


def history(store: Store, name: str) -> pd.DataFrame:
    """Who replaced whom, when and why: one row a move of an alias (see `registry_log.history_table`).

    Raises:
        UserError: there is no such registered model, or the store fails.
    """
    model = registered_model(store, name)
    return history_table(read_moves(model.tags), aliases_of(model))
