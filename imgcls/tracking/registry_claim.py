"""One writer at a time to a registered model, over a store that knows no compare-and-set.

Every writer sets a claim, a tag of its own on the registered model, and then reads all of them: of two writers at least
the one whose tag came second sees the other's. Who sees another's takes its own back and tries again a little later, so
two never hold it at once. On one machine with SQLite a file lock comes before that and nobody has to try twice.

What remains:

- Of a process on another machine nobody can tell whether it lives: its claim counts for LASTS seconds. A holder does
  not move anything later than HOLDS seconds after its claim, so only a request that is under way for longer than
  LASTS - HOLDS seconds, or clocks that are further apart than that, let two in. The alias is read back after the move,
  and one that was moved meanwhile is an error there.
- The MLflow UI, and programs other than imgcls, set no claim. What they move between the last look and the write is
  written over; the look is one request before the write, and the history shows a move that it did not record.
- The store must let a writer read what was written before: a read replica behind the server does not.
"""

import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.tracking.owner import is_running, this_process
from imgcls.tracking.store import Store, first_line

CLAIM_TAG = "imgcls.claim."
WAITS = 30.0
"""Seconds that a writer waits for another before it gives up."""
HOLDS = 60.0
"""Seconds after which the holder of a claim moves nothing any more."""
LASTS = 180.0
"""Seconds that the claim of a process counts of which nobody can tell whether it lives."""
_active: set[str] = set()
"""The claims that this process holds: another one of its own was left over by a failure."""


@contextmanager
def asking(store: Store, doing: str) -> Iterator[None]:
    """Errors of the store, whatever raised them, as UserErrors.

    Raises:
        UserError: what was being done, why it failed, and what to do.
    """
    try:
        yield
    except (UserError, AssertionError, TypeError):  # ours
        raise
    except Exception as error:  # SQLAlchemy's, the network's, MLflow's
        if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise UserError(f"MLflow refused when {doing}: {first_line(error)}. Mend that and run it again.") from error
        raise UserError(
            f"the tracking store {store.uri} failed when {doing}: {first_line(error)}. Nothing is half done that "
            "running the same again does not finish; see that the store answers first."
        ) from error


@dataclass(frozen=True)
class Claim:
    """The right to write to a registered model for a short time.

    Attributes:
        tag: the tag that says so.
        begun: when it was set, by this process's monotonic clock.
    """

    tag: str
    begun: float

    def check(self, tags: Mapping[str, str]) -> None:
        """Whether it still counts.

        Args:
            tags: the registered model's, just read.

        Raises:
            UserError: it took too long, or another process took it away.
        """
        took = time.monotonic() - self.begun
        if self.tag not in tags or took > HOLDS:
            raise UserError(
                f"the store was so slow ({took:.0f} s) that another may have begun to write to the same registered "
                "model. Nothing was moved; run it again."
            )


@contextmanager
def claimed(store: Store, name: str) -> Iterator[Claim]:
    """Be the only one of imgcls that writes to a registered model, which must exist.

    Raises:
        UserError: another holds it for longer than WAITS seconds, or the store fails.
    """
    deadline = time.monotonic() + WAITS
    while True:
        with store.writing():
            claim = Claim(CLAIM_TAG + uuid.uuid4().hex, time.monotonic())
            _active.add(claim.tag)
            try:
                others = _try(store, name, claim)
                if not others:
                    yield claim
                    return
            finally:
                # Where this fails the tag stays; it does not count any more for this machine's processes.
                with suppress(Exception):
                    store.client.delete_registered_model_tag(name, claim.tag)
                _active.discard(claim.tag)
        if time.monotonic() > deadline:
            raise _held(name, others[0])
        time.sleep(random.uniform(0.05, 0.4))  # two that saw each other must not meet again


def _try(store: Store, name: str, claim: Claim) -> list[dict[str, Any]]:
    """Set the claim; who else has one that counts."""
    about = {**this_process(), "space": _process_space(), "time": time.time()}
    with asking(store, f"claiming the registered model {name!r}"):
        store.client.set_registered_model_tag(name, claim.tag, json.dumps(about))
        tags = dict(store.client.get_registered_model(name).tags)
        others = []
        for tag, text in tags.items():
            if not tag.startswith(CLAIM_TAG) or tag == claim.tag:
                continue
            other = _parsed(text)
            if _counts(tag, other):
                others.append(other)
            else:
                with suppress(Exception):  # another one has just tidied it away
                    store.client.delete_registered_model_tag(name, tag)
        return others


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _counts(tag: str, about: Mapping[str, Any]) -> bool:
    """Whether the writer that set the claim may still be there."""
    here = this_process()
    if about.get("host") == here["host"] and about.get("space") == _process_space():
        return tag in _active if about.get("pid") == here["pid"] else is_running(about)
    said = about.get("time")
    return isinstance(said, int | float) and abs(time.time() - said) < LASTS


def _process_space() -> str:
    """What tells containers of one host name from each other: the same number is another process there."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        return ""


def _held(name: str, about: Mapping[str, Any]) -> UserError:
    since = time.strftime("%H:%M:%S", time.gmtime(about.get("time", 0)))
    return UserError(
        f"another process writes to the registered model {name!r} (process {about.get('pid')} on {about.get('host')}, "
        f"since {since} UTC). Nothing was changed; run it again when that has ended. Where it was killed, its claim "
        f"ends by itself after {LASTS:.0f} s."
    )
