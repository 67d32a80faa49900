# SPDX-License-Identifier: Apache-2.0
"""What becomes of a worker's job and of the server's readiness when a worker's process ends; workers are stand-ins.

Leases are longer than any pause of a busy machine; a test puts the server's clock on instead of waiting for their end.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_server import wait_for

from vorta_trt.plugins.errors import VortaError
from vorta_trt.serving import Catalogue, JobStore, ModelSettings, ServeSettings, worker_states
from vorta_trt.serving import worker_process as processes
from vorta_trt.serving.catalogue import ServedModel
from vorta_trt.serving.job import Status
from vorta_trt.serving.triton.repository import TritonSettings, write_model
from vorta_trt.serving.worker_gpus import check_engines_have_a_gpu, check_gpus_of_workers, gpus_of
from vorta_trt.serving.worker_process import ENGINE_FAILED, NOT_READY, WorkerProcesses
from vorta_trt.serving.worker_states import HUNG, WorkerState

from ..tiny import Tiny
from .conftest import Fill
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
while starts > 1 and (settings.jobs / "held").exists():
    time.sleep(0.02)
ends = (settings.jobs / "ends").read_text().split()
code = int(ends[min(starts, len(ends)) - 1])
store.say(name, "ready" if code != 71 else "failed", {{"reason": "values are not finite"}})
if code == 71:
    sys.exit(code)
while (job := store.claim(name, ["m"])) is None:
    store.say(name, "ready")
    time.sleep(0.02)
if code == {hung}:
    store.say(name, "hung", {{"reason": "no step has begun"}})
    time.sleep(600)
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
# Hears nothing until it may, and says then that it has heard.
HEARS = """
import threading, time
from pathlib import Path
from vorta_trt.serving import worker_process
folder, wake = Path({folder!r}), threading.Event()
(folder / "started").touch()
while not (folder / "may hear").exists():
    time.sleep(0.02)
threading.Thread(target=worker_process._hear_server, args=(wake,), daemon=True).start()
wake.wait()
(folder / "heard").touch()
time.sleep(600)
"""
HANGS = 99
LEASE = 100.0  # seconds
Run = Callable[..., WorkerProcesses]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(processes, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0.05)
    started: list[WorkerProcesses] = []

    def start(store: JobStore, ends: str) -> WorkerProcesses:
        script = tmp_path / "worker.py"
        script.write_text(WORKER.format(tests=str(Path(__file__).parent), hung=HANGS))
        (store.folder / "ends").write_text(ends)
        model = ModelSettings(source=tmp_path, name="m")
        settings = ServeSettings(models=(model,), jobs=store.folder, api_keys=("secret",), lease_seconds=LEASE)
        workers = WorkerProcesses(settings, store, command=(sys.executable, str(script)))
        started.append(workers)
        workers.start()
        return workers

    yield start
    for workers in started:
        workers.drain()
        assert workers.join(60)


class Clock:
    """That of the server's process, so many seconds ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.time_ns = time.time_ns

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(processes, "time", clock)
    monkeypatch.setattr(worker_states, "time", clock)
    return clock


class Held:
    """Every worker but the first waits where it starts, until this is released."""

    def __init__(self, store: JobStore) -> None:
        self._file = store.folder / "held"
        self._file.touch()

    def release(self) -> None:
        self._file.unlink()


def is_stopped(workers: WorkerProcesses) -> bool:
    """Whether there is a worker, and it stands still, by SIGSTOP."""
    states = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[0] for each in workers.process_ids]
    return states == ["T"]


def starts(store: JobStore) -> int:
    path = store.folder / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_an_engine_that_fails_is_started_again_however_often(store: JobStore, run: Run) -> None:
    jobs = add(store, "one", "two", "three", "four")
    run(store, f"{ENGINE_FAILED} {ENGINE_FAILED} {ENGINE_FAILED} 0")
    wait_for(lambda: store.get(jobs[-1].id).status is Status.COMPLETED)
    assert [store.get(job.id).error_code for job in jobs] == ["engine_error"] * 3 + [None]


