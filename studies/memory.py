# SPDX-License-Identifier: Apache-2.0
"""Host memory of this process, and the peak of a command with all its children."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path


class PeakMemory:
    """Runs a command and samples the memory of its whole process tree.

    `peak_rss_gib` counts every resident page, the page cache of memory-mapped weights included, as `time -v` would;
    `peak_anonymous_gib` counts what the kernel cannot drop: heap and private copies.
    """

    def __init__(self, command: list[str], interval: float = 0.05) -> None:
        self.command = command
        self.interval = interval
        self.peak_rss_gib = 0.0
        self.peak_anonymous_gib = 0.0
        self.seconds = 0.0

    def run(self) -> PeakMemory:
        """Raises subprocess.CalledProcessError where the command fails."""
        start = time.perf_counter()
        process = subprocess.Popen(self.command)
        sampler = threading.Thread(target=self._sample, args=(process,))
        sampler.start()
        code = process.wait()
        sampler.join()
        self.seconds = time.perf_counter() - start
        if code:
            raise subprocess.CalledProcessError(code, self.command)
        return self

    def _sample(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            rss = anonymous = 0
            for pid in _tree(process.pid):
                fields = _status(pid)
                rss += fields.get("VmRSS", 0)
                anonymous += fields.get("RssAnon", 0)
            self.peak_rss_gib = max(self.peak_rss_gib, rss / 2**20)
            self.peak_anonymous_gib = max(self.peak_anonymous_gib, anonymous / 2**20)
            time.sleep(self.interval)


def resident_mib() -> float:
    """Memory of this process, in MiB."""
    return _status(os.getpid())["VmRSS"] / 2**10


def _tree(pid: int) -> list[int]:
    pids = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                pids += _tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # the process ended while it was looked at
    return pids


def _status(pid: int) -> dict[str, int]:
    """The kB lines of /proc/PID/status."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
