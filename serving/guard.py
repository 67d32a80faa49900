# SPDX-License-Identifier: Apache-2.0
"""`Guard`: the middleware that every request passes first. It checks names and bodies, adds headers and logs.

More than `MOST_REQUESTS` concurrent requests are refused, and more than `MOST_OF_ONE` of one API key or address. The
part of a body that its route did not read is read and dropped, so that a client that is still sending can read the
answer. This lasts only a short while, then the connection is closed: otherwise a client could hold it open byte by
byte.

It is plain ASGI: a body is not read before its route asks for it, and downloads are not copied.
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
MOST_OF_ONE = 300  # of one API key; without keys, of one address, which may be a proxy's
PAUSE_SECONDS = 30.0  # the longest time without a byte of a body
FORGET_SECONDS = 2.0  # the longest time for reading the rest of a body that its route did not read
LEAST_BYTES = 16 << 10  # of a body per second, after the first `PAUSE_SECONDS`
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware.

    Args:
        app: The ASGI application that gets the requests that pass.
        access: Checks the server's names, and tells whom a request counts for.
        most_bytes: Largest size of a body.
        less_bytes: Largest size of a body by path, in place of `most_bytes`.
        pause_seconds: Longest pause within a body. A whole body may take this long, and a second more for each
            `LEAST_BYTES` that came.
        most_requests: Largest number of concurrent requests.
        most_of_one: Largest number of concurrent requests of one API key or address.
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
        """Handles one request."""
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
                if request.headers.get("expect", "").lower() != "100-continue":  # such a client has not sent its body
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
        receive: Receives the server's next ASGI message.
        headers: Headers of the request.
        most: Largest number of bytes.
        pause: Longest pause in seconds; see `Guard`.

    Attributes:
        whole: Whether the body was read to its end; True from the start if the request has no body.
    """

    def __init__(self, receive: Receive, headers: Headers, most: int, pause: float) -> None:
        self.whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._receive, self._most, self._pause = receive, most, pause
        self._seen, self._began, self._late = 0, time.monotonic(), False

    async def receive(self) -> Message:
        """The next part of the body; after its end, the message that the client has gone, for which downloads wait.

        Raises:
            ApiError: The body is too long, or comes too slowly.
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
        """Reads and drops the rest of the body, if it comes soon."""
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
