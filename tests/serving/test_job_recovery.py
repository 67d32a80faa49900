# SPDX-License-Identifier: Apache-2.0
"""Nothing finished is lost, whatever became of the database, of a folder or of the disk's space."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving import JobStore
from vorta_trt.serving.job import Job, Status
from vorta_trt.serving.job_database import NAME
from vorta_trt.serving.job_recovery import Recovery

from .conftest import Fill
from .test_job_store import add, claim, finish, new


def start(folder: Path) -> JobStore:
    """As `vorta-trt serve` does."""
    store = JobStore(folder, exclusive=True)
    store.take_back(everyone=True)
    store.sweep()
    return store


def states(store: JobStore) -> dict[str, Status]:
    return {job.id: job.status for job in store.page()[0]}


def put_in_place(store: JobStore, job: Job) -> None:
    """A worker's result, which it is killed before it can report."""
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patched:
        patched.setattr(JobStore, "complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        finish(store, job)


@pytest.fixture
def done(store: JobStore) -> Job:
    add(store, "done", "waits")
    job = claim(store)
    finish(store, job)
    return store.get(job.id)


@pytest.mark.parametrize("damage", ["empty", "missing", "older", "without tables"])
def test_finished_videos_survive_a_database_that_lacks_them(tmp_path: Path, damage: str) -> None:
    store = JobStore(tmp_path / "jobs")
    gone = add(store, "deleted")[0]
    store.close()
    shutil.copy(store.folder / NAME, tmp_path / "older")
    store = JobStore(store.folder)
    store.delete(gone.id)
    one, two = add(store, "one", "two")
    finish(store, claim(store))
    store.close()
    path = store.folder / NAME
    for part in store.folder.glob(f"{NAME}*"):
        part.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "older":
        shutil.copy(tmp_path / "older", path)
    elif damage == "without tables":
        sqlite3.connect(path).execute("PRAGMA user_version = 1").connection.close()
    for recovered in (2, 0):
        again = start(store.folder)
        assert again.recovered == recovered
        assert states(again) == {one.id: Status.COMPLETED, two.id: Status.QUEUED}
        assert (again.files.result(one.id, 1) / "0.mp4").read_bytes() == b"video"
        again.close()


def test_a_start_that_is_killed_while_it_recovers_is_done_again(
    store: JobStore, done: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    (store.folder / NAME).write_bytes(b"damaged" * 1000)
    take_in, count = Recovery._take_in, 0

    def killed(*args: object) -> bool:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return take_in(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Recovery, "_take_in", killed)
        start(store.folder)
    again = start(store.folder)
    assert sorted(states(again).values()) == [Status.COMPLETED, Status.QUEUED]
    again.close()


@pytest.mark.parametrize("name", ["request.json", "result-1/result.json", "result-1/0.mp4"])
def test_a_folder_that_cannot_be_read_is_put_aside_with_its_video(
    store: JobStore, done: Job, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.close()
    (store.folder / NAME).unlink()
    path = store.files.folder(done.id) / name
    if path.suffix == ".mp4":
        path.rename(path.with_name("1.mp4"))
        record = path.with_name("result.json")
        content = json.loads(record.read_text())
        content["report"]["videos"] = [{"file": "0.mp4"}]
        record.write_text(json.dumps(content))
    else:
        path.write_text("{}")
    again = start(store.folder)
    assert list(states(again).values()) == [Status.QUEUED]
    assert next((again.files.lost / done.id).glob("result-1/*.mp4")).read_bytes() == b"video"
    assert f"job {done.id}: cannot be taken in" in caplog.text
    again.close()


def test_folders_of_one_idempotency_key(store: JobStore) -> None:
    first, _ = store.create(new(idempotency_key="k"))
    finish(store, claim(store))
    store.close()
    copies = [f"video_{digit * 32}" for digit in "01"]
    for copy in copies:
        shutil.copytree(store.files.folder(first.id), store.files.folder(copy))
    shutil.rmtree(store.files.result(copies[1], 1))
    (store.folder / NAME).unlink()
    again = start(store.folder)
    assert all(status is Status.COMPLETED for status in states(again).values())
    assert {first.id, copies[0]} <= set(states(again)) | {path.name for path in again.files.lost.iterdir()}
    assert (again.files.result(first.id, 1) / "0.mp4").exists()
    assert (again.files.result(copies[0], 1) / "0.mp4").exists()
    again.close()


def test_a_start_removes_folders_of_deleted_jobs_and_unfinished_ones_alone(store: JobStore, done: Job) -> None:
    add(store, "deleted")
    gone = store.page()[0][0]
    kept = store.folder / "kept"
    shutil.copytree(store.files.folder(gone.id), kept)
    store.delete(gone.id)
    shutil.move(kept, store.files.folder(gone.id))
    (store.files.root / ".video_1.unfinished-1-2").mkdir()
    (store.files.root / "notes").mkdir()
    again = start(store.folder)
    assert sorted(path.name for path in again.files.root.iterdir()) == sorted([*states(again), "notes"])
    assert gone.id not in states(again)
    again.close()


def test_a_job_whose_folder_is_gone_is_listed_no_more_and_comes_back_with_it(store: JobStore, done: Job) -> None:
    away = shutil.move(store.files.folder(done.id), store.folder / "away")
    store.close()
    again = start(store.folder)
    assert list(states(again).values()) == [Status.QUEUED]
    again.close()
    shutil.move(away, store.files.folder(done.id))
    again = start(store.folder)
    assert states(again)[done.id] is Status.COMPLETED
    again.close()


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_result_that_is_in_place_is_taken_although_its_worker_died(tmp_path: Path, attempts: int) -> None:
    store = JobStore(tmp_path, most_attempts=attempts)
    add(store, "one")
    job = claim(store)
    put_in_place(store, job)
    assert [each.status for each in store.take_back(worker="w")] == [Status.COMPLETED]
    taken = store.get(job.id)
    assert (taken.attempt, taken.step, taken.report) == (1, 4, {"seconds": 1, "videos": []})
    assert (store.files.result(job.id, 1) / "0.mp4").exists()
    assert [end.status for end in store.ends_after(0)] == [Status.COMPLETED]
    store.close()


def test_a_result_that_is_newer_than_the_database_is_taken(store: JobStore, tmp_path: Path) -> None:
    (job,) = add(store, "one")
    store.close()
    shutil.copy(store.folder / NAME, tmp_path / "older")
    store = JobStore(store.folder)
    finish(store, claim(store))
    store.close()
    for part in store.folder.glob(f"{NAME}*"):
        part.unlink()
    shutil.copy(tmp_path / "older", store.folder / NAME)
    again = start(store.folder)
    assert states(again) == {job.id: Status.COMPLETED}
    again.close()


def test_others_read_neither_prompts_nor_videos(store: JobStore, done: Job) -> None:
    def mode(path: Path) -> int:
        return path.stat().st_mode & 0o777

    assert {mode(store.folder), mode(store.files.root)} == {0o700}
    assert {mode(path) for path in store.folder.glob(f"{NAME}*")} == {0o600}
    store.close()
    (store.folder / NAME).chmod(0o644)
    store.files.root.chmod(0o755)
    JobStore(store.folder).close()
    assert (mode(store.folder / NAME), mode(store.files.root)) == (0o600, 0o700)


def test_a_full_disk_lets_jobs_be_cancelled_and_deleted_and_the_server_start(tmp_path: Path, fill: Fill) -> None:
    store = JobStore(tmp_path, exclusive=True)
    one, two, three = add(store, "one", "two", "three")
    finish(store, claim(store))
    reserve, size = tmp_path / "reserve", (tmp_path / "reserve").stat().st_size
    fill(lambda: reserve.stat().st_size < size)  # what the reserve gives is needed, and is enough
    with pytest.raises(sqlite3.OperationalError):
        add(store, "four")
    assert reserve.stat().st_size == size, "new jobs do not use it"
    assert store.cancel(two.id).status is Status.CANCELLED
    store.close()
    again = start(tmp_path)
    assert states(again) == {one.id: Status.COMPLETED, two.id: Status.CANCELLED, three.id: Status.QUEUED}
    again.close()


@pytest.mark.parametrize(("total", "is_full"), [(1 << 40, True), (0, False)])
def test_a_disk_that_does_not_say_its_size_is_not_full(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, total: int, is_full: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=0))
    add(store, "one")
    if is_full:
        with pytest.raises(WriteError, match="the disk is full, so jobs wait"):
            claim(store)
    else:
        assert claim(store).status is Status.IN_PROGRESS


def test_without_a_reserve_the_files_of_the_deleted_job_make_space(store: JobStore, done: Job, fill: Fill) -> None:
    fill(lambda: not store.files.folder(done.id).exists())
    store.delete(done.id)
    assert list(states(store).values()) == [Status.QUEUED]


def test_a_start_on_a_disk_without_any_space_says_so(tmp_path: Path, fill: Fill) -> None:
    JobStore(tmp_path).close()
    fill(lambda: False)
    for _ in range(2):
        with pytest.raises(WriteError, match="the disk is full, so the job database cannot be used"):
            JobStore(tmp_path, exclusive=True)
