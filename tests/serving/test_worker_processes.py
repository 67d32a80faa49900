# SPDX-License-Identifier: Apache-2.0
"""What becomes of a worker's job and of the server's readiness when a worker's process ends; workers are stand-ins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_server import wait_for

from vorta_trt.serving import JobStore, ModelSettings, ServeSettings
from vorta_trt.serving import worker_process as processes
from vorta_trt.serving.job import Status
from vorta_trt.serving.worker_process import ENGINE_FAILED, NOT_READY, WorkerProcesses

from .test_job_store import add

# Takes a job, and ends as its prompt says: "70 70 0" is two starts that end with 70, and one that makes the video.
WORKER = """
import json, os, sys, time
sys.path.insert(0, {tests!r})
from vorta_trt.serving import JobStore, ServeSettings
settings, name = ServeSettings.model_validate_json(sys.argv[1]), sys.argv[2]
store = JobStore(settings.jobs)
with open(settings.jobs / "starts", "a") as file:
    file.write("start\\n")
starts = len((settings.jobs / "starts").read_text().splitlines())
ends = (settings.jobs / "ends").read_text().split()
code = int(ends[min(starts, len(ends)) - 1])
store.say(name, "ready" if code != 71 else "failed", {{"reason": "values are not finite"}})
if code == 71:
    sys.exit(code)
while (job := store.claim(name, ["m"])) is None:
    time.sleep(0.02)
if code == 70:
    store.fail(job, "engine_error", "CUDA error: unspecified launch failure")
    sys.exit(code)
if code < 0:
    os.kill(os.getpid(), -code)
with store.files.new_result(job.id, job.attempt) as folder:
    (folder / "result.json").write_text("{{}}")
store.complete(job, {{"seconds": 1, "videos": []}})
store.close()
sys.exit(code or 70)
"""
Run = Callable[[JobStore, str], WorkerProcesses]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(processes, "LONGEST_PAUSE_SECONDS", 0.05)
    started: list[WorkerProcesses] = []

    def start(store: JobStore, ends: str) -> WorkerProcesses:
        script = tmp_path / "worker.py"
        script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
        (store.folder / "ends").write_text(ends)
        model = ModelSettings(source=tmp_path, name="m")
        settings = ServeSettings(models=(model,), jobs=store.folder, api_keys=("secret",), lease_seconds=5)
        workers = WorkerProcesses(settings, store, command=(sys.executable, str(script)))
        started.append(workers)
        workers.start()
        return workers

    yield start
    for workers in started:
        workers.drain()
        assert workers.join(60)


def starts(store: JobStore) -> int:
    path = store.folder / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_an_engine_that_fails_is_started_once_more(store: JobStore, run: Run) -> None:
    failed, done = add(store, "one", "two")
    run(store, f"{ENGINE_FAILED} 0 {ENGINE_FAILED} {ENGINE_FAILED}")
    wait_for(lambda: store.get(done.id).status is Status.COMPLETED)
    assert store.get(failed.id).error_code == "engine_error"
    add(store, "three", "four", "five")
    wait_for(lambda: [worker.state for worker in store.workers()] == ["failed"])
    assert starts(store) == 3 and store.counts()[Status.QUEUED] == 2, "the last video came before two failures"


def test_a_warm_up_that_fails_is_not_tried_again(store: JobStore, run: Run) -> None:
    run(store, str(NOT_READY))
    (worker,) = wait_for(lambda: [worker for worker in store.workers() if worker.state == "failed"])
    time.sleep(0.5)
    assert starts(store) == 1 and worker.detail["reason"] == "values are not finite"


def test_a_worker_that_is_killed_is_started_again_and_its_job_fails_with_a_reason_in_the_end(
    store: JobStore, run: Run
) -> None:
    poison, done = add(store, "poison", "done")
    run(store, "-9 -11 -9 0")
    wait_for(lambda: store.get(done.id).status is Status.COMPLETED)
    job = store.get(poison.id)
    assert (job.status, job.error_code, job.attempt) == (Status.FAILED, "worker_lost", 3)


def test_workers_take_the_gpus_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(worker: int, **pipeline: str) -> str | None:
        model = ModelSettings(source=tmp_path, name="m", pipeline=pipeline)
        return processes.gpu_of(ServeSettings(models=(model,), jobs=tmp_path), worker).get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [shown(worker) for worker in range(3)] == ["2", "5", "2"]
    assert shown(1, device="cuda:0") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert shown(1) is None


def test_small_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY where an accepted socket has a protocol; without, answers wait for 40 ms."""
    import socket

    from vorta_trt.serving.server import listen

    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def test_keys_are_not_among_a_workers_arguments(store: JobStore, run: Run) -> None:
    workers = run(store, "0")
    (process,) = wait_for(lambda: workers.process_ids)
    assert b"secret" not in Path(f"/proc/{process}/cmdline").read_bytes()
    add(store, "one")
    wait_for(lambda: store.counts()[Status.COMPLETED] == 1)
