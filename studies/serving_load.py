# SPDX-License-Identifier: Apache-2.0
"""Does `vorta-trt serve` keep its promises under load? Every job once and in order, quick answers, flat memory.

    python studies/serving_load.py demo/wan-fp32.onnx                        # 200 jobs of 20 clients, 2 workers
    python studies/serving_load.py demo/wan-fp32.onnx --minutes 120 --clients 2 --jobs 2 --rest 12 --name serving-soak

Clients have a key each, post their jobs as fast as the queue takes them, and poll. A prober, in a process of its own
so that it waits for no client, measures the routes that make no videos meanwhile, in a random order each time. With
--minutes, clients go on, and delete what they fetched: a soak, of which growth is the evidence: memory, threads and
open files of the processes, and what lies in the folder of jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from running_server import RunningServer

from vorta_trt.benchmarks.harness import write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PAUSE = 0.05  # seconds between two rounds of probes; a soak waits ten times as long
EVERY = 2.0  # seconds between two looks at memory; a soak looks ten times less often


class Client:
    """One API key over one connection."""

    def __init__(self, url: str, key: str) -> None:
        self._address, self._key = url.removeprefix("http://"), key
        self._connection = http.client.HTTPConnection(self._address, timeout=120)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, float]:
        """Status, JSON or bytes, and seconds."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        began = time.perf_counter()
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - began
        kind = answer.headers.get("Content-Type", "")
        return answer.status, json.loads(content) if kind.startswith("application/json") else content, seconds


class Load:
    """Clients that ask for videos, and what came of it."""

    def __init__(self, url: str, jobs: int, steps: int, until: float | None, rest: float) -> None:
        self.url, self.jobs, self.steps, self.until, self.rest = url, jobs, steps, until, rest
        self.done: list[dict[str, Any]] = []
        self.refused = 0
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        """Runs one client."""
        client, made = Client(self.url, f"key-{number}"), 0
        while made < self.jobs or (self.until is not None and time.monotonic() < self.until):
            ids: list[str] = []
            while len(ids) < min(self.jobs, 10):
                prompt = f"video {made} of client {number}"
                body = {"prompt": prompt, "num_inference_steps": self.steps, "seed": made}
                status, answer, _ = client.ask("POST", "/v1/videos", body)
                if status == 429:
                    self.refused += 1
                    time.sleep(0.2)
                    continue
                assert status == 200, answer
                ids.append(answer["id"])
                made += 1
            for job in ids:
                while (video := client.ask("GET", f"/v1/videos/{job}")[1])["status"] in ("queued", "in_progress"):
                    time.sleep(0.2)
                status, content, _ = client.ask("GET", f"/v1/videos/{job}/content")
                with self._lock:
                    self.done.append({**video, "client": number, "bytes": len(content), "fetched": status == 200})
                if self.until is not None:
                    client.ask("DELETE", f"/v1/videos/{job}")
            time.sleep(self.rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="bundle or ONNX file")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=10, help="of each client")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--minutes", type=float, help="go on for so long")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds of a client between its batches of jobs")
    parser.add_argument("--name", default="serving-load", help="of the result")
    arguments = parser.parse_args()
    keys = ",".join(f"key-{number}" for number in range(arguments.clients + 1))
    with tempfile.TemporaryDirectory() as folder:
        jobs, log = Path(folder) / "jobs", Path(folder) / "log"
        options = ("--workers", str(arguments.workers), "--queue", "100")
        with RunningServer(
            jobs, str(arguments.target), *options, log=log, environment={"VORTA_TRT_API_KEYS": keys}
        ) as server:
            server.wait_until_ready()
            figures = measure(server, arguments)
            figures["exit_code"] = server.stop()
            figures["tracebacks_in_log"] = log.read_text().count("Traceback")
    path = write_result(RESULTS, arguments.name, figures)
    print(json.dumps({name: value for name, value in figures.items() if name != "memory"}, indent=2))
    print(f"wrote {path}")


