"""Names to plug-ins: a registry whose error for an unknown name lists the known ones and the nearest."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Generic, TypeVar

from imgcls.errors import UserError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is similar."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones."""
    names = sorted(known)
    guess = nearest(name, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(names)}.{hint}")


class Registry(Generic[T]):
    """Plug-ins of one kind by name.

    Args:
        kind: what the plug-ins are, as a user would call one ("data source", "model family").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers its target under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """The plug-in called `name`.

        Raises:
            UserError: no plug-in has that name; the message lists the known names.
        """
        if name not in self._items:
            raise unknown_name(self.kind, name, self._items)
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)
