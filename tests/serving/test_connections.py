# SPDX-License-Identifier: Apache-2.0
"""Connections that send nothing, or half a header, are closed, and keep nobody out."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from running_server import PATIENCE

from vorta_trt.serving.connections import Connection

from .conftest import Address, served

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _Few(Connection):
    most = 8
    head_seconds = 0.3


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with served(_app, _Few) as listening:
        yield listening


def _ask(connection: socket.socket) -> bytes:
    connection.sendall(GET)
    answer = b""
    while not answer.endswith(b"ok"):
        part = connection.recv(4096)
        assert part, answer
        answer += part
    return answer


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_silent_connections_end_and_keep_nobody_out(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        silent = []
        for number in range(30):
            made = stack.enter_context(socket.create_connection(address, 20))
            if number % 2:
                with suppress(OSError):  # it has ended already
                    made.sendall(b"GET /health HTTP/1.1\r\nHost: ")
            silent.append(made)
        assert all(_ended(each) for each in silent[: 30 - _Few.most]), "they gave way to the others"
        monkeypatch.setattr(_Few, "head_seconds", PATIENCE)
        asking = stack.enter_context(socket.create_connection(address, 20))
        assert _ask(asking).startswith(b"HTTP/1.1 200")
        assert all(_ended(each) for each in silent)
        assert _ask(asking).startswith(b"HTTP/1.1 200"), "one that is used stays"
        monkeypatch.undo()
        asking.sendall(GET[:20])
        assert _ended(asking), "half of its next header"


def test_what_is_no_http_is_answered_as_all_errors_are(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Few, "head_seconds", PATIENCE)
    with socket.create_connection(address, 20) as connection:
        connection.sendall(b"hello\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "invalid_request"
