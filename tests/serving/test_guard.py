# SPDX-License-Identifier: Apache-2.0
"""Bodies that come byte by byte end, with their connections, and one owner cannot take all places."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI, Request

from vorta_trt.serving import api_errors
from vorta_trt.serving.access import Access
from vorta_trt.serving.connections import Connection
from vorta_trt.serving.guard import LEAST_BYTES, Guard

from .conftest import Address, served

PAUSE = 0.5
MOST_OF_ONE = 3
begun = threading.Semaphore(0)  # a unit for each request whose body is read


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    app = FastAPI()
    api_errors.install(app)
    app.add_middleware(
        Guard, access=Access(["first"]), most_bytes=1 << 22, pause_seconds=PAUSE, most_of_one=MOST_OF_ONE
    )

    @app.post("/")
    async def length(request: Request) -> int:
        begun.release()
        return len(await request.body())

    with served(app, Connection) as listening:
        yield listening


def _post(connection: socket.socket, length: int, key: str = "") -> None:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    connection.sendall(f"POST / HTTP/1.1\r\nHost: a\r\n{authorization}Content-Length: {length}\r\n\r\n".encode())


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
        _post(connection, 1000)
        began = time.monotonic()
        with pytest.raises(OSError):  # though each byte comes long before the pause is over
            while time.monotonic() - began < 20:
                connection.sendall(b"a")
                time.sleep(PAUSE / 10)
        assert PAUSE <= time.monotonic() - began < 10


def test_a_slow_body_is_told_so(address: Address) -> None:
    with socket.create_connection(address, 20) as connection:
        _post(connection, 1000)
        status, answer = _answer(connection)
        assert (status, answer["error"]["code"]) == (408, "timeout")
        assert connection.recv(1) == b"", "the connection is closed behind the answer"


def test_a_long_body_may_take_longer(address: Address) -> None:
    with socket.create_connection(address, 20) as connection:
        pieces = 16
        _post(connection, pieces * 4 * LEAST_BYTES)
        for _ in range(pieces):
            connection.sendall(b"a" * 4 * LEAST_BYTES)
            time.sleep(1.5 * PAUSE / pieces)
        assert _answer(connection) == (200, pieces * 4 * LEAST_BYTES)


def test_one_owner_has_not_all_places(address: Address) -> None:
    with ExitStack() as stack:

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
        assert refused.recv(1) == b""
        other = ask(1, "first")
        for connection in (*held, other):
            connection.sendall(b"a")
            assert _answer(connection) == (200, 1)
        again = ask(0)
        assert _answer(again) == (200, 0)
        _post(again, 0)
        assert _answer(again) == (200, 0), "a connection whose body was read stays"
