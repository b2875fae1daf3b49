"""What the sources of tables share: which column holds what, and which classes labels stand for."""

import re
from collections.abc import Iterable, Sequence

from imgcls.data.sources.files import some
from imgcls.errors import UserError
from imgcls.plugins import nearest

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def choose_column(
    names: Sequence[str], role: str, name: str, *, about: str, known: Sequence[Sequence[str]] = (), header: str = ""
) -> str:
    """The column that holds a role.

    Args:
        names: the table's columns.
        role: path, image, label, split or group; `data.<role>_column` chooses it.
        name: what was asked for: a column, or "auto" where `known` names are given.
        about: what the table is called, "data.table t.csv".
        known: the names that `auto` knows, in any case; a later group counts where there is none of an earlier one.
        header: what is expected to hold the columns, "a header line with ".

    Raises:
        UserError: no such column, none or several that `auto` knows, or a name that stands twice.
    """
    found = f"{about} has the columns {', '.join(names)}"
    if name not in names and name == "auto" and known:
        fitting: list[str] = []
        for group in known:
            fitting = fitting or list(dict.fromkeys(column for column in names if column.casefold() in group))
        if not fitting:
            raise UserError(
                f"{found}; expected {header}{'an' if role[0] in 'aeio' else 'a'} {role} column called one of "
                f"{', '.join(column for group in known for column in group)}. Say which it is with data.{role}_column."
            )
        if len(fitting) > 1:
            raise UserError(f"{found}, of which {', '.join(fitting)} may hold the {role}; set data.{role}_column.")
        name = fitting[0]
    if names.count(name) > 1:
        raise UserError(f"{found}; {name!r} stands {names.count(name)} times. Rename all but one.")
    if name not in names:
        guess = nearest(name, names)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise UserError(f"{found}; data.{role}_column {name!r} is not among them.{hint}")
    return name


def class_names(labels: Iterable[str], kind: str, about: str) -> dict[str, str]:
    """{label as it stands: class name}, in the order of the classes.

    Args:
        labels: the labels, none empty.
        kind: integers (sorted by value), names (sorted as text), or auto: integers where every label is one.
        about: what the labels are in, "data.table t.csv".

    Raises:
        UserError: integers and names mixed, decimal numbers, or an integer written in two ways.
    """
    distinct = sorted(set(labels))
    others = [label for label in distinct if not _INTEGER.fullmatch(label)]
    if kind == "names" or (kind == "auto" and len(others) == len(distinct) and not _are_decimals(others)):
        return {label: label for label in distinct}
    way_out = "Mend the labels, or set data.label_kind to names to take all of them as text."
    if others:
        numbers = [label for label in distinct if label not in set(others)]
        if not numbers and kind == "auto":
            raise UserError(f"{about}: the labels are decimal numbers ({some(others)}); expected names. {way_out}")
        raise UserError(
            f"{about}: {len(numbers)} different labels are integers ({some(numbers) or 'none'}), but "
            f"{len(others)} are not ({some(others)}); expected only integers or only names. {way_out}"
        )
    names = {label: label.split(".")[0] for label in sorted(distinct, key=lambda label: int(label.split(".")[0]))}
    values: dict[int, str] = {}
    for name in names.values():
        other = values.setdefault(int(name), name)
        if other != name:
            raise UserError(f"{about}: the labels {other!r} and {name!r} are the same number. {way_out}")
    return names


def _are_decimals(labels: Sequence[str]) -> bool:
    return all(_DECIMAL.fullmatch(label) for label in labels)
