# SPDX-License-Identifier: Apache-2.0
"""The time limit of exchanges: what ends a process, and what does not."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from vorta_trt.model.parallel import exchange_watch
from vorta_trt.model.parallel.exchange_watch import ExchangeWatch

PATIENCE = 10.0  # seconds


class Mark:
    def __init__(self) -> None:
        self.reached = False

    def query(self) -> bool:
        return self.reached


class Ended:
    """What was said as the process would have ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exchange_watch, "LOOK_EVERY", 0.01)
        self.said = ""
        self._event = threading.Event()

    def __call__(self, wrong: str) -> None:
        self.said = wrong
        self._event.set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    return Ended(monkeypatch)


def test_an_exchange_that_takes_too_long_ends_the_process(ended: Ended) -> None:
    watch = ExchangeWatch("rank 1", 0.05, lambda: "", ended)
    with watch(Mark):
        pass
    assert ended.wait(PATIENCE) and ended.said == "rank 1: one has taken longer than 0.05 s"
    assert not watch.wait(0.01)


def test_also_one_that_is_still_being_enqueued(ended: Ended) -> None:
    """The host waits for a GPU that is far behind."""
    watch = ExchangeWatch("rank 1", 0.05, lambda: "", ended)
    with watch(Mark):
        assert ended.wait(PATIENCE)


def test_those_that_wait_behind_others_have_time_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may be far ahead of the GPU."""
    now = 100.0
    monkeypatch.setattr(exchange_watch, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(exchange_watch, "LOOK_EVERY", 1000.0)
    watch = ExchangeWatch("rank 1", 10.0, lambda: "")
    marks = [Mark() for _ in range(3)]
    for mark in marks:
        with watch(lambda mark=mark: mark):  # type: ignore[misc]
            pass
    for mark in marks[:2]:
        now += 9
        assert watch.wrong() == ""
        mark.reached = True
        assert watch.wrong() == ""
    now += 11
    assert watch.wrong() == "rank 1: one has taken longer than 10 s"
    watch.stop()


def test_what_has_ended_is_forgotten(ended: Ended) -> None:
    watch = ExchangeWatch("rank 1", 1000, lambda: "", ended)
    mark = Mark()
    mark.reached = True
    with watch(lambda: mark):
        pass
    assert watch.wait(PATIENCE) and watch.wrong() == ""
    with pytest.raises(KeyError), watch(Mark):
        raise KeyError  # what fails is not waited for
    assert watch.wait(0)
    watch.stop()
    assert not ended.said


def test_an_error_of_nccl_ends_the_process(ended: Ended) -> None:
    errors = ["", "", "rank 1: NCCL says: remote process exited"]
    watch = ExchangeWatch("rank 1", PATIENCE, lambda: errors.pop(0), ended)
    with watch(Mark):
        pass
    assert ended.wait(PATIENCE) and ended.said == "rank 1: NCCL says: remote process exited"


def test_nothing_ends_after_it_was_stopped(ended: Ended) -> None:
    errors = [""]
    watch = ExchangeWatch("rank 1", 1000, lambda: errors[0], ended)
    with watch(Mark):
        pass
    watch.stop()
    errors[0] = "left"
    assert not ended.wait(0.3)


def test_what_is_left_is_not_asked() -> None:
    watch = ExchangeWatch("rank 1", PATIENCE, lambda: "rank 1: NCCL says: remote process exited")
    assert watch.wrong() == "rank 1: NCCL says: remote process exited"
    watch.stop()
    assert watch.wrong() == ""


def test_it_may_be_stopped_by_the_thread_that_looks() -> None:
    """The garbage collector leaves a communicator in whatever thread it runs."""
    watch = ExchangeWatch("rank 1", PATIENCE, lambda: "")

    class Collects(Mark):
        def query(self) -> bool:
            watch.stop()
            return True

    with watch(Collects):
        pass
    looking = threading.Thread(target=watch.wait, args=(0,), daemon=True)
    looking.start()
    looking.join(PATIENCE)
    assert not looking.is_alive()
