# SPDX-License-Identifier: Apache-2.0
"""`RemoteImages`: fetches images from servers that the operator allows; no other URL of a request is opened."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from vorta_trt.serving.video_request import RequestError, shown

TIMEOUT_SECONDS = 20.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: an allowed server may not choose another one."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


class RemoteImages:
    """Fetches over HTTPS from hosts that are named; no redirects, no proxies.

    Args:
        hosts: Names of the allowed hosts.
        most_bytes: Largest size of an image file.
    """

    def __init__(self, hosts: Sequence[str], most_bytes: int) -> None:
        self._hosts, self._most = {host.lower() for host in hosts}, most_bytes
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))

    def may_fetch(self, url: str) -> bool:
        """Whether a URL is HTTPS at an allowed host."""
        try:
            parts = urlsplit(url)
            plain = parts.username is None and parts.port in (None, 443)
        except ValueError:
            return False
        return parts.scheme == "https" and plain and (parts.hostname or "").lower() in self._hosts

    def fetch(self, url: str, field: str) -> bytes:
        """The bytes behind a URL that `may_fetch` allows.

        Raises:
            RequestError: The image cannot be fetched, or is too large.
        """
        try:
            with self._opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
                content: bytes = answer.read(self._most + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise RequestError(f"{field} {shown(url)}: cannot be fetched ({shown(str(error))})", field) from None
        if len(content) > self._most:
            raise RequestError(f"{field} {shown(url)}: has more than {self._most} bytes", field, "image_too_large")
        return content
