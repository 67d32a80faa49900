# SPDX-License-Identifier: Apache-2.0
"""`Connection`: uvicorn's HTTP connection, with a time limit for a request's headers and a limit of connections."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vorta_trt.serving.api_errors import ApiError

HEAD_SECONDS = 15.0  # from the start of a connection, or a request's first byte, to the end of its headers
MOST_CONNECTIONS = 1000


class Connection(H11Protocol):
    """One connection; see the module. There is no limit per address: all clients of a proxy have one address."""

    head_seconds = HEAD_SECONDS
    most = MOST_CONNECTIONS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._waiting_since = 0.0

    @property
    def waits(self) -> bool:
        """Whether the connection is idle: none of its requests is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        self._deadline = self.loop.call_later(self.head_seconds, self._late)
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.waits:
            self._unset_deadline()
        elif self._deadline is None and not self.transport.is_closing():  # a part of the next request's headers
            self._deadline = self.loop.call_later(self.head_seconds, self._late)

    def on_response_complete(self) -> None:
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers a request that cannot be parsed in the same form as all errors."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        answer = ApiError(400, msg, "invalid_request").response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _late(self) -> None:
        self._deadline = None
        if self.waits:
            self.transport.abort()

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        """Closes the connection that has been idle the longest."""
        idle = [each for each in self.connections if isinstance(each, Connection) and each is not self and each.waits]
        if idle:
            oldest = min(idle, key=lambda each: each._waiting_since)
            self.connections.discard(oldest)
            oldest.transport.abort()
