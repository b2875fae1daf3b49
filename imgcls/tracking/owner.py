"""Which process a run belongs to, so that one that was interrupted can be told from one that lasts.

It stands in a file of the run's work folder and in a tag: the first is there without a server, the second without the
folder.
"""

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

OWNER_FILE, OWNER_TAG = "job.json", "imgcls.job"


def this_process() -> dict[str, Any]:
    """Host, number and start of this process: together they are of no other."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def claim(folder: Path, *, uri: str, run_id: str, verb: str = "train") -> str:
    """Write down that this process writes to the run in `folder`; the text of the tag that says so."""
    about = {"uri": uri, "run_id": run_id, "verb": verb, "folder": str(folder), **this_process()}
    with contextlib.suppress(OSError):  # a full disk: the tag says it too
        temporary = folder / (OWNER_FILE + ".tmp")
        temporary.write_text(json.dumps(about), encoding="utf-8")
        temporary.replace(folder / OWNER_FILE)
    return json.dumps({name: value for name, value in about.items() if name not in ("uri", "run_id", "verb")})


def owner_in(folder: Path) -> dict[str, Any]:
    """What `claim` wrote into the folder; empty where it is not there."""
    try:
        found: dict[str, Any] = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def is_running(about: Mapping[str, Any]) -> bool:
    """Whether that process is still there; another may have got its number since. Of another host nobody can tell."""
    if about.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(about["pid"])
        same = abs(process.create_time() - float(about["started"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
