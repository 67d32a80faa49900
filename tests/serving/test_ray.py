# SPDX-License-Identifier: Apache-2.0
"""Ray Serve with two replicas of two ranks on the CPU: they share the load, and one that is killed loses no job."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running_server import PATIENCE, RunningServer, wait_for

from vorta_trt.model.write_errors import WriteError
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
from vorta_trt.serving import JobStore
from vorta_trt.serving.job import NewJob, Status
from vorta_trt.serving.ray_app import RaySettings, Replica, build, is_alive, take_back_of_dead
from vorta_trt.serving.ray_resources import ReplicaResources
from vorta_trt.serving.settings import ModelSettings
from vorta_trt.serving.thumbnail import write_thumbnail
from vorta_trt.serving.worker_states import WorkerState

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
resources = {"num_cpus": 2, "num_gpus": 4, "object_store_memory": 80_000_000}
ray.init(address="local", include_dashboard=False, _temp_dir=folder, **resources)
serve.start(http_options={"host": "127.0.0.1", "port": port})
try:
    build(settings.model_copy(update={"min_replicas": 3}))
except ValueError as error:
    print(error)
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
        self.refused = ""
        while (line := self.process.stdout.readline()) != "ready\n":
            assert line, log.read_text(errors="replace")[-5000:]
            self.refused += line

    def end(self) -> None:
        """Ends Ray and all that it runs."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0

    def __exit__(self, *error: object) -> None:
        assert self.process.stdout is not None
        try:
            self.end()
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
def settings(text_model: Path, tmp_path: Path) -> RaySettings:
    """Replicas of two ranks: each has two of the GPUs that Ray is told to have, and computes on the CPU."""
    model = ModelSettings(
        source=text_model,
        checkpoint=text_model.parent / "checkpoint",
        name="text",
        pipeline={"vae_tiling": True},  # each rank decodes all of a video: no rounding
    )
    return RaySettings(
        models=(model,),
        jobs=tmp_path / "jobs",
        gpus=2,
        cpus=0.5,
        max_replicas=2,
        upscale_seconds=0.5,
        lease_seconds=600,  # longer than the tests: nobody waits for its end
    )


@pytest.fixture
def server(settings: RaySettings, tmp_path: Path, held: HeldVideos) -> Iterator[RayServer]:
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


def ready(store: JobStore) -> list[WorkerState]:
    """The replicas that can make videos."""
    return [worker for worker in store.workers() if worker.state == "ready"]


