# SPDX-License-Identifier: Apache-2.0
"""Does `vorta-trt serve` lose, double or halve a job when it is killed? SIGKILL at random moments under load.

    python studies/serving_faults.py demo/wan-fp32.onnx                # 50 kills, of the server or a worker

Of ten kills, seven come at a random moment after a job began to run, and three after the one before. Clients ask with
idempotency keys, and ask again where no answer came, as careful clients do. In the end every job that
was acknowledged must be there once, completed with whole files or failed with a reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
import urllib.error
from functools import partial
from pathlib import Path
from typing import Any

from running_server import RunningServer, wait_for

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.model.video_reader import read_pictures

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FINAL = ("completed", "failed", "cancelled")


class Clients:
    """Ask all the time for videos, whatever becomes of the server."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.server: RunningServer | None = None
        self.over = threading.Event()
        self.known: dict[str, str] = {}  # ids by key
        self.doubled: list[str] = []
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        count = 0
        while not self.over.is_set():
            key = f"client {number} job {count}"
            body = {"prompt": key, "num_inference_steps": self.steps, "seed": count}
            status, answer = self._ask(body, key)
            if status == 200:
                with self._lock:
                    if self.known.setdefault(key, answer["id"]) != answer["id"]:
                        self.doubled.append(key)
                # The same once more, as if the answer had been lost.
                if count % 5 == 0 and (again := self._ask(body, key))[0] == 200 and again[1]["id"] != answer["id"]:
                    self.doubled.append(key)
                count += 1
            time.sleep(0.5 if status == 200 else 0.2)

    def _ask(self, body: Any, key: str) -> tuple[int, Any]:
        server = self.server
        if server is None:
            return 0, None
        try:
            return server.ask("/v1/videos", body, Idempotency_Key=key)
        except (OSError, urllib.error.URLError, ValueError):
            return 0, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="bundle or ONNX file")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--longest", type=float, default=10, help="seconds before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="serving-faults", help="of the result")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    clients = Clients(arguments.steps)
    threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(arguments.clients)]
    killed, hits = {"server": 0, "worker": 0}, 0
    with tempfile.TemporaryDirectory() as folder:
        jobs, log = Path(folder) / "jobs", Path(folder) / "log"

        def start() -> RunningServer:
            server = RunningServer(jobs, str(arguments.target), "--queue", "16", log=log)
            clients.server = server
            return server

        server = start()
        for thread in threads:
            thread.start()
        for number in range(arguments.kills):
            if chance.random() < 0.7:
                wait_for(partial(runs_a_job, server), 300)
            time.sleep(chance.uniform(0, arguments.longest))
            hits += runs_a_job(server)
            workers = server.workers()
            if chance.random() < 0.5 or not workers:
                clients.server = None
                server.process.send_signal(signal.SIGKILL)
                server.__exit__()
                killed["server"] += 1
                server = start()
            else:
                os.kill(workers[0], signal.SIGKILL)
                killed["worker"] += 1
            print(f"{number + 1:3} kills, {hits} of a running job, {len(clients.known)} jobs", flush=True)
        clients.over.set()
        for thread in threads:
            thread.join()
        videos = wait_for(lambda: everything_over(server), 900)
        figures = judge(videos, clients, jobs)
        figures["exit_code"] = server.stop()
        server.__exit__()
        figures["tracebacks_in_log"] = log.read_text().count("Traceback")
    figures = {
        "target": arguments.target.name,
        "kills": killed,
        "kills_while_a_job_ran": hits,
        "seed": arguments.seed,
        "longest": arguments.longest,
        **figures,
    }
    print(json.dumps(figures, indent=2))
    print(f"wrote {write_result(RESULTS, arguments.name, figures)}")


def runs_a_job(server: RunningServer) -> bool:
    with contextlib.suppress(OSError):
        return any(video["status"] == "in_progress" for video in server.ask("/v1/videos?limit=100")[1]["data"])
    return False


def everything_over(server: RunningServer) -> list[dict[str, Any]] | None:
    """All jobs, if none waits or runs."""
    videos: list[dict[str, Any]] = []
    after = ""
    while True:
        page = server.ask(f"/v1/videos?limit=100&order=asc{after}")[1]
        videos += page["data"]
        if not page["has_more"]:
            return videos if all(video["status"] in FINAL for video in videos) else None
        after = f"&after={page['last_id']}"


def judge(videos: list[dict[str, Any]], clients: Clients, jobs: Path) -> dict[str, Any]:
    """What was lost, doubled or halved."""
    ids, prompts = [video["id"] for video in videos], [video["prompt"] for video in videos]
    half = []
    for video in videos:
        results = list((jobs / "videos" / video["id"]).glob("*result*"))
        if video["status"] == "completed":
            whole = len(results) == 1 and len(list(read_pictures(results[0] / "0.mp4"))) == video["num_frames"]
        else:
            whole = not results
        if not whole:
            half.append(video["id"])
    return {
        "jobs_acknowledged": len(clients.known),
        "jobs": len(videos),
        "completed": sum(video["status"] == "completed" for video in videos),
        "failed_with_a_reason": sum(video["status"] == "failed" and bool(video["error"]) for video in videos),
        "lost": len(set(clients.known.values()) - set(ids)),
        "duplicates": len(prompts) - len(set(prompts)) + len(clients.doubled),
        "half_files": len(half),
        "folders_without_a_job": len(set(os.listdir(jobs / "videos")) - set(ids)),
    }


if __name__ == "__main__":
    main()
