# SPDX-License-Identifier: Apache-2.0
"""Part of other studies and of the tests: a server in a process of its own, as users start it, and its clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds, of a machine that is busy with other tests


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Calls a function until its result is true, and returns the result."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"{what} did not come about in {seconds} s"
        time.sleep(0.05)
    return found


class RunningServer:
    """`vorta-trt serve` on a free port; a context manager that ends it."""

    def __init__(self, jobs: Path, *arguments: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self.jobs, self.log = jobs, log
        command = [sys.executable, "-m", "vorta_trt.cli", "serve", "--port", "0", "--jobs", str(jobs), *arguments]
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving at "), f"{line!r}: {log.read_text()[-3000:]}"
        self.url = line.split()[-1]

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of an answer."""
        data = None if body is None else json.dumps(body).encode()
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        request = urllib.request.Request(self.url + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                status, content = refused.code, refused.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(number) for task in tasks for number in (task / "children").read_text().split()]

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.ask("/ready")[0] == 200)

    def wait_until_over(self, job: str) -> dict[str, Any]:
        """Waits until a job has ended, and returns it."""

        def over() -> Any:
            status, video = self.ask(f"/v1/videos/{job}")
            assert status == 200, video
            return video if video["status"] in ("completed", "failed", "cancelled") else None

        found: dict[str, Any] = wait_for(over)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)
