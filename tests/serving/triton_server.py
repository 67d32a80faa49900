# SPDX-License-Identifier: Apache-2.0
"""The real `tritonserver` of the package nvidia-pytriton, on loopback ports, with its Python backend."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from .ports import free_ports

# Triton's Python backend aborts now and then as it starts (boost's lock_exception, its issue 8882). Once one of two
# models had not loaded after five minutes, without a word, where 15 to 40 s are usual; why was not found.
STARTS = 3
LONGEST = 120.0  # seconds until a server is ready, on a machine that is busy with other tests


@dataclass(frozen=True)
class TritonServer:
    """A server that is ready.

    Attributes:
        process: Process of the server.
        http: Host and port of HTTP.
        grpc: Host and port of gRPC.
        metrics: URL of the server's metrics.
        log: File with the server's output.
    """

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str
    log: Path

    def has_crashed(self) -> bool:
        """Whether the server ends by a segmentation fault of its own.

        Seen once, in `TRITONBACKEND_ResponseSend` of its C++, as it sent an answer on a gRPC stream.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        return self.process.poll() is not None and b"Signal (11) received" in self.log.read_bytes()

    def samples(self) -> dict[str, float]:
        """The values of our metrics, by name and labels as the endpoint writes them."""
        text = urllib.request.urlopen(self.metrics, timeout=10).read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("vorta_")]
        return {name: float(value) for name, _, value in lines}

    def stubs(self) -> list[int]:
        """Process ids of the instances of Python models."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "triton_python_backend_stub"], capture_output=True, text=True
        )
        return [int(line) for line in found.stdout.split()]


def _backends(package: Path, folder: Path) -> Path:
    """The Python backend, with the stub of this Python beside it."""
    place = folder / "backends" / "python"
    place.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in (
        *(package / "backends" / "python").iterdir(),
        package / "python_backend_stubs" / version / "triton_python_backend_stub",
    ):
        (place / file.name).symlink_to(file)
    return place.parent


@contextmanager
def triton_server(repository: Path, folder: Path) -> Iterator[TritonServer]:
    """Starts a server and waits until all models are ready; skips the test where the package is not installed.

    Args:
        repository: Repository of the models.
        folder: Empty folder for the log and the backend.
    """
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the real server of the package nvidia-pytriton, which is not installed")
    package = Path(found.submodule_search_locations[0])
    server = package / "tritonserver"
    libraries = [
        sysconfig.get_config_var("LIBDIR"),
        str(package.parent / "nvidia_pytriton.libs"),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    backends = _backends(server, folder)
    log = folder / "triton.log"
    for start in range(STARTS):
        http, grpc, metrics = free_ports(3)
        command = [
            server / "bin" / "tritonserver",
            *("--model-repository", repository, "--backend-directory", backends),
            *("--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1", "--metrics-address", "127.0.0.1"),
            *("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--metrics-interval-ms", 100),
            *("--allow-gpu-metrics", "false", "--exit-on-error", "true", "--exit-timeout-secs", 1),
        ]
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            ready = _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready")
            if not ready and process.poll() in (-signal.SIGABRT, None) and start + 1 < STARTS:
                continue
            assert ready, f"tritonserver is not ready:\n{log.read_text(errors='replace')[-8000:]}"
            yield TritonServer(
                process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"http://127.0.0.1:{metrics}/metrics", log
            )
            return
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with suppress(ProcessLookupError):  # instances that outlive it
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Waits until the server answers; False if it ended instead, or takes too long."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False
