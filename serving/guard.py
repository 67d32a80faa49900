# SPDX-License-Identifier: Apache-2.0
"""`Guard`: what every request passes first: names of the server, bodies too long or too slow, headers, a log line.

Requests beyond `MOST_REQUESTS` at a time are refused, and those beyond `MOST_OF_ONE` of one API key or address. What a
route leaves of a body is read and forgotten, so that a client that still sends can read the answer, but for a short
while: then the connection is closed, or it could be held open byte by byte.

It is plain ASGI: nothing of a body is read before its route asks for it, and downloads are not copied.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vorta_trt.serving.access import Access
from vorta_trt.serving.api_errors import ApiError

MOST_REQUESTS = 900  # at a time
MOST_OF_ONE = 300  # of an API key, or where there is none of an address, which may be a proxy's
PAUSE_SECONDS = 30.0  # in which no byte of a body comes
FORGET_SECONDS = 2.0  # in which the rest of a body is read that no route wants
LEAST_BYTES = 16 << 10  # of a body in every second beyond the first `PAUSE_SECONDS`
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware.

    Args:
        app: What is behind it.
        access: Knows the server's names.
        most_bytes: Of a body.
        less_bytes: Of a body at a path, in the place of `most_bytes`.
        pause_seconds: How long a body may pause; a whole one may take so long, and longer as `LEAST_BYTES` allows.
        most_requests: That are answered at a time.
        most_of_one: Of these, of one API key or address.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        most_bytes: int,
        less_bytes: Mapping[str, int] | None = None,
        pause_seconds: float = PAUSE_SECONDS,
        most_requests: int = MOST_REQUESTS,
        most_of_one: int = MOST_OF_ONE,
    ) -> None:
        self._app, self._access, self._most, self._pause = app, access, most_bytes, pause_seconds
        self._less, self._most_requests, self._most_of_one = less_bytes or {}, most_requests, most_of_one
        self._running: Counter[str] = Counter()  # by owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        request = Request(scope)
        most = self._less.get(scope["path"], self._most)
        body = _Body(receive, request.headers, most, self._pause)
        owner = self._access.owner(request)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request.headers.get("expect", "").lower() != "100-continue":  # else it is not sent at all
                    await body.forget()
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not body.whole:
                    headers["Connection"] = "close"
            await send(message)

        self._running[owner] += 1
        try:
            if self._running.total() > self._most_requests:
                raise ApiError(503, "too many requests at once; try again", "busy", retry_after=5)
            if self._running[owner] > self._most_of_one:
                raise ApiError(429, "too many of your requests at once; wait for some", "busy", retry_after=5)
            self._access.check_site(request)
            length = request.headers.get("content-length", "0")
            if length.isdecimal() and int(length[:20]) > most:
                raise _too_long(most)
        except ApiError as error:
            await error.response()(scope, receive, answer)
        else:
            await self._app(scope, body.receive, answer)
        finally:
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
        milliseconds = round(1000 * (time.perf_counter() - began), 2)
        told = {"method": scope["method"], "path": scope["path"], "status": status, "milliseconds": milliseconds}
        logger.debug("request", extra=told)


class _Body:
    """The body of a request, as its route reads it.

    Args:
        receive: Of the server.
        headers: Of the request.
        most: Bytes of it.
        pause: Seconds in which some of it must come; see `Guard`.

    Attributes:
        whole: Whether it was read to its end; one that there is not, was.
    """

    def __init__(self, receive: Receive, headers: Headers, most: int, pause: float) -> None:
        self.whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._receive, self._most, self._pause = receive, most, pause
        self._seen, self._began, self._late = 0, time.monotonic(), False

    async def receive(self) -> Message:
        """The next part of it; behind its end, the end of the connection, for which downloads wait.

        Raises:
            ApiError: It is too long, or too slow.
        """
        if self.whole:
            return await self._receive()
        left = self._began + self._pause + self._seen / LEAST_BYTES - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, min(left, self._pause)))
        except asyncio.TimeoutError:
            self._late = True
            raise ApiError(
                408,
                f"body: {self._seen} bytes came in {time.monotonic() - self._began:.0f} s; send it without a pause of "
                f"{self._pause:g} s, and at least {LEAST_BYTES} bytes a second",
                "timeout",
            ) from None
        self._take(message)
        if self._seen > self._most:
            raise _too_long(self._most)
        return message

    async def forget(self) -> None:
        """Reads the rest of it, if that comes soon."""
        end = time.monotonic() + FORGET_SECONDS
        while not (self.whole or self._late or self._seen > self._most):
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                return
            if message["type"] != "http.request":  # the client is gone
                return
            self._take(message)

    def _take(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self.whole = not message.get("more_body", False) and self._seen <= self._most


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"body: is longer than {most} bytes; send less", "body_too_large")
