"""A PostgreSQL server of a test's own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BINARIES = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def postgres_server(database: str) -> Iterator[str]:
    """The address of a database on a server of our own, on a socket in a folder of its own (pytest's are closed to
    others); the test is skipped where there is no PostgreSQL."""
    if not (BINARIES / "initdb").exists():
        pytest.skip(f"no PostgreSQL server in {BINARIES}")
    pytest.importorskip("psycopg2")
    user: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="imgcls-pg-"))
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            folder.rmdir()
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"
    quiet: dict[str, Any] = {"check": True, "capture_output": True, "cwd": folder, **user}
    subprocess.run([str(BINARIES / "initdb"), "-D", str(data), "-U", "tester", "-A", "trust", "-N"], **quiet)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    control = [str(BINARIES / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], **{**quiet, "capture_output": False})
    try:
        subprocess.run([str(BINARIES / "createdb"), "-h", str(folder), "-U", "tester", database], **quiet)
        yield f"postgresql://tester@/{database}?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)