def ranks_of(replica: int) -> dict[int, str]:
    """The processes that a replica's process has started for its videos, and the GPUs that each of them sees."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == replica and b"spawn_main" in (folder / "cmdline").read_bytes():
                variables = (folder / "environ").read_bytes().decode().split("\0")
                found[int(folder.name)] = dict(each.partition("=")[::2] for each in variables)["CUDA_VISIBLE_DEVICES"]
    return found


def processes_of(store: JobStore) -> set[int]:
    """The replicas that can make videos, and their ranks."""
    replicas = [worker.process for worker in ready(store)]
    return {process for replica in replicas for process in (replica, *ranks_of(replica))}


def test_two_replicas_of_two_ranks(server: RayServer, store: JobStore, settings: RaySettings, held: HeldVideos) -> None:
    """The second replica comes while jobs wait, and has GPUs of its own; both share the load. A rank is killed in the
    middle of a video, then the replica that makes it again; a job is cancelled; in the end no process is left.
    """
    assert "min_replicas 3" in server.refused and "room for 2 such" in server.refused
    assert server.ask("/ready") == (200, {"status": "ready", "workers": 1})
    held.at(1)
    jobs = [create(server, f"cat {number}") for number in range(4)]
    wait_for(lambda: len([job for job in map(store.get, jobs) if job.step == 1]) == 2)
    ranks = {worker.name: ranks_of(worker.process) for worker in ready(store)}
    assert sorted(gpus for processes in ranks.values() for gpus in processes.values()) == ["0,1", "2,3"]
    everyone = processes_of(store)
    held.release()
    assert {server.wait_until_over(job)["status"] for job in jobs} == {"completed"}
    ends = [store.get(job) for job in jobs]
    assert len({end.worker for end in ends}) == 2
    assert {end.attempt for end in ends} == {1}
    (model,) = settings.models
    with VortaPipeline.from_pretrained(model.source, model.checkpoint, **model.pipeline) as alone:
        expected = alone("cat 0", num_inference_steps=3, seed=1)
    status, picture = server.ask(f"/v1/videos/{jobs[0]}/content?variant=thumbnail")
    write_thumbnail(server.jobs.parent / "expected.webp", expected.frames)
    assert status == 200 and picture == (server.jobs.parent / "expected.webp").read_bytes()
    status, video = server.ask(f"/v1/videos/{jobs[0]}/content")
    assert status == 200 and video[4:8] == b"ftyp"  # H.264 encodes the same frames otherwise now and then

    held.at(1)
    job = create(server, "a dog")

    def begun(attempt: int) -> Any:
        found = store.get(job)
        return found if (found.attempt, found.step) == (attempt, 1) else None

    first = wait_for(lambda: begun(1))
    (rank,) = ranks[first.worker]
    os.kill(rank, signal.SIGKILL)
    second = wait_for(lambda: begun(2))
    assert second.worker in ranks.keys() - {first.worker}
    (replica,) = [worker.process for worker in store.workers() if worker.name == second.worker]
    os.kill(replica, signal.SIGKILL)
    third = wait_for(lambda: begun(3))
    assert third.worker not in ranks
    held.release()
    assert server.wait_until_over(job)["status"] == "completed"

    held.at(1)
    job = create(server, "a cow")
    wait_for(lambda: begun(1))
    server.ask(f"/v1/videos/{job}/cancel", method="POST")
    held.release()
    assert server.wait_until_over(job)["status"] == "cancelled"
    assert store.get(job).step < 3
    everyone |= processes_of(store)
    server.end()
    wait_for(lambda: not any(map(is_alive, everyone)))


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


def test_configuration_files() -> None:
    yaml = pytest.importorskip("yaml")
    schema = pytest.importorskip("ray.serve.schema")
    (documented,) = re.findall(r"(?ms)^```yaml\n(.*?)^```", (ROOT / "docs" / "ray.md").read_text(encoding="utf-8"))
    found = []
    for text in ((ROOT / "deploy" / "ray.yaml").read_text(encoding="utf-8"), documented):
        (application,) = schema.ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
        assert application.import_path == "vorta_trt.serving.ray_app:build"
        settings = RaySettings.model_validate(application.args)
        found.append((settings.gpus, settings.min_replicas, settings.max_replicas))
    assert found == [(None, 1, 8), (4, 1, 2)]


def test_what_a_replica_takes(settings: RaySettings, shared_model: Path) -> None:
    def replica(**changes: Any) -> Any:
        application = build(RaySettings.model_validate({**settings.model_dump(), **changes}))
        (replicas,) = application._bound_deployment.init_args[1:]
        return replicas._bound_deployment._replica_config, replicas._bound_deployment.init_args[0]

    shared = settings.models[0].model_copy(update={"source": shared_model}).model_dump()
    for changes, gpus, together in [
        ({}, 2, True),
        ({"models": [shared], "gpus": None}, 3, True),  # as it is built
        ({"models": [shared], "gpus": 6, "cpus": 0}, 6, True),
        ({"gpus": None}, 1, False),
        ({"gpus": 0.5}, 0.5, False),
        ({"gpus": 0, "models": [settings.models[0].model_dump() | {"gpus": 2}]}, 0, False),  # two processes on the CPU
    ]:
        config, given = replica(**changes)
        assert config.ray_actor_options["num_gpus"] == gpus
        assert given.workers == 2
        assert config.placement_group_strategy == ("STRICT_PACK" if together else None)
        if together:
            assert [bundle["GPU"] for bundle in config.placement_group_bundles] == [gpus]
    for changes, error in [
        ({"gpus": 1.5}, "gpus 1.5: must be whole above 1"),
        ({"models": [settings.models[0].model_dump() | {"gpus": 4}]}, "gpus 2 of a replica, and 4 of model text"),
        ({"gpus": 4}, "gpus 4: the engine is built for one GPU; give 2 with guidance in parallel"),
        ({"models": [shared]}, "gpus 2: the engine is built for 3 GPUs; give 3 or 6"),
        ({"models": [shared], "gpus": 0.5}, "gpus 1: the engine is built for 3 GPUs; give 3 or 6"),
    ]:
        with pytest.raises(ValueError, match=error):
            replica(**changes)


@pytest.mark.parametrize(
    ("gpus", "machines", "fit"),
    [
        (2, [{"GPU": 1, "CPU": 8}, {"GPU": 1, "CPU": 8}], 0),  # of one machine each
        (2, [{"GPU": 3, "CPU": 8}, {"CPU": 4}, {"GPU": 4, "CPU": 8}], 3),
        (2, [{"GPU": 8, "CPU": 2}], 2),
        (0.5, [{"GPU": 1, "CPU": 4}], 2),
        (0, [{"CPU": 3}], 3),
        (1, [], 0),
    ],
)
def test_a_ray_that_is_too_small(gpus: float, machines: list[dict[str, float]], fit: int) -> None:
    replica = ReplicaResources(gpus, 1)
    if fit:
        replica.check(machines, fit)
    with pytest.raises(ValueError, match=f"^gpus {gpus:g}, cpus 1, min_replicas {fit + 1}: .* room for {fit} such"):
        replica.check(machines, fit + 1)


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
