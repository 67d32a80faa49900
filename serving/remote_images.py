# SPDX-License-Identifier: Apache-2.0
"""`RemoteImages`: images from other servers, for operators who allow some; otherwise no URL of a request is opened."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from vorta_trt.serving.video_request import RequestError, shown

TIMEOUT_SECONDS = 20.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A server that is allowed does not choose another one."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


class RemoteImages:
    """Fetches over HTTPS from hosts that are named; no redirects, no proxies.

    Args:
        hosts: Their names.
        most_bytes: Of an image.
    """

    def __init__(self, hosts: Sequence[str], most_bytes: int) -> None:
        self._hosts, self._most = {host.lower() for host in hosts}, most_bytes
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))

    def may_fetch(self, url: str) -> bool:
        """Whether a URL is of an allowed host."""
        try:
            parts = urlsplit(url)
            plain = parts.username is None and parts.port in (None, 443)
        except ValueError:
            return False
        return parts.scheme == "https" and plain and (parts.hostname or "").lower() in self._hosts

    def fetch(self, url: str, field: str) -> bytes:
        """The bytes behind a URL that `may_fetch` allows.

        Raises:
            RequestError: They cannot be had, or are too many.
        """
        try:
            with self._opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
                content: bytes = answer.read(self._most + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise RequestError(f"{field} {shown(url)}: cannot be fetched ({shown(str(error))})", field) from None
        if len(content) > self._most:
            raise RequestError(f"{field} {shown(url)}: has more than {self._most} bytes", field, "image_too_large")
        return content
