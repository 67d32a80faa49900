# SPDX-License-Identifier: Apache-2.0
"""Jobs become the videos that `generate` makes; a fault ends one job, and the worker goes on or says why not."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running_server import wait_for

from vorta_trt.model.video_reader import read_pictures
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
from vorta_trt.runtime.pipelines.residency import Residency, ResidencyChoice
from vorta_trt.runtime.sampling.finite import NonFiniteVideoError
from vorta_trt.serving import Catalogue, Job, JobStore, Worker
from vorta_trt.serving import worker as worker_module
from vorta_trt.serving.catalogue import ServedModel
from vorta_trt.serving.job import NewJob, Status
from vorta_trt.serving.loaded_models import LoadedModels, _fits
from vorta_trt.serving.video_request import parse_request
from vorta_trt.serving.worker import Outcome

from ..tiny import HEIGHT, WIDTH
from .conftest import Fill

Working = Callable[[Worker], Any]


def queue(store: JobStore, catalogue: Catalogue, picture: Path | None = None, **values: Any) -> Job:
    request = parse_request({"prompt": "a cat", "num_inference_steps": 3, "seed": 7, **values})
    accepted = catalogue.accept(request, {} if picture is None else {"image": picture})
    names = {} if picture is None else {"image": "image.png"}
    files = {} if picture is None else {"image.png": picture.read_bytes()}
    new = NewJob("", accepted.model, {**accepted.to_dict(), "images": names}, 3 * accepted.n)
    return store.create(new, files)[0]


def over(store: JobStore, job: Job) -> Job:
    found: Job = wait_for(lambda: at if (at := store.get(job.id)).status.is_final else None)
    return found


@pytest.fixture(scope="module")
def models(catalogue: Catalogue) -> Any:
    """Loaded once; a worker closes what it is given, so that this one stays open."""

    class Kept(LoadedModels):
        def close(self) -> None:
            pass

    kept = Kept(catalogue)
    yield kept
    LoadedModels.close(kept)


@pytest.fixture
def worker(store: JobStore, catalogue: Catalogue, models: LoadedModels) -> Worker:
    return Worker(store, catalogue, models=models)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "first.png"
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_videos_are_those_of_generate(
    store: JobStore,
    catalogue: Catalogue,
    worker: Worker,
    working: Working,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of text with following seeds, and one that begins with an image."""
    kept: list[Any] = []
    monkeypatch.setattr("vorta_trt.serving.job_videos.write_thumbnail", lambda path, frames: kept.append(frames))
    text, image = queue(store, catalogue, n=2), queue(store, catalogue, picture, model="image")
    with working(worker):
        done = over(store, text), over(store, image)
    for job, name, images in zip(done, ("text", "image"), ({}, {"image": picture}), strict=True):
        assert job.status is Status.COMPLETED and job.report is not None, job.error_message
        with catalogue.get(name).pipeline() as pipe:
            for number, video in enumerate(job.report["videos"]):
                own = pipe("a cat", num_inference_steps=3, seed=7 + number, **images)
                assert np.array_equal(kept.pop(0), own.frames)
                made = store.files.result(job.id, job.attempt) / video["file"]
                assert video["seed"] == 7 + number
                assert len(list(read_pictures(made))) == 9
    report = done[0].report
    assert report is not None
    assert report["steps"]["computed"] == 6 and len(report["steps"]["seconds"]["transformer"]) == 6
    assert sum(report["steps"]["routed_heads"].values()) == 6 * 2 * 3  # steps, layers, heads
    assert set(report["videos"][0]["stages"]) == {"text", "denoise", "decode", "encode"}
    assert done[1].report is not None and "condition" in done[1].report["videos"][0]["stages"]


