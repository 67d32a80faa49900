# SPDX-License-Identifier: Apache-2.0
"""`Access`: who may do what: API keys, names of the server, and pages of other sites."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request

from vorta_trt.serving.api_errors import ApiError

COOKIE = "vorta_trt_key"
SAFE = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Access:
    """Checks requests by their headers alone.

    Args:
        keys: API keys; none: everyone who reaches the server may use it.
        hosts: Host names under which the server may be addressed; none: any name. On a loopback address they prevent
            DNS rebinding: a page of another site cannot reach the server under that site's own name.
    """

    def __init__(self, keys: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self._digests = {_digest(key): user_of(key) for key in keys}
        self._hosts = {host.lower() for host in hosts}

    @property
    def wants_key(self) -> bool:
        """Whether there are API keys."""
        return bool(self._digests)

    def check_site(self, request: Request) -> None:
        """Refuses a Host header that names another server, and a change that a page of another site requests.

        Raises:
            ApiError: 403.
        """
        host = _host(request.headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            raise ApiError(403, "Host: is no name of this server; start it with --allow-host NAME", "forbidden")
        origin = request.headers.get("origin")
        if origin is None or request.method in SAFE:
            return
        if urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
            raise ApiError(403, "Origin: pages of other sites may not use this server", "forbidden")

    def user(self, request: Request) -> str:
        """The user who sent a request: a digest of its API key, or "" if the server has no keys.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return ""
        user = self.user_of(_key(request))
        if user is None:
            raise ApiError(401, "API key: is missing or wrong; send Authorization: Bearer KEY", "invalid_api_key")
        return user

    def owner(self, request: Request) -> str:
        """Whom a request counts for in the limits of concurrent requests: the owner of its key, or its address."""
        user = self.user_of(_key(request)) if self._digests else None
        return user or (request.client.host if request.client is not None else "")

    def user_of(self, key: str) -> str | None:
        """The owner of a key, or None. The comparison takes the same time for every key."""
        given, found = _digest(key), None
        for digest, user in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = user
        return found


def _key(request: Request) -> str:
    """The API key of a request, "" where it has none."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host(value: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{value}").hostname or "").lower()
    except ValueError:
        return ""


def user_of(key: str | None) -> str:
    """The name of an API key's owner in jobs: a digest, since the key itself is never written."""
    return "" if key is None else hashlib.sha256(b"vorta-trt " + key.encode()).hexdigest()[:32]
