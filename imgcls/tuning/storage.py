"""The database of a sweep: SQLite on one host, PostgreSQL beyond; opened, locked, and its errors put into words."""

import contextlib
import sqlite3
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from imgcls.errors import UserError

BUSY_S = 60
"""Seconds that a statement waits for SQLite while another process writes."""
ANSWER_S = 5
"""Seconds in which a storage has to answer when it is opened."""
HEARTBEAT_S, GRACE_S = 10, 30
"""Seconds between the signs of life of a running trial, and without one until it is taken for dead."""
POLL_S = 0.05
Stale = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]


class _Database(RDBStorage):
    """Optuna's, whose signs of life outlast a moment without an answer: its thread would end with the first error."""

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


class Storage:
    """An open database, which any number of processes may have open at once.

    Args:
        place: `sqlite:///file`, `postgresql://user:password@host/database`, or a file, which is SQLite.
        on_stale: called with the study and the trial when Optuna has failed a trial without signs of life.
        heartbeat_s: seconds between signs of life.
        grace_s: seconds without one until a trial is taken for dead.

    Raises:
        UserError: the storage does not answer within some 10 s, is no database, or its driver is missing.
    """

    def __init__(
        self, place: str, *, on_stale: Stale | None = None, heartbeat_s: int = HEARTBEAT_S, grace_s: int = GRACE_S
    ) -> None:
        self._url = _parse(place)
        self.heartbeat_s = heartbeat_s
        """Seconds between signs of life."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it writes a line a trial; ours to say
        self.rdb = self._open(on_stale, heartbeat_s, grace_s)
        """Optuna's view of it."""

    @property
    def url(self) -> str:
        """The storage as another process opens it, from any folder; with the password."""
        return self._url.render_as_string(hide_password=False)

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the connections."""
        self.rdb.remove_session()
        self.rdb.engine.dispose()

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One process at a time, of all that have the storage open for the sweep `name`; one that dies lets go."""
        if self._file is not None:
            with FileLock(f"{self._file}.lock", poll_interval=POLL_S):
                yield
            return
        key = zlib.crc32(f"imgcls sweep {name}".encode())
        with self.rdb.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
                time.sleep(POLL_S)
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})

    @contextlib.contextmanager
    def answers(self) -> Iterator[None]:
        """A context in which the database's errors are errors for the user.

        Raises:
            UserError: the storage stopped answering.
        """
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
            raise UserError(
                f"the storage {self} stopped answering: {_reason(cause)}. Once it does, the same command goes on"
            ) from error

    @property
    def _file(self) -> Path | None:
        is_file = self._url.get_backend_name() == "sqlite"
        return Path(str(self._url.database)) if is_file else None

    def _open(self, on_stale: Stale | None, heartbeat_s: int, grace_s: int) -> RDBStorage:
        if self._file is not None:
            _probe(self._file)
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_S}}
        else:
            alive = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
            options = {"connect_args": {"connect_timeout": ANSWER_S, **alive}, "pool_pre_ping": True}
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are one
                    rdb = _Database(
                        self.url.replace("{", "{{").replace("}", "}}"),  # Optuna fills in a template
                        engine_kwargs=options,
                        heartbeat_interval=heartbeat_s,
                        grace_period=grace_s,
                        heartbeat_stale_trial_callback=on_stale,
                    )
                break
            except (ImportError, ArgumentError) as error:
                raise UserError(
                    f"the storage {self} cannot be used: {error}. For PostgreSQL run: pip install 'imgcls[postgres]'"
                ) from error
            except (StorageInternalError, SQLAlchemyError) as error:
                # Two processes that make the tables at once get in each other's way; the second try finds them made.
                if not _may_pass(error, is_file=self._file is not None) or time.monotonic() > deadline:
                    raise self._no_answer(error) from error
                time.sleep(POLL_S)
            except RuntimeError as error:  # tables of another version of Optuna
                raise UserError(f"the storage {self} cannot be used: {error}") from error
        if self._file is not None:
            _make_immediate(rdb.engine)
        return rdb

    def _no_answer(self, error: Exception) -> UserError:
        return UserError(
            f"the storage {self} does not answer: {_reason(error)}. Check that the server runs, its address, user and "
            "password, and that the database exists; or give a file such as sweeps.db, which is SQLite"
        )


def _parse(place: str) -> URL:
    if "://" not in place:
        return URL.create("sqlite", database=str(Path(place).expanduser().absolute()))
    try:
        url = make_url(place)
        backend = url.get_backend_name()
    except ArgumentError as error:
        raise UserError(f"the storage is no address: {error}") from None
    if backend not in ("sqlite", "postgresql"):
        raise UserError(
            f"the storage is a {backend} database; expected sqlite:///file, postgresql://user@host/database or a file"
        )
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise UserError("the storage is SQLite in memory, which no other process sees; expected a file")
        return url.set(database=str(Path(str(url.database)).absolute()))
    # The driver of the extra `postgres`; which one an address without any means differs between SQLAlchemy's versions.
    return url.set(drivername="postgresql+psycopg2") if url.drivername == "postgresql" else url


def _probe(path: Path) -> None:
    """See whether the file is, or can become, a database that can be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=ANSWER_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"the storage {path} does not answer: {error}. Give a file in a folder that can be written to, which is "
            "new or an SQLite database that no other program holds"
        ) from error


def _make_immediate(engine: Engine) -> None:
    """Let every transaction take SQLite's write lock when it begins.

    Optuna reads a trial's state and then writes it, with SELECT … FOR UPDATE in between, which SQLite does not know:
    two workers could take the same waiting trial, or re-queue the same dead one twice.
    https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
    """

    @event.listens_for(engine, "connect")
    def _begin_ourselves(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # what was opened before has Python's own way to begin


def _may_pass(error: Exception, *, is_file: bool) -> bool:
    """Whether trying again can help: the tables are being made by another process."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return is_file or not isinstance(cause, OperationalError)


def _reason(error: BaseException) -> str:
    found = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(found).split()) or type(found).__name__
