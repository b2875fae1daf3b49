"""What downloads share: they wait for a connection, and for the next bytes, for a bounded time."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 10.0
"""Seconds that a download waits for a connection or for the next bytes."""


@contextmanager
def bounded_wait() -> Iterator[None]:
    """A context in which new connections of this process give up after TIMEOUT_S without a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
