# SPDX-License-Identifier: Apache-2.0
"""`Guard`: what every request passes first: names of the server, bodies too long or too slow, headers, a log line.

Requests beyond `MOST_REQUESTS` at a time are refused.

It is plain ASGI: nothing of a body is read before its route asks for it, and downloads are not copied.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vorta_trt.serving.access import Access
from vorta_trt.serving.api_errors import ApiError

MOST_REQUESTS = 900  # at a time
PAUSE_SECONDS = 30.0  # in which no byte of a body comes
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware.

    Args:
        app: What is behind it.
        access: Knows the server's names.
        most_bytes: Of a body.
        less_bytes: Of a body at a path, in the place of `most_bytes`.
        pause_seconds: How long a body may pause.
        most_requests: That are answered at a time.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        most_bytes: int,
        less_bytes: Mapping[str, int] | None = None,
        pause_seconds: float = PAUSE_SECONDS,
        most_requests: int = MOST_REQUESTS,
    ) -> None:
        self._app, self._access, self._most, self._pause = app, access, most_bytes, pause_seconds
        self._less, self._most_requests, self._running = less_bytes or {}, most_requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope)
        most = self._less.get(scope["path"], self._most)
        self._running += 1
        try:
            if self._running > self._most_requests:
                raise ApiError(503, "too many requests at once; try again", "busy", retry_after=5)
            self._access.check_site(request)
            length = request.headers.get("content-length", "0")
            if length.isdecimal() and int(length[:20]) > most:
                raise _too_long(most)
        except ApiError as error:
            refusal = error.response()
            refusal.headers["Connection"] = "close"  # the body is not read
            await refusal(scope, receive, answer)
        else:
            await self._app(scope, self._limited(receive, most), answer)
        finally:
            self._running -= 1
        milliseconds = round(1000 * (time.perf_counter() - began), 2)
        told = {"method": scope["method"], "path": scope["path"], "status": status, "milliseconds": milliseconds}
        logger.debug("request", extra=told)

    def _limited(self, receive: Receive, most: int) -> Receive:
        seen, whole = 0, False

        async def limited() -> Message:
            nonlocal seen, whole
            if whole:  # nothing more comes but the end of the connection, for which downloads wait
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._pause)
            except asyncio.TimeoutError:
                raise ApiError(408, f"body: paused for {self._pause:g} s; send it without", "timeout") from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if seen > most:
                    raise _too_long(most)
            return message

        return limited


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"body: is longer than {most} bytes; send less", "body_too_large")