def test_a_warm_up_that_fails_is_tried_again_and_the_reason_is_told_meanwhile(store: JobStore, run: Run) -> None:
    held = Held(store)
    (job,) = add(store, "one")
    run(store, f"{NOT_READY} 0")
    (worker,) = wait_for(lambda: [worker for worker in store.workers() if worker.name == "no-worker-0"])
    assert (worker.state, worker.detail["reason"]) == ("failed", "values are not finite")
    held.release()
    wait_for(lambda: store.get(job.id).status is Status.COMPLETED)
    assert starts(store) >= 2


def test_a_worker_that_says_that_it_hangs_is_killed_and_another_one_makes_its_video(
    store: JobStore, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (job,) = add(store, "one")
    run(store, f"{HANGS} 0")
    wait_for(lambda: store.get(job.id).status is Status.COMPLETED)
    assert starts(store) == 2 and "is killed: no step has begun" in caplog.text


def test_a_worker_that_says_nothing_is_killed_and_another_one_makes_its_video(
    store: JobStore, run: Run, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store.lease_seconds, held = LEASE, Held(store)
    (job,) = add(store, "one")
    workers = run(store, f"{-signal.SIGSTOP} 0")
    wait_for(lambda: is_stopped(workers))
    clock.ahead = 2 * LEASE + 1
    wait_for(lambda: starts(store) == 2)
    clock.ahead = 0.0
    held.release()
    wait_for(lambda: store.get(job.id).status is Status.COMPLETED)
    assert starts(store) == 2 and "no sign of life for 200 s" in caplog.text


def test_a_worker_on_a_full_disk_is_not_taken_for_a_dead_one(
    store: JobStore,
    run: Run,
    fill: Fill,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_full, looks, look = threading.Event(), 0, store.workers

    def workers() -> list[WorkerState]:
        nonlocal looks
        looks += 1
        return look()

    monkeypatch.setattr(store, "workers", workers)
    fill(lambda: not is_full.is_set())
    store.lease_seconds, held = 10 * LEASE, Held(store)
    (job,) = add(store, "one")
    running = run(store, f"{-signal.SIGSTOP} 0")
    wait_for(lambda: is_stopped(running))
    is_full.set()
    clock.ahead = 2 * LEASE + 1
    before = looks
    wait_for(lambda: looks > before + 2)
    assert starts(store) == 1 and "no sign of life" not in caplog.text
    is_full.clear()
    clock.ahead += 2 * LEASE + 1
    wait_for(lambda: starts(store) == 2)
    clock.ahead = 0.0
    held.release()
    wait_for(lambda: store.get(job.id).status is Status.COMPLETED)
    assert starts(store) == 2 and "no sign of life for 200 s" in caplog.text


def test_workers_hear_that_a_job_was_queued_and_one_that_does_not_hear_holds_nobody_up(
    tmp_path: Path, store: JobStore
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(HEARS.format(folder=str(tmp_path)))
    settings = ServeSettings(models=(ModelSettings(source=tmp_path, name="m"),), jobs=store.folder)
    workers = WorkerProcesses(settings, store, command=(sys.executable, str(script)))
    workers.wake()  # there is none
    workers.start()
    try:
        wait_for((tmp_path / "started").exists)
        for _ in range(100_000):  # more than a pipe takes
            workers.wake()
        assert not (tmp_path / "heard").exists()
        (tmp_path / "may hear").touch()
        wait_for((tmp_path / "heard").exists)
    finally:
        workers.drain()
        assert workers.join(60)


def test_a_worker_that_starts_has_longer(tmp_path: Path, store: JobStore) -> None:
    model = ModelSettings(source=tmp_path, name="m")
    settings = ServeSettings(models=(model,), jobs=tmp_path, lease_seconds=30, stall_seconds=600)
    find = WorkerProcesses(settings, store)._fault
    for state, silent, is_killed in [
        (None, 599, False),
        (None, 601, True),
        ("starting", 599, False),
        ("starting", 601, True),
        ("ready", 59, False),
        ("ready", 61, True),
        (HUNG, 0, True),
    ]:
        said = None if state is None else WorkerState("w", 1, state, {"reason": "hangs"}, 0.0)
        assert (find(said, silent) is not None) == is_killed, (state, silent)


def test_a_worker_that_is_killed_is_started_again_and_its_job_fails_with_a_reason_in_the_end(
    store: JobStore, run: Run
) -> None:
    poison, done = add(store, "poison", "done")
    run(store, "-9 -11 -9 0")
    wait_for(lambda: store.get(done.id).status is Status.COMPLETED)
    job = store.get(poison.id)
    assert (job.status, job.error_code, job.attempt) == (Status.FAILED, "worker_lost", 3)


def test_workers_take_the_gpus_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(worker: int, gpus: int = 1, **pipeline: str) -> str | None:
        model = ModelSettings(source=tmp_path, name="m", pipeline=pipeline)
        return gpus_of(ServeSettings(models=(model,), jobs=tmp_path), worker, gpus).get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [shown(worker) for worker in range(3)] == ["2", "5", "2"]
    assert shown(1, device="cuda:0") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert shown(1) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,6")
    assert [shown(worker, gpus=2) for worker in range(3)] == ["0,1", "2,3", "0,1"]
    assert shown(0, gpus=6) is None


def test_an_engine_needs_a_gpu_before_anything_starts(tiny_wan: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    source = {"source": tiny_wan.bundle, "checkpoint": tiny_wan.checkpoint}
    with pytest.raises(VortaError, match=r"is an engine of TensorRT, and torch .* finds no GPU here .*--executor onnx"):
        check_engines_have_a_gpu(Catalogue([ModelSettings(**source)]))
    check_engines_have_a_gpu(Catalogue([ModelSettings(**source, pipeline={"executor": "onnxruntime"})]))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check_engines_have_a_gpu(Catalogue([ModelSettings(**source)]))


def test_workers_of_several_gpus_share_none(text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Catalogue([ModelSettings(source=text_model, gpus=2)])
    check_gpus_of_workers(served, 3)  # on the CPU, which they share
    monkeypatch.setattr(ServedModel, "kind", "cuda")
    for found, workers, remedy in [(5, 2, None), (5, 3, "give --workers 2"), (1, 1, "a worker needs 2")]:
        monkeypatch.setattr("torch.cuda.device_count", lambda found=found: found)
        if remedy is None:
            check_gpus_of_workers(served, workers)
            continue
        with pytest.raises(
            ValueError, match=f"workers {workers} of 2 GPUs each: they need .* finds {found} .*{remedy}"
        ):
            check_gpus_of_workers(served, workers)
    with pytest.raises(ValueError, match="gpus 2: the GPUs of a worker make the videos of one model"):
        Catalogue([ModelSettings(source=text_model, name=name, gpus=2) for name in "ab"])
    with pytest.raises(ValueError, match="'cuda:1' of model m: each of its 2 processes has the GPU of its number"):
        Catalogue([ModelSettings(source=text_model, name="m", gpus=2, pipeline={"device": "cuda:1"})])
    with pytest.raises(ValueError, match="gpus 4: the engine is built for one GPU; give 2 with guidance in parallel"):
        Catalogue([ModelSettings(source=text_model, gpus=4)])


def test_a_model_that_is_built_for_several_gpus(text_model: Path, shared_model: Path, tmp_path: Path) -> None:
    shared = ModelSettings(source=shared_model, checkpoint=text_model.parent / "checkpoint")
    assert Catalogue([shared]).gpus == 3
    assert Catalogue([shared.model_copy(update={"gpus": 6})]).gpus == 6
    for gpus in (1, 2):
        with pytest.raises(ValueError, match=f"gpus {gpus}: the engine is built for 3 GPUs; give 3 or 6 with guidance"):
            Catalogue([shared.model_copy(update={"gpus": gpus})])
    with pytest.raises(ValueError, match="is built for 3 GPUs .* an instance of a model in Triton has one"):
        write_model(tmp_path, shared, TritonSettings())


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
