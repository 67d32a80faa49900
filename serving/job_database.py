# SPDX-License-Identifier: Apache-2.0
"""`Database`: the SQLite file behind a job store, shared by threads and processes of one machine.

Every change is one transaction, which is on the disk (WAL, synchronous=FULL) before the caller goes on. Changes with
`lasting=False` are the exception: the next start does not need, for example, the progress of a job's steps.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vorta_trt.serving.job_files import keep_private

NAME = "jobs.sqlite3"
SCHEMA = 1
BUSY_SECONDS = 30.0
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    model TEXT NOT NULL,
    request TEXT NOT NULL,
    status TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL,
    flops REAL,
    created_at REAL NOT NULL,
    started_at REAL,
    completed_at REAL,
    expires_at REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    lease_boot TEXT,
    lease_until REAL,
    cancelling INTEGER NOT NULL DEFAULT 0,
    error_code TEXT,
    error_message TEXT,
    report TEXT,
    idempotency_key TEXT,
    fingerprint TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_key ON jobs (user, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, sequence);
CREATE INDEX IF NOT EXISTS jobs_by_user ON jobs (user, sequence);
CREATE TABLE IF NOT EXISTS ends (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    worker TEXT,
    status TEXT NOT NULL,
    error_code TEXT,
    created_at REAL NOT NULL,
    started_at REAL,
    completed_at REAL NOT NULL,
    report TEXT
);
CREATE TABLE IF NOT EXISTS deleted (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, user TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS users (user TEXT PRIMARY KEY, served INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS workers (
    name TEXT PRIMARY KEY,
    process INTEGER NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    boot TEXT NOT NULL,
    seen REAL NOT NULL
);
"""
logger = logging.getLogger(__name__)


def boot() -> str:
    """Id of the machine's current boot: values of `time.monotonic` can be compared only within one boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


class Database:
    """A pool of connections to the file, one for each concurrent user.

    Args:
        folder: Folder of the file. A damaged file is moved aside, see `moved_aside`, and a new one is begun.

    Attributes:
        path: Path of the file.
        moved_aside: Where the damaged file went; None if there was none.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.moved_aside: Path | None = None
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._lock = threading.Lock()
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, a full disk: nothing is damaged
                raise
            self._move_aside(error)
            self._prepare()

    def _prepare(self) -> None:
        self.path.touch(mode=0o600)
        for suffix in ("", "-wal", "-shm"):  # SQLite gives the others the mode of the first
            keep_private(self.path.with_name(self.path.name + suffix), 0o600)
        with self.change() as change:
            version = change.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise ValueError(
                    f"jobs {self.path}: is of version {version}, this vorta-trt knows {SCHEMA}; give another folder"
                )
            for statement in _TABLES.split(";"):
                change.execute(statement)
            if version == 0:
                change.execute(f"PRAGMA user_version = {SCHEMA}")
        result = self.read("PRAGMA quick_check(1)")[0][0]
        if result != "ok":
            raise sqlite3.DatabaseError(result)

    def _move_aside(self, error: Exception) -> None:
        self.close()
        self._closed = False
        self.moved_aside = self.path.with_name(f"{self.path.stem}.damaged-{time.time_ns()}{self.path.suffix}")
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                os.replace(part, self.moved_aside.with_name(self.moved_aside.name + suffix))
        logger.error("jobs %s: is damaged (%s); it was moved to %s", self.path, error, self.moved_aside)

    def read(self, query: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def change(self, *, lasting: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, which begins with the lock for writing.

        Args:
            lasting: Whether the change is on the disk when the block ends. If False, nobody waits for the disk: other
                processes see the change and a killed process does not undo it, but a loss of power may.
        """
        with self._connection() as connection:
            connection.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile. Connections stay open, as many as were ever used at once."""
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError(f"jobs {self.path}: are closed")
            connection = self._idle.pop() if self._idle else None
        connection = connection or _connect(self.path)
        try:
            yield connection
        finally:
            with self._lock:
                keep = not self._closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def close(self) -> None:
        """Closes all connections. One in use is closed by its user afterwards, since SQLite would crash otherwise."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise
    return connection
