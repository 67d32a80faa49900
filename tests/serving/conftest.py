# SPDX-License-Identifier: Apache-2.0
"""Tiny models behind a catalogue, job stores in fresh folders, and a running server."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vorta_trt.serving import Catalogue, JobStore, Worker

    from ..kept import Kept
    from ..tiny import Tiny

Fill = Callable[[Callable[[], bool]], None]
Address = tuple[str, int]


@contextmanager
def served(app: Any, connection: type) -> Iterator[Address]:
    """Runs an application in uvicorn in a thread, with a class of connections; yields the address where it listens."""
    import uvicorn

    from vorta_trt.serving.server import listen

    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(
            uvicorn.Config(app, http=connection, lifespan="off", log_config=None, timeout_keep_alive=30)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def text_model(tiny_wan: Tiny) -> Path:
    return tiny_wan.export("fp32")


@pytest.fixture(scope="session")
def image_model(kept: Kept) -> Path:
    from ..tiny import make_tiny

    return make_tiny(kept, "wan channels").export("fp32")


@pytest.fixture(scope="session")
def shared_model(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `text_model` whose metadata says that it was exported for three GPUs; no test runs it."""
    import onnx

    from vorta_trt.export.onnx_file import data_file, read_onnx

    path = tmp_path_factory.mktemp("shared") / "shared.onnx"
    exported = read_onnx(text_model)
    assert exported.metadata is not None
    onnx.helper.set_model_props(exported.model, exported.metadata.model_copy(update={"ulysses": 3}).to_metadata_props())
    onnx.save(exported.model, path)
    (path.parent / data_file(text_model).name).symlink_to(data_file(text_model))
    return path


@pytest.fixture(scope="session")
def catalogue(text_model: Path, image_model: Path) -> Catalogue:
    from vorta_trt.serving import Catalogue, ModelSettings

    return Catalogue([ModelSettings(source=text_model, name="text"), ModelSettings(source=image_model, name="image")])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    from vorta_trt.serving import JobStore

    made = JobStore(tmp_path / "jobs", lease_seconds=60)
    yield made
    made.close()


@pytest.fixture
def working() -> Callable[[Worker], Any]:
    """Runs a worker in a thread until the block ends."""

    @contextmanager
    def run(worker: Worker) -> Iterator[list[Any]]:
        stop, outcome = threading.Event(), []
        thread = threading.Thread(target=lambda: outcome.append(worker.run(stop)))
        thread.start()
        try:
            yield outcome
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive(), "the worker hangs"

    return run


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Makes SQLite fail as on a full disk, until a function returns true."""
    from vorta_trt.serving.disk_reserve import Reserve
    from vorta_trt.serving.job_database import Database

    def make(has_space: Callable[[], bool]) -> None:
        change = Database.change

        def full(self: Database, *, lasting: bool = True) -> AbstractContextManager[sqlite3.Connection]:
            if not has_space():
                raise sqlite3.OperationalError("database or disk is full")
            return change(self, lasting=lasting)

        monkeypatch.setattr(Database, "change", full)
        monkeypatch.setattr(Reserve, "is_short", lambda self: not has_space())

    return make
