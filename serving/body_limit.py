# SPDX-License-Identifier: Apache-2.0
"""`BodyLimit`: requests whose bodies are too long, or come too slowly, are refused before they fill memory or disk."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vorta_trt.serving.api_errors import ApiError

PAUSE_SECONDS = 30.0  # in which no byte of a body comes


class BodyLimit:
    """ASGI middleware.

    Args:
        app: What is behind it.
        most_bytes: Of a body.
        pause_seconds: How long a body may pause.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._app, self._most, self._pause = app, most_bytes, pause_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length[:20]) > self._most:
            await self._refuse(scope, receive, send)
            return
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
                if seen > self._most:
                    raise self._error()
            return message

        await self._app(scope, limited, send)

    def _error(self) -> ApiError:
        return ApiError(413, f"body: is longer than {self._most} bytes; send less", "body_too_large")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._error().response()
        answer.headers["Connection"] = "close"
        await answer(scope, receive, send)
