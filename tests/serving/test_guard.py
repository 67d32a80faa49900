# SPDX-License-Identifier: Apache-2.0
"""Bodies that come byte by byte end, with their connections, and one owner cannot take all places."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.datastructures import Headers

from vorta_trt.serving import api_errors
from vorta_trt.serving.access import Access
from vorta_trt.serving.connections import Connection
from vorta_trt.serving.guard import LEAST_BYTES, Guard, _Body

from .conftest import Address, served

PAUSE = 0.5
MOST_OF_ONE = 3
MOST = 1 << 22  # bytes
begun = threading.Semaphore(0)  # a unit for each request whose body is read


def _app(pause: float) -> FastAPI:
    app = FastAPI()
    api_errors.install(app)
    app.add_middleware(Guard, access=Access(["first"]), most_bytes=MOST, pause_seconds=pause, most_of_one=MOST_OF_ONE)

    @app.post("/")
    async def length(request: Request) -> int:
        begun.release()
        return len(await request.body())

    @app.post("/refused")
    async def refused() -> None:
        raise api_errors.ApiError(401, "a key is missing", "invalid_api_key")

    return app


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with served(_app(PAUSE), Connection) as listening:
        yield listening


def _post(connection: socket.socket, length: int, key: str = "", path: str = "/") -> None:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{authorization}Content-Length: {length}\r\n\r\n".encode())


def _answer(connection: socket.socket) -> tuple[int, Any]:
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.rpartition(b"\r\n\r\n")[2]:
        part = connection.recv(1 << 16)
        assert part, answer
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_body_that_comes_byte_by_byte_ends_with_its_connection(address: Address) -> None:
    with socket.create_connection(address, 20) as connection:
        began = time.monotonic()
        _post(connection, 1000)
        with pytest.raises(OSError):  # though each byte comes long before the pause is over
            while time.monotonic() - began < 60:
                connection.sendall(b"a")
                time.sleep(PAUSE / 10)
        assert time.monotonic() - began >= PAUSE


@pytest.mark.parametrize("path", ["/refused", "/nowhere"])
def test_a_client_that_still_sends_reads_why_it_is_refused(
    address: Address, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("vorta_trt.serving.guard.FORGET_SECONDS", 60)  # longer than a busy machine takes for all of it
    with socket.create_connection(address, 20) as connection:
        for _ in range(2):
            _post(connection, MOST, path=path)
            for _ in range(MOST >> 16):
                connection.sendall(b"a" * (1 << 16))
            assert _answer(connection)[0] in (401, 404)


def test_a_body_that_is_announced_is_refused_before_it_is_sent(address: Address) -> None:
    with socket.create_connection(address, 20) as connection:
        connection.sendall(b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert _answer(connection)[0] == 401
        assert connection.recv(1) == b""


def test_a_slow_body_is_told_so(address: Address) -> None:
    with socket.create_connection(address, 20) as connection:
        _post(connection, 1000)
        status, answer = _answer(connection)
        assert (status, answer["error"]["code"]) == (408, "timeout")
        assert connection.recv(1) == b"", "the connection is closed behind the answer"


def test_a_long_body_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("vorta_trt.serving.guard.time", SimpleNamespace(monotonic=lambda: clock))

    async def read(piece: int, seconds: float) -> float:
        """Pieces that come so many seconds after each other; returns when the last one that was taken came."""
        nonlocal clock

        async def receive() -> Any:
            nonlocal clock
            clock += seconds
            return {"type": "http.request", "body": b"a" * piece, "more_body": True}

        clock = 0.0
        body = _Body(receive, Headers({"transfer-encoding": "chunked"}), most=100 * LEAST_BYTES, pause=30.0)
        with pytest.raises(api_errors.ApiError) as refused:
            while True:
                await body.receive()
        assert refused.value.status == (413 if clock > 50 else 408)
        return clock

    assert asyncio.run(read(1, 1.0)) == pytest.approx(31, abs=1)
    assert asyncio.run(read(LEAST_BYTES, 1.0)) == 101, "all of it"


def test_one_owner_has_not_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vorta_trt.serving.guard.FORGET_SECONDS", 0.1)
    with served(_app(60), Connection) as address, ExitStack() as stack:

        def ask(length: int, key: str = "") -> socket.socket:
            connection = stack.enter_context(socket.create_connection(address, 20))
            _post(connection, length, key)
            return connection

        while begun.acquire(blocking=False):
            pass
        held = [ask(1) for _ in range(MOST_OF_ONE)]
        assert all(begun.acquire(timeout=20) for _ in held)
        refused = ask(1)
        status, answer = _answer(refused)
        assert (status, answer["error"]["code"]) == (429, "busy")
        assert refused.recv(1) == b"", "its body did not come"
        other = ask(1, "first")
        for connection in (*held, other):
            connection.sendall(b"a")
            assert _answer(connection) == (200, 1)
        again = ask(0)
        assert _answer(again) == (200, 0)
        _post(again, 0)
        assert _answer(again) == (200, 0), "a connection whose body was read stays"
