# SPDX-License-Identifier: Apache-2.0
"""Jobs survive what happens to their servers and workers; nothing is lost, run twice or out of order."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving import JobStore, job_leases, job_store
from vorta_trt.serving.job import (
    Job,
    JobError,
    JobNotFoundError,
    KeyReusedError,
    LeaseLostError,
    NewJob,
    QueueFullError,
    Status,
)
from vorta_trt.serving.job_database import NAME

REQUEST = {"prompt": "a cat", "n": 1, "size": "9x64x96", "fps": 16.0}


def new(user: str = "", prompt: str = "a cat", **values: Any) -> NewJob:
    return NewJob(user, "m", {**REQUEST, "prompt": prompt}, 4, **values)


def add(store: JobStore, *prompts: str, user: str = "") -> list[Job]:
    return [store.create(new(user, prompt))[0] for prompt in prompts]


def claim(store: JobStore, worker: str = "w") -> Job:
    job = store.claim(worker, ["m"])
    assert job is not None
    return job


def finish(store: JobStore, job: Job) -> None:
    with store.files.new_result(job.id, job.attempt) as folder:
        (folder / "0.mp4").write_bytes(b"video")
        record = {"started_at": job.started_at, "completed_at": time.time(), "report": {"seconds": 1, "videos": []}}
        (folder / "result.json").write_text(json.dumps(record))
    store.complete(job, record["report"])  # type: ignore[arg-type]


def test_a_job_from_queue_to_result(store: JobStore) -> None:
    job, is_new = store.create(new(), {"image.png": b"picture"})
    assert is_new and job.status is Status.QUEUED and job.progress == 0
    assert (store.files.folder(job.id) / "image.png").read_bytes() == b"picture"
    running = claim(store)
    assert (running.id, running.status, running.attempt) == (job.id, Status.IN_PROGRESS, 1)
    assert store.claim("other", ["m"]) is None
    assert not store.report_progress(running, stage="denoising", step=2)
    assert (store.get(job.id).progress, store.get(job.id).stage) == (50, "denoising")
    finish(store, running)
    done = store.get(job.id)
    assert done.status is Status.COMPLETED and done.progress == 100 and done.expires_at > done.completed_at
    assert [end.status for end in store.ends_after(0)] == [Status.COMPLETED]


def test_another_store_on_the_folder_knows_everything(store: JobStore) -> None:
    queued, running = add(store, "one", "two")
    claim(store)
    other = JobStore(store.folder)
    assert [job.id for job in other.page(newest_first=False)[0]] == [queued.id, running.id]
    assert other.counts()[Status.IN_PROGRESS] == 1
    other.close()


def test_a_second_server_is_refused_and_workers_are_not(store: JobStore, tmp_path: Path) -> None:
    first = JobStore(tmp_path / "own", exclusive=True)
    with pytest.raises(JobError, match="has this folder; stop it"):
        JobStore(tmp_path / "own", exclusive=True)
    JobStore(tmp_path / "own").close()
    first.close()
    JobStore(tmp_path / "own", exclusive=True).close()


def test_an_idempotency_key_makes_one_job(store: JobStore) -> None:
    job, _ = store.create(new(idempotency_key="k", fingerprint="f"))
    assert store.create(new(idempotency_key="k", fingerprint="f")) == (job, False)
    assert store.create(new("other", idempotency_key="k", fingerprint="f"))[1]
    with pytest.raises(KeyReusedError, match="another request"):
        store.create(new(idempotency_key="k", fingerprint="g"))
    assert len(list(store.files.root.iterdir())) == 2


def test_one_idempotency_key_from_many_threads(store: JobStore) -> None:
    made: list[tuple[Job, bool]] = []
    threads = [threading.Thread(target=lambda: made.append(store.create(new(idempotency_key="k")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in made}) == 1 and sum(is_new for _, is_new in made) == 1
    assert len(list(store.files.root.iterdir())) == 1


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    store = JobStore(tmp_path, most_queued=3, most_per_user=2)
    add(store, "1", "2", user="a")
    with pytest.raises(QueueFullError, match="2 of your jobs wait, and no more than 2"):
        add(store, "3", user="a")
    add(store, "1", user="b")
    with pytest.raises(QueueFullError, match="3 jobs wait, and no more than 3"):
        add(store, "2", user="b")
    claim(store)
    add(store, "2", user="b")
    add(store, "1", user="c")  # a full queue has a place for who has none in it
    with pytest.raises(QueueFullError, match="4 jobs wait, and no more than 3"):
        add(store, "2", user="c")
    store.close()


def test_users_take_turns_and_jobs_of_one_keep_their_order(store: JobStore) -> None:
    add(store, "a1", "a2", "a3", "a4", user="a")
    add(store, "b1", "b2", user="b")
    add(store, "c1", user="c")
    order = []
    for _ in range(7):
        foreseen = [job.request["prompt"] for job in store.unfinished()]
        job = claim(store)
        assert [job.request["prompt"] for job in store.unfinished()] == foreseen
        order.append(job.request["prompt"])
        assert order + foreseen[1:] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
        finish(store, job)


def test_who_has_a_running_job_waits_for_who_has_none(store: JobStore) -> None:
    add(store, "a1", user="a")
    running = claim(store)
    add(store, "a2", user="a")
    add(store, "b1", user="b")
    assert [job.request["prompt"] for job in store.unfinished()] == ["a1", "b1", "a2"]
    assert claim(store, "w2").request["prompt"] == "b1"
    finish(store, running)


def test_cancelling(store: JobStore) -> None:
    waiting, other = add(store, "one", "two")
    running = claim(store)
    assert running.id == waiting.id
    assert store.cancel(other.id).status is Status.CANCELLED
    assert store.cancel(running.id).status is Status.IN_PROGRESS
    assert store.report_progress(running, step=1)
    store.finish_cancelled(running)
    assert store.cancel(running.id).status is Status.CANCELLED
    assert [end.status for end in store.ends_after(0)] == [Status.CANCELLED] * 2


def test_deleting_a_running_job_takes_it_from_its_worker(store: JobStore) -> None:
    add(store, "one")
    job = claim(store)
    store.delete(job.id)
    with pytest.raises(JobNotFoundError, match="there is none"):
        store.get(job.id)
    for act in (lambda: store.report_progress(job), lambda: store.complete(job, {}), lambda: store.fail(job, "x", "y")):
        with pytest.raises(LeaseLostError):
            act()
    with pytest.raises(FileNotFoundError), store.files.new_result(job.id, 1):
        pass
    assert list(store.files.root.iterdir()) == []
    assert [end.status for end in store.ends_after(0)] == [Status.CANCELLED]


def test_jobs_of_others_are_not_there(store: JobStore) -> None:
    (job,) = add(store, "one", user="a")
    for act in (store.get, store.cancel, store.delete):
        with pytest.raises(JobNotFoundError):
            act(job.id, "b")
    assert store.page("b") == ([], False)
    assert store.get(job.id, "a").id == job.id


def test_pages(store: JobStore) -> None:
    ids = [job.id for job in add(store, "1", "2", "3", "4", "5")]
    first, more = store.page(limit=2)
    assert [job.id for job in first] == ids[:2:-1] and more
    rest, more = store.page(limit=3, after=first[-1].id)
    assert [job.id for job in rest] == ids[2::-1] and not more
    assert [job.id for job in store.page(newest_first=False, limit=2, after=ids[1])[0]] == ids[2:4]


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_go_on_after_a_job_that_was_deleted(store: JobStore, newest_first: bool) -> None:
    ids = [job.id for job in add(store, "1", "2", "3", "4", "5", user="a")]
    after, seen = None, []
    while (page := store.page("a", limit=2, after=after, newest_first=newest_first)[0]) != []:
        for job in page:
            store.delete(job.id)
            seen.append(job.id)
        after = page[-1].id
    assert seen == (ids[::-1] if newest_first else ids)
    with pytest.raises(JobNotFoundError):
        store.page("b", after=ids[0])


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the clocks of stores on by so many seconds."""
    ahead = 0.0

    def put_on(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monotonic, calendar = time.monotonic, time.time
    clock = SimpleNamespace(monotonic=lambda: monotonic() + ahead, time=lambda: calendar() + ahead)
    for module in (job_leases, job_store):
        monkeypatch.setattr(module, "time", clock)
    return put_on


def test_a_lease_that_ends_gives_the_job_back_and_the_old_worker_cannot_finish_it(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    store = JobStore(tmp_path, lease_seconds=1000, most_attempts=2)
    add(store, "one")
    lost = claim(store, "lost")
    assert store.take_back() == []
    later(1001)
    assert [job.status for job in store.take_back()] == [Status.QUEUED]
    again = claim(store, "other")
    assert again.attempt == 2 and again.step == 0
    with pytest.raises(LeaseLostError):
        store.complete(lost, {})
    later(1001)
    (failed,) = store.take_back()
    assert (failed.status, failed.error_code) == (Status.FAILED, "worker_lost")
    assert "lost 2 times" in str(failed.error_message)
    store.close()


def test_a_renewed_lease_lasts(tmp_path: Path, later: Callable[[float], None]) -> None:
    store = JobStore(tmp_path, lease_seconds=1000)
    add(store, "one")
    job = claim(store)
    for _ in range(5):
        later(500)
        store.report_progress(job)
    assert store.take_back() == []
    store.close()


def test_a_worker_that_is_known_to_be_gone(store: JobStore) -> None:
    add(store, "one", "two")
    gone, other = claim(store, "gone"), claim(store, "other")
    assert [job.id for job in store.take_back(worker="gone")] == [gone.id]
    assert store.get(other.id).status is Status.IN_PROGRESS
    assert [job.id for job in store.take_back(everyone=True)] == [other.id]
    assert claim(store).id == gone.id  # in its old place


def test_giving_back_is_no_attempt(store: JobStore) -> None:
    add(store, "one")
    for _ in range(5):
        store.give_back(claim(store))
    assert store.get(claim(store).id).attempt == 1
    assert store.ends_after(0) == []


def test_a_clock_that_is_set_back_changes_neither_order_nor_leases(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "one")
    running = claim(store)
    add(store, "two")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 30 * 24 * 3600)
    add(store, "three")
    assert store.take_back() == []
    finish(store, running)
    assert store.expire() == 0
    assert [job.request["prompt"] for job in store.page(newest_first=False)[0]] == ["one", "two", "three"]
    assert claim(store).request["prompt"] == "two"
    assert store.get(running.id).progress == 100


def test_results_expire_after_completion(tmp_path: Path, later: Callable[[float], None]) -> None:
    store = JobStore(tmp_path, keep_seconds=1000)
    add(store, "one", "two")
    job = claim(store)
    later(1001)
    assert store.expire() == 0, "it counts from completion"
    finish(store, job)
    assert store.expire() == 0
    later(1001)
    assert store.expire() == 1
    assert [left.request["prompt"] for left in store.page()[0]] == ["two"]
    assert not store.files.folder(job.id).exists()
    store.close()


@pytest.mark.parametrize("damage", ["garbage", "header", "middle"])
def test_a_damaged_database_is_made_again_of_the_folders(store: JobStore, damage: str) -> None:
    done, running, waiting = add(store, "done", "running", "waiting", user="u")
    finish(store, claim(store))
    claim(store)
    store.delete(add(store, "deleted")[0].id)
    cancelled, failed = add(store, "cancelled", "failed", user="u")
    store.cancel(cancelled.id)
    other = claim(store)
    store.fail(claim(store), "engine_error", "broken")
    store.give_back(other)
    store.close()
    path = store.folder / NAME
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content[:] = b"no database" * 100
    elif damage == "header":
        content[:64] = bytes(64)
    else:
        content[len(content) // 3 :] = b"\xff" * (len(content) - len(content) // 3)
    path.write_bytes(content)
    again = JobStore(store.folder)
    assert again.recovered == 5
    assert {job.id: job.status for job in again.page("u")[0]} == {
        done.id: Status.COMPLETED,
        running.id: Status.QUEUED,
        waiting.id: Status.QUEUED,
        cancelled.id: Status.CANCELLED,
        failed.id: Status.FAILED,
    }
    assert again.get(failed.id).error_message == "broken"
    assert claim(again).id == running.id
    assert len(list(store.folder.glob("*.damaged-*.sqlite3"))) == 1, "it is kept"
    again.close()


def test_a_full_disk_leaves_neither_job_nor_folder(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises((WriteError, OSError)) as raised:
            add(store, "one")
        assert raised.value.errno == errno.ENOSPC
    assert list(store.files.root.iterdir()) == [] and store.page()[0] == []
    add(store, "two")


def test_what_killed_attempts_left_is_removed(store: JobStore) -> None:
    """Whole results of earlier attempts, and unfinished ones, at the next completion, loss or start."""

    def leave(job: Job, *names: str) -> Path:
        for name in names:
            (store.files.folder(job.id) / name).mkdir()
            (store.files.folder(job.id) / name / "0.mp4").write_bytes(b"half")
        return store.files.folder(job.id)

    def folders(path: Path) -> list[str]:
        return sorted(each.name for each in path.iterdir() if each.is_dir())

    add(store, "one", "two")
    job = claim(store)
    folder = leave(job, ".result-0.abc", "result-0")
    finish(store, job)
    assert folders(folder) == ["result-1"]
    lost = claim(store)
    lost_folder = leave(lost, ".result-1.abc")
    store.take_back(everyone=True)
    assert folders(lost_folder) == []
    leave(job, "result-7")
    leave(lost, ".result-1.abc")
    store.sweep()
    assert (folders(folder), folders(lost_folder)) == (["result-1"], [])


def test_threads_that_come_and_go_leave_no_open_file(store: JobStore) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    add(store, "one")
    before = files()
    for _ in range(20):
        thread = threading.Thread(target=lambda: store.page())
        thread.start()
        thread.join()
    assert files() <= before


def _take_jobs(folder: Path, worker: str, taken: Any) -> None:
    store = JobStore(folder)
    while (job := store.claim(worker, ["m"])) is not None:
        taken.put(job.sequence)
        finish(store, job)
    store.close()


def test_every_job_is_taken_once_by_many_processes(store: JobStore) -> None:
    add(store, *map(str, range(40)))
    context = multiprocessing.get_context("spawn")
    taken = context.Queue()
    processes = [context.Process(target=_take_jobs, args=(store.folder, f"w{n}", taken)) for n in range(2)]
    for process in processes:
        process.start()
    sequences = sorted(taken.get(timeout=60) for _ in range(40))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sequences == list(range(1, 41)) and taken.empty()
    assert store.counts()[Status.COMPLETED] == 40


@pytest.fixture
def states(store: JobStore) -> Iterator[JobStore]:
    store.say("w", "ready", {"reason": ""})
    yield store


def test_steps_wait_for_no_disk_and_what_a_restart_needs_does(store: JobStore) -> None:
    waits: list[int] = []
    change = store._data.change

    @contextmanager
    def watched(*, lasting: bool = True) -> Iterator[sqlite3.Connection]:
        with change(lasting=lasting) as connection:
            waits.append(connection.execute("PRAGMA synchronous").fetchone()[0])
            yield connection

    store._data.change = watched  # type: ignore[method-assign]
    add(store, "a cat")
    running = claim(store)
    store.report_progress(running, step=1)
    store.say("w", "ready")
    store.complete(running, {})
    full, normal = 2, 1
    assert waits == [full, full, normal, normal, full]


def test_states_of_workers(states: JobStore) -> None:
    (worker,) = states.workers()
    assert (worker.name, worker.state, worker.detail) == ("w", "ready", {"reason": ""})
    states.forget_worker("w")
    assert states.workers() == []
