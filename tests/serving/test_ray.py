# SPDX-License-Identifier: Apache-2.0
"""Ray Serve with two replicas on the CPU: they share the load, and one that is killed loses no job."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from running_server import PATIENCE, RunningServer, wait_for

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving import JobStore
from vorta_trt.serving.job import NewJob, Status
from vorta_trt.serving.ray_app import RaySettings, Replica, take_back_of_dead
from vorta_trt.serving.settings import ModelSettings

from ..test_documentation import ROOT
from .held_videos import HeldVideos
from .ports import free_ports

pytest.importorskip("ray.serve", reason="needs the package ray[serve]")
pytest.importorskip("av")

DRIVER = """
import sys
import ray
from ray import serve
from vorta_trt.serving.ray_app import RaySettings, build

settings, port, folder = RaySettings.model_validate_json(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=80_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build(settings), name="vorta-trt", route_prefix="/")
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
RAY = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


class RayServer(RunningServer):
    """The application of the settings in a Ray of its own, which ends with the block."""

    def __init__(self, settings: RaySettings, log: Path, environment: dict[str, str]) -> None:
        self.jobs, self.log = settings.jobs, log
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._folder = tempfile.mkdtemp(prefix="ray-")  # whose sockets need a short path
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, settings.model_dump_json(), str(port), self._folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, **RAY, **environment},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) != "ready\n":
            assert line, log.read_text(errors="replace")[-5000:]

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # as it should be
            self.process.wait()
            self.process.stdout.close()
            shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def held(tmp_path: Path) -> HeldVideos:
    return HeldVideos(tmp_path)


@pytest.fixture
def server(text_model: Path, tmp_path: Path, held: HeldVideos) -> Iterator[RayServer]:
    model = ModelSettings(source=text_model, checkpoint=text_model.parent / "checkpoint", name="text")
    settings = RaySettings(
        models=(model,),
        jobs=tmp_path / "jobs",
        gpus=0,
        cpus=0.5,
        max_replicas=2,
        upscale_seconds=0.5,
        lease_seconds=600,  # longer than the tests: nobody waits for its end
    )
    with RayServer(settings, tmp_path / "log", held.environment) as running:
        yield running


@pytest.fixture
def store(server: RayServer) -> Iterator[JobStore]:
    """The jobs of the server, to look at."""
    opened = JobStore(server.jobs, lease_seconds=600)
    yield opened
    opened.close()


def create(server: RayServer, prompt: str, steps: int = 3) -> str:
    status, job = server.ask("/v1/videos", {"prompt": prompt, "num_inference_steps": steps, "seed": 1})
    assert status == 200, job
    return str(job["id"])


def ready(store: JobStore) -> int:
    """How many replicas can make videos."""
    return len([worker for worker in store.workers() if worker.state == "ready"])


def test_two_replicas(server: RayServer, store: JobStore, held: HeldVideos) -> None:
    """The second comes while jobs wait; both share the load; one is killed in a video; a job is cancelled."""
    assert server.ask("/ready") == (200, {"status": "ready", "workers": 1})
    held.at(1)
    jobs = [create(server, f"cat {number}") for number in range(4)]
    wait_for(lambda: len([job for job in map(store.get, jobs) if job.step == 1]) == 2)
    assert ready(store) == 2
    held.release()
    assert {server.wait_until_over(job)["status"] for job in jobs} == {"completed"}
    ends = [store.get(job) for job in jobs]
    assert len({end.worker for end in ends}) == 2
    assert {end.attempt for end in ends} == {1}
    status, video = server.ask(f"/v1/videos/{jobs[0]}/content")
    assert status == 200 and video[4:8] == b"ftyp"

    held.at(1)
    jobs = [create(server, "a dog"), create(server, "a cow")]
    wait_for(lambda: all(job.step == 1 for job in map(store.get, jobs)))
    lost, kept = map(store.get, jobs)
    (process,) = [worker.process for worker in store.workers() if worker.name == lost.worker]
    os.kill(process, signal.SIGKILL)
    held.release()
    assert [server.wait_until_over(job)["status"] for job in jobs] == ["completed", "completed"]
    again, untouched = map(store.get, jobs)
    assert (again.attempt, untouched.attempt) == (2, 1)
    assert again.worker != lost.worker and untouched.worker == kept.worker

    held.at(1)
    job = create(server, "a dog")
    wait_for(lambda: store.get(job).step == 1)
    server.ask(f"/v1/videos/{job}/cancel", method="POST")
    held.release()
    assert server.wait_until_over(job)["status"] == "cancelled"
    assert store.get(job).step < 3
    wait_for(lambda: ready(store) == 2)  # another one came


def test_jobs_of_dead_replicas(tmp_path: Path) -> None:
    """A process that is killed and not yet waited for is as dead as one that is gone; one that lives keeps its job."""
    store = JobStore(tmp_path / "jobs", lease_seconds=600)
    claim = (
        "import sys, time; from vorta_trt.serving import JobStore; store = JobStore(sys.argv[1], lease_seconds=600); "
        "store.say(sys.argv[2], 'ready'); print(store.claim(sys.argv[2], ['text']).id, flush=True); time.sleep(600)"
    )
    for prompt in "abc":
        store.create(NewJob("", "text", {"prompt": prompt}, 1))
    replicas = {}
    for name in ("killed", "gone", "alive"):
        command = [sys.executable, "-c", claim, str(tmp_path / "jobs"), name]
        replicas[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        replicas[name].stdout.readline()  # type: ignore[union-attr]
    try:
        for name in ("killed", "gone"):
            replicas[name].kill()
        replicas["gone"].wait()
        wait_for(lambda: "Z" in Path(f"/proc/{replicas['killed'].pid}/stat").read_text().rpartition(")")[2])
        take_back_of_dead(store)
        assert {job.status for job in store.unfinished() if job.worker != "alive"} == {Status.QUEUED}
        assert [job.status for job in store.unfinished() if job.worker == "alive"] == [Status.IN_PROGRESS]
        assert [worker.name for worker in store.workers()] == ["alive"]
    finally:
        for process in replicas.values():
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        store.close()


def test_the_configuration_file() -> None:
    yaml = pytest.importorskip("yaml")
    schema = pytest.importorskip("ray.serve.schema")
    content = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text(encoding="utf-8"))
    (application,) = schema.ServeDeploySchema.model_validate(content).applications
    assert application.import_path == "vorta_trt.serving.ray_app:build"
    settings = RaySettings.model_validate(application.args)
    assert (settings.gpus, settings.min_replicas, settings.max_replicas) == (1, 1, 8)


def test_on_a_full_disk_a_replica_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vorta_trt.serving.ray_app.FULL_SECONDS", 0)
    asked = []

    def run_next() -> bool:
        asked.append(1)
        raise WriteError(Path("jobs"), errno.ENOSPC)

    replica = Replica.__new__(Replica)
    replica._open, replica._thread = ExitStack(), ThreadPoolExecutor(1)
    replica._worker = SimpleNamespace(name="w", run_next=run_next)  # type: ignore[assignment]
    asyncio.run(replica.work())
    assert asked == [1]