class Steps:
    """Called with every step that begins; may act or raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
        original = VortaPipeline.generate_each

        def generate(pipe: VortaPipeline, prompts: Any, on_video: Any, *arguments: Any, **options: Any) -> None:
            on_step = options.get("on_step")

            def step(number: int, step: int, planned: Any) -> None:
                if on_step is not None:
                    on_step(number, step, planned)
                    if prompts != ["warm-up"]:
                        act(step)

            original(pipe, prompts, on_video, *arguments, **{**options, "on_step": step})

        monkeypatch.setattr(VortaPipeline, "generate_each", generate)


def test_progress_is_true_to_the_step_and_a_cancelled_job_stops_at_the_next(
    store: JobStore, catalogue: Catalogue, worker: Worker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, str]] = []

    def act(step: int) -> None:
        at = store.get(job.id)
        seen.append((step, at.step, at.stage))
        if step == 3:
            store.cancel(job.id)

    Steps(monkeypatch, act)
    job = queue(store, catalogue, num_inference_steps=40)
    with working(worker):
        assert over(store, job).status is Status.CANCELLED
        assert seen == [(step, step, "denoising") for step in range(4)]
        assert not list(store.files.folder(job.id).glob("*result*")), "no half file"
        after = queue(store, catalogue)
        monkeypatch.undo()
        assert over(store, after).status is Status.COMPLETED


def test_a_deleted_job_stops_at_the_next_step(
    store: JobStore, catalogue: Catalogue, worker: Worker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def act(step: int) -> None:
        steps.append(step)
        if step == 1 and len(steps) == 2:
            store.delete(job.id)

    Steps(monkeypatch, act)
    job = queue(store, catalogue, num_inference_steps=40)
    after = queue(store, catalogue)
    with working(worker):
        over(store, after)
    assert steps == [0, 1, 0, 1, 2]
    assert [path.name for path in store.files.root.iterdir()] == [after.id]


def test_a_worker_that_is_told_to_abort_gives_its_job_back(
    store: JobStore, catalogue: Catalogue, worker: Worker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(monkeypatch, lambda step: worker.abort.set())
    job = queue(store, catalogue)
    with working(worker) as outcome:
        wait_for(lambda: outcome)
    assert outcome == [Outcome.STOPPED]
    assert (store.get(job.id).status, store.get(job.id).attempt) == (Status.QUEUED, 0)


def test_a_worker_without_work_looks_at_once_when_it_is_woken(
    store: JobStore, catalogue: Catalogue, worker: Worker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, claim = threading.Event(), store.claim

    def look(*of: Any) -> Job | None:
        found = claim(*of)
        looked.set()
        return found

    monkeypatch.setattr(store, "claim", look)
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 3600.0)
    with working(worker):
        assert looked.wait(300)  # the queue is empty
        job = queue(store, catalogue)
        worker.wake.set()
        assert over(store, job).status is Status.COMPLETED
        worker.abort.set()
        worker.wake.set()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (sqlite3.OperationalError("database or disk is full"), "disk_full"),
        (sqlite3.OperationalError("database is locked"), "store_unavailable"),
        (ValueError("steps 3: do not fit"), "invalid_value"),
        (OverflowError("value cannot be converted to type float without overflow"), "invalid_value"),
        (NonFiniteVideoError("the latents have values that are not finite"), "not_finite"),
        (RuntimeError("an error of this request alone"), "engine_error"),
    ],
)
def test_a_fault_of_a_job_is_told_and_the_next_one_runs(
    store: JobStore,
    catalogue: Catalogue,
    worker: Worker,
    working: Working,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    def act(step: int) -> None:
        if step == 1 and store.get(first.id).status is Status.IN_PROGRESS:
            raise error

    Steps(monkeypatch, act)
    first, second = queue(store, catalogue), queue(store, catalogue)
    with working(worker):
        failed, done = over(store, first), over(store, second)
    assert (failed.status, failed.error_code) == (Status.FAILED, code) and failed.error_message
    assert done.status is Status.COMPLETED
    assert not list(store.files.folder(first.id).glob("*result*")), "no half file"


def test_on_a_full_disk_a_video_goes_on_and_jobs_wait(
    store: JobStore,
    catalogue: Catalogue,
    worker: Worker,
    working: Working,
    monkeypatch: pytest.MonkeyPatch,
    fill: Fill,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("vorta_trt.serving.worker.FULL_SECONDS", 0.05)
    is_full, waits = threading.Event(), "the disk is full, so jobs wait"
    fill(lambda: not is_full.is_set())
    Steps(monkeypatch, lambda step: is_full.set() if step == 1 else None)
    first, second = queue(store, catalogue), queue(store, catalogue)
    with working(worker) as outcome:
        wait_for(lambda: waits in caplog.text)
        assert store.take_back() == [], "nobody can renew a lease"
        assert [store.get(job.id).status for job in (first, second)] == [Status.IN_PROGRESS, Status.QUEUED]
        assert not outcome, "the worker lives, and its model stays loaded"
        worker._say()
        monkeypatch.undo()
        assert over(store, second).status is Status.COMPLETED
    assert [job.status for job in store.take_back(worker=worker.name)] == [Status.COMPLETED], "its video was in place"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "engine_error"),
        (MemoryError("no illegal memory access, but a group of processes is over"), "out_of_memory"),
    ],
)
def test_a_fault_of_the_engine_ends_job_and_worker(
    store: JobStore,
    catalogue: Catalogue,
    models: LoadedModels,
    worker: Worker,
    working: Working,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    def act(step: int) -> None:
        monkeypatch.setattr(models, "check", broken)
        monkeypatch.setattr(VortaPipeline, "is_over", isinstance(error, MemoryError))
        broken()

    def broken(*_: Any) -> None:
        raise error

    Steps(monkeypatch, act)
    first, second = queue(store, catalogue), queue(store, catalogue)
    with working(worker) as outcome:
        wait_for(lambda: outcome)
    assert outcome == [Outcome.ENGINE_FAILED]
    failed = store.get(first.id)
    assert (failed.status, failed.error_code) == (Status.FAILED, code)
    assert "illegal memory access" in str(failed.error_message)
    assert store.get(second.id).status is Status.QUEUED


def test_an_engine_that_hangs_loses_its_lease_though_its_process_lives(
    tmp_path: Path, catalogue: Catalogue, models: LoadedModels, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(models, "warm_up", lambda tell: None)
    Steps(monkeypatch, lambda step: None if released.wait(60) else None)
    with closing(JobStore(tmp_path / "jobs", lease_seconds=1)) as store:
        job = queue(store, catalogue)
        with working(Worker(store, catalogue, models=models, stall_seconds=0.5)):
            try:
                (state,) = wait_for(lambda: [each for each in store.workers() if each.state == "hung"])
                assert "no step or stage has begun for 0.5 s" in state.detail["reason"]
                assert wait_for(store.take_back)[0].id == job.id, "nobody renews its lease"
            finally:
                store.delete(job.id)
                released.set()


def test_a_worker_is_ready_after_a_warm_up_with_finite_values(
    store: JobStore, catalogue: Catalogue, models: LoadedModels, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(tell: Any) -> None:
        raise FileNotFoundError("model.bundle: no such folder")

    monkeypatch.setattr(models, "warm_up", broken)
    worker = Worker(store, catalogue, models=models)
    with working(worker) as outcome:
        wait_for(lambda: outcome)
    assert outcome == [Outcome.NOT_READY]
    (state,) = store.workers()
    assert (state.state, state.detail["reason"]) == ("failed", "model.bundle: no such folder")


def test_whether_a_model_fits_is_asked_with_its_vae(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def choose(*arguments: Any, **options: Any) -> ResidencyChoice:
        asked.update(options)
        return ResidencyChoice(Residency.RESIDENT, "asked for")

    monkeypatch.setattr("vorta_trt.serving.loaded_models.choose_residency", choose)
    model = catalogue.get("text")
    assert _fits(model) and (asked["vae_precision"], asked["compile_vae"]) == (None, False)
    pipeline = {**model.settings.pipeline, "vae_precision": "fp16", "compile_vae": True}
    assert _fits(ServedModel(model.settings.model_copy(update={"pipeline": pipeline})))
    assert (asked["vae_precision"], asked["compile_vae"]) == ("fp16", True)


def test_models_take_turns_where_they_do_not_fit_together(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vorta_trt.serving.loaded_models._fits", lambda model: False)
    with LoadedModels(catalogue) as models:
        models.warm_up()
        assert models.names == ["text"], "the default one last"
        models.get("image")
        assert models.names == ["image"]
    assert models.names == []
    monkeypatch.undo()
    with LoadedModels(catalogue) as models:
        models.get("text")
        models.get("image")
        models.get("text")
        assert models.names == ["image", "text"], "both stay on the CPU"
        assert {engine["flavour"] for engine in models.engines()} == {"onnxruntime"}