def measure(server: RunningServer, arguments: argparse.Namespace) -> dict[str, Any]:
    until = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    load = Load(server.url, arguments.jobs, arguments.steps, until, arguments.rest)
    slower = 1 if until is None else 10
    clients = [threading.Thread(target=load.run, args=(number,)) for number in range(arguments.clients)]
    processes = multiprocessing.get_context("spawn")
    over, told = processes.Event(), processes.SimpleQueue()
    memory: list[dict[str, Any]] = []
    prober = processes.Process(target=probe, args=(server.url, arguments.clients, PAUSE * slower, over, told))
    looker = threading.Thread(target=look, args=(server, EVERY * slower, over, memory))
    began = time.monotonic()
    prober.start()
    for thread in (looker, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    over.set()
    seconds: dict[str, list[float]] = told.get()
    for each in (prober, looker):
        each.join()
    lasted = time.monotonic() - began
    completed = [video for video in load.done if video["status"] == "completed" and video["fetched"]]
    starts: dict[int, list[int]] = defaultdict(list)
    for video in sorted(load.done, key=lambda video: (video["completed_at"], video["id"])):
        starts[video["client"]].append(video["seeds"][0] if video["seeds"] else -1)
    quarter = memory[len(memory) // 4 :]
    return {
        "target": arguments.target.name,
        "clients": arguments.clients,
        "workers": arguments.workers,
        "steps": arguments.steps,
        "rest_seconds": arguments.rest,
        "seconds": round(lasted, 1),
        "jobs": len(load.done),
        "completed": len(completed),
        "distinct": len({video["id"] for video in completed}),
        "refused_with_429_and_asked_again": load.refused,
        "completed_of_each_client": sorted(len(each) for each in starts.values()),
        "milliseconds": {route: percentiles(each) for route, each in sorted(seconds.items())},
        "processors": os.cpu_count(),
        "other_load": [round(value, 2) for value in os.getloadavg()],
        "growth": {
            name: growth([look[name] for look in quarter])
            for name in (
                "server_mib",
                "workers_mib",
                "server_threads",
                "server_files",
                "workers_files",
                "jobs_files",
                "jobs_mib",
            )
        },
        "memory": memory[:: max(1, len(memory) // 200)],
    }


def probe(url: str, number: int, pause: float, over: Event, told: Any) -> None:
    """Asks the routes that make no videos, one after the other; tells the seconds of each when it is over."""
    seconds: dict[str, list[float]] = defaultdict(list)
    client, other = Client(url, f"key-{number}"), Client(url, "key-0")  # one without jobs, one with
    routes = [(client, path) for path in ("/health", "/ready", "/v1/models", "/metrics", "/page/videos", "/")]
    routes += [(other, "/v1/videos?limit=20"), (other, "/v1/videos/ID")]
    newest = ""
    while not over.wait(pause):
        for asking, path in random.sample(routes, len(routes)):
            if path.endswith("ID") and not newest:
                continue
            status, answer, took = asking.ask("GET", path.replace("ID", newest))
            if status == 200:
                seconds[f"GET {path}"].append(took)
            if path.endswith("limit=20") and answer["data"]:
                newest = answer["data"][0]["id"]
    told.put(dict(seconds))


def look(server: RunningServer, every: float, over: Event, memory: list[dict[str, Any]]) -> None:
    """Memory, threads and open files of all processes, and what lies in the folder of jobs."""
    began = time.monotonic()
    while not over.wait(every):
        workers = server.workers()
        memory.append(
            {
                "second": round(time.monotonic() - began),
                "server_mib": resident(server.process.pid),
                "workers_mib": sum(resident(worker) for worker in workers),
                "server_threads": len(os.listdir(f"/proc/{server.process.pid}/task")),
                "server_files": len(os.listdir(f"/proc/{server.process.pid}/fd")),
                "workers_files": sum(len(os.listdir(f"/proc/{worker}/fd")) for worker in workers),
                "jobs_files": len(sizes := sizes_in(server.jobs)),
                "jobs_mib": round(sum(sizes) / 2**20, 2),
            }
        )
        print(memory[-1], file=sys.stderr, flush=True)


def sizes_in(folder: Path) -> list[int]:
    """Bytes of each file; one that goes away meanwhile is left out."""
    sizes = []
    for inside, _, names in os.walk(folder):  # which leaves out what it finds no more
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(os.stat(os.path.join(inside, name)).st_size)
    return sizes


def resident(process: int) -> float:
    """Resident memory of a process, in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * second for second in seconds)
    at = {"p50": 0.5, "p99": 0.99}
    found = {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) for name, share in at.items()}
    return {**found, "max": round(ordered[-1], 2), "count": len(ordered)}


def growth(values: list[float]) -> dict[str, float]:
    """The mean of the last quarter against that of the first."""
    quarter = max(1, len(values) // 4)
    first, last = (sum(part) / len(part) for part in (values[:quarter], values[-quarter:]))
    return {"first": round(first, 1), "last": round(last, 1), "most": max(values)}


if __name__ == "__main__":
    main()
