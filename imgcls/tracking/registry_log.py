"""The history of a registered model's aliases, kept as tags of that model: one a move, written before the move.

The alias itself is the truth: a move whose entry is there and whose alias did not follow never happened.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

MOVE_TAG = "imgcls.move."
Kind = Literal["promotion", "forced", "rollback", "unrecorded"]
COLUMNS = (
    "number", "time", "alias", "kind", "version", "run_id", "replaced", "replaced_run_id", "reason", "by", "state",
)  # fmt: skip


@dataclass(frozen=True)
class Move:
    """An alias that goes from one version to another.

    Attributes:
        number: the place in the history, from 1.
        alias: such as `champion`.
        kind: `promotion`, `forced` (against the gates), `rollback`, or `unrecorded` (moved by something else).
        version: where it goes.
        run_id: the run that made that version's model.
        replaced: the version that it leaves; None where there was no such alias.
        replaced_run_id: the run of that one.
        reason: why.
        time: when, in UTC, as ISO 8601.
        by: user@host.
        done: whether all that belongs to it was written.
    """

    number: int
    alias: str
    kind: Kind
    version: str
    run_id: str
    replaced: str | None
    replaced_run_id: str
    reason: str
    time: str
    by: str
    done: bool = False

    @property
    def tag(self) -> str:
        """The name of the tag that it is kept in."""
        return f"{MOVE_TAG}{self.number:06d}"

    def to_json(self) -> str:
        """The text of that tag."""
        return json.dumps(asdict(self))


def read_moves(tags: Mapping[str, str]) -> list[Move]:
    """The moves among a registered model's tags, the first one first; what cannot be read is left out."""
    found = []
    for name, text in tags.items():
        if name.startswith(MOVE_TAG):
            try:
                found.append(Move(**json.loads(text)))
            except (ValueError, TypeError):  # written by hand
                continue
    return sorted(found, key=lambda move: move.number)


def next_number(tags: Mapping[str, str]) -> int:
    """The number that the next move gets; never one that is taken, readable or not."""
    taken = [name.removeprefix(MOVE_TAG) for name in tags if name.startswith(MOVE_TAG)]
    return 1 + max((int(text) for text in taken if text.isdecimal()), default=0)


def happened(move: Move, moves: Sequence[Move], aliases: Mapping[str, str]) -> bool:
    """Whether the alias followed: it is there, or the next move of it began there."""
    if move.done:
        return True
    later = [other for other in moves if other.alias == move.alias and other.number > move.number]
    return later[0].replaced == move.version if later else aliases.get(move.alias) == move.version


def previous(moves: Sequence[Move], alias: str, aliases: Mapping[str, str], existing: Collection[str]) -> str | None:
    """The version that the alias returns to when what it names is taken back.

    Every promotion lies on top of the one before, and a rollback takes off the top: twice back is two champions back.

    Args:
        moves: the history.
        alias: the alias.
        aliases: where aliases are now.
        existing: the versions that are not deleted.
    """
    stack: list[str] = []
    for move in moves:
        if move.alias != alias or not happened(move, moves, aliases):
            continue
        if move.replaced is not None:
            _rest_on(stack, move.replaced)
        if move.kind == "rollback":
            _rest_on(stack, move.version)
        else:
            stack.append(move.version)
    now = aliases[alias]
    _rest_on(stack, now)
    return next((version for version in reversed(stack[:-1]) if version in existing and version != now), None)


def _rest_on(stack: list[str], version: str) -> None:
    """Take off what lies above a version; put it on top where it is not there (it came by an unrecorded move)."""
    if version in stack:
        while stack[-1] != version:
            stack.pop()
    else:
        stack.append(version)


def history_table(moves: Sequence[Move], aliases: Mapping[str, str]) -> pd.DataFrame:
    """One row a move, in their order, with the columns COLUMNS.

    A gap between two moves, or between the last one and the alias, is a row of the kind `unrecorded`. `state` is
    `done`, or `cut off` where the alias did not follow; running the same again finishes it.
    """
    rows: list[list[object]] = []
    last: dict[str, str | None] = {}
    for move in moves:
        if move.replaced != last.get(move.alias):
            rows.append(_unrecorded(move.alias, last.get(move.alias), move.replaced))
        moved = happened(move, moves, aliases)
        last[move.alias] = move.version if moved else move.replaced
        shown = [getattr(move, name) for name in COLUMNS[:-1]]
        rows.append([*shown, "done" if moved else "cut off"])
    for alias in sorted({*last, *aliases}):
        if aliases.get(alias) != last.get(alias):
            rows.append(_unrecorded(alias, last.get(alias), aliases.get(alias)))
    # As objects: a version that is None would be NaN among texts.
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _unrecorded(alias: str, before: str | None, now: str | None) -> list[object]:
    why = "moved by something other than imgcls" if now is not None else "removed by something other than imgcls"
    return [None, None, alias, "unrecorded", now, "", before, "", why, "", "done"]
