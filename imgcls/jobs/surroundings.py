"""What a run says of its surroundings: the commit of the code, the machine, the installed packages."""

import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import torch


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this process runs from, `-dirty` where files differ; None outside one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def environment() -> str:
    """Python, machine and installed packages, a line each."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    head = [
        f"# python {sys.version.split()[0]} on {platform.platform()}",
        f"# processor {platform.processor() or platform.machine()}, torch threads {torch.get_num_threads()}, GPU {gpu}",
    ]
    return "\n".join([*head, *_packages()]) + "\n"


@cache
def _packages() -> list[str]:
    packages = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]}
    return sorted(packages, key=str.casefold)
