"""Paths and names in recipes and messages: what both the sources and the stages behind them need."""

from collections.abc import Sequence
from pathlib import Path

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What a split may be called, in any case."""


def absolute(path: str) -> str:
    """The path from the root, with `~` replaced.

    Raises:
        ValueError: `~name` of nobody; for a field's validator.
    """
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ValueError(f"{error} Expected a path; write it out") from error


def some(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
