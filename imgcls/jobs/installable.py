"""Whether the packages that a model asks for are there, or can be had where this runs."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

LIMIT_S = 60.0
"""Seconds that pip has."""
_OFFLINE = ("Retrying (", "connection error", "Connection to", "Max retries exceeded")
"""What pip says where no index answers; a package that is not there it says without them."""


@dataclass(frozen=True)
class Installable:
    """What was found.

    Attributes:
        can: whether all of them are installed or can be; None: not known.
        how: a sentence that says how that was found, or why not.
    """

    can: bool | None
    how: str


def check_installable(requirements: Sequence[str], *, limit_s: float = LIMIT_S) -> Installable:
    """Look at the installed packages first, and ask pip for those that are missing; nothing is installed.

    pip is asked whether there are packages of these versions for this Python and machine. What they in turn need is
    not looked at, for pip would download gigabytes to find that out.

    Args:
        requirements: lines of a requirements.txt.
        limit_s: seconds that pip has.
    """
    missing = [line for line in requirements if not _is_installed(line)]
    if not missing:
        return Installable(True, f"all {len(requirements)} packages that the model asks for are installed here")
    named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    options = ("--dry-run", "--no-deps", "--no-input", "--disable-pip-version-check", "--retries", "1")
    command = [sys.executable, "-m", "pip", "install", *options, "--timeout", "10", "--", *missing]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Installable(None, f"{named}: not installed here, and pip did not say within {limit_s:g} s whether it is")
    except OSError as error:
        return Installable(None, f"{named}: not installed here, and pip cannot be started ({error.strerror})")
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode == 0:
        return Installable(True, f"{named}: not installed here, but pip finds it")
    if "No module named pip" in said:
        return Installable(None, f"{named}: not installed here, and there is no pip to ask")
    if any(words in said for words in _OFFLINE):
        return Installable(None, f"{named}: not installed here, and no package index answers")
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return Installable(False, f"pip cannot install {named}: {(errors or ['it does not say why'])[-1]}")


def _is_installed(line: str) -> bool:
    try:
        wanted = Requirement(line)
    except InvalidRequirement:  # an address or an option, which is pip's to judge
        return False
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return False
    return wanted.url is None and wanted.specifier.contains(version, prereleases=True)
