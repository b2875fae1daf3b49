"""New SQLite stores without waiting: MLflow's migrations, which take most of a second, run once and are copied."""

import atexit
import contextlib
import functools
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any


def copy_new_stores() -> None:
    """From now on a new SQLite store of this process is a copy of its first one, still empty; no import of MLflow.

    The tables are those that MLflow's own code made, so nothing but the time differs. Call it before every test: it
    does nothing while MLflow's stores are not imported, and nothing the second time.
    """
    utils: Any = sys.modules.get("mlflow.store.db.utils")
    if utils is None or hasattr(utils._initialize_tables, "__wrapped__"):
        return
    create = utils._initialize_tables
    template = Path(tempfile.mkdtemp(prefix="imgcls-template-")) / "empty.db"

    @functools.wraps(create)
    def initialize(engine: Any) -> None:
        path = engine.url.database
        if engine.dialect.name != "sqlite" or not path or path == ":memory:" or not utils._is_empty_database(engine):
            create(engine)
            return
        if not template.exists():
            part = template.with_suffix(f".{os.getpid()}.db")  # forks of one process may be here at once
            new = utils.create_sqlalchemy_engine(f"sqlite:///{part}")
            create(new)
            new.dispose()
            part.rename(template)
        with contextlib.closing(sqlite3.connect(template)) as source, contextlib.closing(sqlite3.connect(path)) as to:
            source.backup(to)

    def remove(owner: int = os.getpid()) -> None:
        if os.getpid() == owner:  # and no fork of it
            shutil.rmtree(template.parent, ignore_errors=True)

    utils._initialize_tables = initialize
    atexit.register(remove)
