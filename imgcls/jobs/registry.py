"""The commands on a registered model: its versions and their history, and the return to an earlier champion."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from imgcls.errors import UserError
from imgcls.evaluation.markdown import NOTHING, aligned
from imgcls.tracking.promotion import history
from imgcls.tracking.promotion import rollback as roll_back
from imgcls.tracking.registry import (
    CHAMPION,
    GATE_TAG,
    PROMOTION_TAG,
    Version,
    aliases_of,
    check_name,
    read_alias,
    registered_model,
    versions,
)
from imgcls.tracking.registry_claim import asking
from imgcls.tracking.registry_log import happened, read_moves
from imgcls.tracking.store import Store, connect

WIDTH = 120
"""Columns of a terminal."""
MOST_LINES = 3
"""Lines of a reason; --json has all of it."""


def show(name: str, *, as_json: bool = False) -> str:
    """The versions of a registered model, and which replaced which, when and why.

    Raises:
        UserError: there is no such registered model, or the store fails.
    """
    store = connect()
    found = versions(store, name)
    with asking(store, f"reading the history of {name!r}"):
        moves = history(store, name)
    if as_json:
        rows: list[dict[Any, Any]] = moves.to_dict("records")
        return json.dumps({"name": name, "versions": [_as_dict(v) for v in found], "history": rows}, indent=1) + "\n"
    return f"{_versions_text(name, found)}\n{_history_text(moves)}"


def _as_dict(version: Version) -> dict[str, Any]:
    tags = version.tags
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "state": tags.get(PROMOTION_TAG),
        "verdict": tags.get(f"{PROMOTION_TAG}.verdict"),
        "reason": tags.get(f"{PROMOTION_TAG}.reason"),
        "against_version": tags.get(f"{PROMOTION_TAG}.against_version") or None,
        "gates": {key.removeprefix(GATE_TAG): text for key, text in sorted(tags.items()) if key.startswith(GATE_TAG)},
        "run_id": version.run_id,
        "model_id": version.model_id,
        "created": version.created.isoformat(timespec="seconds"),
    }


def _versions_text(name: str, found: Sequence[Version]) -> str:
    if not found:
        return f"{name} has no version\n"
    head = ("version", "aliases", "state", "verdict", "created (UTC)", "run")
    rows = [_row(version) for version in found]
    reasons = [version.tags.get(f"{PROMOTION_TAG}.reason", "") for version in found]
    return f"{name}, versions\n{_with_reasons(head, rows, reasons)}"


def _row(version: Version) -> list[str]:
    tags = version.tags
    against = tags.get(f"{PROMOTION_TAG}.against_version")
    judged = tags.get(f"{PROMOTION_TAG}.verdict", NOTHING) + (f" (against {against})" if against else "")
    return [
        version.version,
        textwrap.shorten(", ".join(version.aliases), 24, placeholder=" …") or NOTHING,
        textwrap.shorten(tags.get(PROMOTION_TAG, ""), 16, placeholder="…") or NOTHING,
        judged,
        version.created.strftime("%Y-%m-%d %H:%M"),
        version.run_id or NOTHING,
    ]


def _history_text(moves: pd.DataFrame) -> str:
    if moves.empty:
        return "no alias of it was ever moved\n"
    head = ("", "time (UTC)", "alias", "what", "version", "in place of", "by")
    rows = []
    for move in moves.to_dict("records"):
        kind = str(move["kind"]) + (", cut off" if move["state"] != "done" else "")
        time = str(move["time"] or NOTHING)[:16].replace("T", " ")
        before, now = (str(move[key] or NOTHING) for key in ("replaced", "version"))
        by = textwrap.shorten(str(move["by"] or ""), 32, placeholder="…")
        rows.append([str(move["number"] or NOTHING), time, str(move["alias"]), kind, now, before, by or NOTHING])
    return f"history\n{_with_reasons(head, rows, [str(reason) for reason in moves['reason']])}"


def _with_reasons(head: Sequence[str], rows: Sequence[Sequence[str]], reasons: Sequence[str]) -> str:
    """Aligned rows, below each its reason, wrapped."""
    lines = aligned([head, *rows], left=range(len(head))).splitlines()
    told = [lines[0]]
    for line, reason in zip(lines[1:], reasons, strict=True):
        told.append(line)
        told += textwrap.wrap(
            reason, WIDTH, initial_indent="    ", subsequent_indent="    ", max_lines=MOST_LINES, placeholder=" …"
        )
    return "\n".join(told) + "\n"


def rollback(name: str, *, alias: str = CHAMPION, reason: str) -> str:
    """Let an alias name again what it named before; a sentence that says what.

    A rollback that was cut off after the alias had moved is finished by this, and no second one begun.

    Raises:
        UserError: the reason is empty, there is no such registered model or alias, there is no earlier version, the
            alias was moved meanwhile, or the store fails.
    """
    if not reason.strip():
        raise UserError("a rollback needs a reason (--reason TEXT), which the history keeps; found an empty one.")
    check_name(name)
    store = connect()
    move = roll_back(store, name, alias, expected=_taken_back(store, name, alias), reason=reason)
    return (
        f"version {move.version} of {name} is the {alias} again, in the place of version {move.replaced}    "
        f"models:/{name}@{alias}"
    )


def _taken_back(store: Store, name: str, alias: str) -> str:
    """The version that is to be taken back: what the alias names, or named where the rollback was cut off."""
    now = read_alias(store, name, alias).version
    model = registered_model(store, name)
    moves, aliases = read_moves(model.tags), aliases_of(model)
    last = next((move for move in reversed(moves) if move.alias == alias), None)
    if last is not None and last.kind == "rollback" and not last.done and happened(last, moves, aliases):
        assert last.replaced is not None
        return last.replaced
    return now
