"""`imgcls` commands forked from a process that has imported torch, MLflow and imgcls, which take seconds, once.

What is forked is a process as any other: with its own session, folder, environment and output, it ends by `main()` and
can be killed. Only its imports are done already, so tests of what happens during those start a real one.
"""

import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_server: "Server | None" = None


class Forked:
    """A forked command; what tests need of `subprocess.Popen`.

    Attributes:
        args: the command's words.
        pid: of its process.
    """

    def __init__(self, words: Sequence[str], folder: Path, out: Path, err: Path, environ: dict[str, str]) -> None:
        global _server
        if _server is None or not _server.lives():
            _server = Server()
        for path in (out, err):
            path.write_bytes(b"")
        self.args = list(words)
        self.pid, self._code = _server.fork(words, folder, out, err, environ)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return int(self._code.read_text()) if self._code.exists() else None

    def wait(self, timeout: float) -> int:
        """Its exit code; TimeoutExpired where it still runs after so many seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks; one for all tests of this process, which ends with it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="imgcls-forks-"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._folder)],
            cwd=Path(__file__).parents[2], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(self._end)

    def lives(self) -> bool:
        """Whether it can fork."""
        return self._process.poll() is None

    def fork(
        self, words: Sequence[str], folder: Path, out: Path, err: Path, environ: dict[str, str]
    ) -> tuple[int, Path]:
        """(process id, the file that will have its exit code) of a new process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = [list(words), str(folder), str(out), str(err), environ]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        return pid, self._folder / str(pid)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)


def _serve(codes: Path) -> None:
    """Fork what standard input orders, a line each, and write exit codes, until there is no more input."""
    import mlflow.pyfunc  # noqa: F401
    import torch._dynamo  # noqa: F401  by the first optimizer

    import imgcls.jobs.evaluate
    import imgcls.jobs.train  # noqa: F401
    from tests.stores import copy_new_stores

    copy_new_stores()

    def reap(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            new = codes / f"{pid}.new"
            new.write_text(str(os.waitstatus_to_exitcode(status)))
            new.rename(codes / str(pid))

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        words, folder, out, err, environ = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(words, folder, out, err, environ)
        print(pid, flush=True)


def _become(words: list[str], folder: str, out: str, err: str, environ: dict[str, str]) -> NoReturn:
    """Turn this process into the command."""
    import numpy as np

    from imgcls.cli import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    for path, flags, descriptor in (
        (os.devnull, os.O_RDONLY, 0),
        (out, os.O_WRONLY, 1),
        (err, os.O_WRONLY, 2),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    random.seed()
    np.random.seed()
    sys.argv = ["imgcls", *words]
    main()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
