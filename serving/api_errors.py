# SPDX-License-Identifier: Apache-2.0
"""Errors of the API: `{"error": {"message", "type", "param", "code"}}`, with an HTTP status that clients know."""

from __future__ import annotations

import logging
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from vorta_trt.serving.disk_reserve import is_full
from vorta_trt.serving.job import JobError, JobNotFoundError, KeyReusedError, QueueFullError
from vorta_trt.serving.video_request import RequestError, printable, shown

CODES = {400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CLIENT_GONE = 499
logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong: `message` for people, `code` for programs; `param` is the field."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is refused; the message says why"},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot do it now"},
}


class ApiError(Exception):
    """An error that is the answer to a client.

    Args:
        status: HTTP status code.
        message: Text for people.
        code: Word for programs.
        field: Field of the request that is wrong; None for the request as a whole.
        retry_after: Seconds after which the client may try again; None: nothing is said about that.
    """

    def __init__(
        self, status: int, message: str, code: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(printable(message))
        self.status, self.code, self.field, self.retry_after = status, code, field, retry_after

    def response(self) -> JSONResponse:
        """The HTTP response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        content = {"error": {"message": str(self), "type": kind, "param": self.field, "code": self.code}}
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(content, self.status, headers)


def api_error(error: Exception) -> ApiError | None:
    """The answer to an exception that is no bug; None for a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), error.code, field=error.field)
    if isinstance(error, JobNotFoundError):
        return ApiError(404, str(error), "video_not_found")
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), "queue_full", retry_after=10)
    if isinstance(error, KeyReusedError):
        return ApiError(422, str(error), "idempotency_key_reused", field="Idempotency-Key")
    if is_full(error):
        return ApiError(507, "the server's disk is full; its operator has to make space", "disk_full", retry_after=60)
    if isinstance(error, sqlite3.OperationalError):
        logger.error("job store: %s", error)
        return ApiError(503, "the job store does not answer; try again", "store_unavailable", retry_after=5)
    return None


def install(app: FastAPI) -> None:
    """Adds handlers to an application that give these answers."""

    async def known(request: Request, error: Exception) -> Response:
        answer = api_error(error)
        if answer is None:
            raise error
        return answer.response()

    for kind in (ApiError, RequestError, JobError, OSError, sqlite3.Error):
        app.add_exception_handler(kind, known)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)  # nobody reads it

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problem: dict[str, Any] = dict(error.errors()[0])
        field = ".".join(str(part) for part in problem["loc"][1:]) or None
        message = f"{shown(field or 'request')} {shown(problem.get('input'))}: {problem['msg']}"
        return ApiError(400, message, "invalid_value", field=field).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, "invalid_request" if error.status_code < 500 else "server_error")
        answer = ApiError(error.status_code, str(error.detail), code).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("%s %s: a bug of vorta-trt", request.method, request.url.path, exc_info=error)
        return ApiError(500, "the server has a bug; its log says more", "server_error").response()
