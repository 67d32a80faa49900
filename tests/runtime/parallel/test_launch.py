# SPDX-License-Identifier: Apache-2.0
"""Processes of one run on the CPU: they meet, exchange and end together, whatever ends them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vorta_trt.runtime.parallel import launch as launching
from vorta_trt.runtime.parallel.errors import ParallelError, RankError
from vorta_trt.runtime.parallel.launch import GRACE, SETTLE, environment_of, launch
from vorta_trt.runtime.parallel.rank_process import Failure, failure_of
from vorta_trt.runtime.parallel.versions import check_alike
from vorta_trt.runtime.parallel.world import INTERFACES, NCCL_DUMP_WAIT, join

from . import rank_functions


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def children() -> set[str]:
    """Processes below this one, zombies among them, but for multiprocessing's own helper."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields, command = stat.read_text().rpartition(")")[2].split(), stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"resource_tracker" not in command:
            found.add(f"{stat.parent.name} {command!r}")
    return found


def test_a_rank_that_is_killed_ends_all() -> None:
    told: list[int] = []
    with pytest.raises(RankError, match="rank 1 of 2: was ended by SIGKILL; all ranks were ended"):
        launch(
            rank_functions.die_in_an_exchange,
            7,
            gpus=2,
            kind="cpu",
            timeout=600,
            on_message=lambda rank, content: told.append(content),
        )
    assert told == [7]


def test_the_error_is_that_of_the_rank_that_failed_first() -> None:
    bug = Failure("KeyError: 3", "Traceback", expected=False)
    closed = Failure("RuntimeError: Connection closed by peer", "Traceback of the other", follows=True)
    for failures in ({0: closed, 1: bug}, {1: bug, 0: closed}):
        error = launching._first(failures, 2, [], 300.0)
        assert str(error) == "rank 1 of 2: KeyError: 3; all ranks were ended\nTraceback"
        assert error.rank == 1 and "Traceback" in str(error.__cause__)
    use = Failure("size: must be even", "Traceback", expected=True)
    assert str(launching._first({0: use}, 2, [], 300.0)) == "rank 0 of 2: size: must be even; all ranks were ended"
    waited = str(launching._first({0: closed}, 2, [1], 300.0))
    assert waited.startswith("rank 0 of 2: waited in vain for rank 1 in an exchange, which may take 300 s: RuntimeErr")
    broken = RuntimeError("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    assert [failure_of(error).follows for error in (broken, RuntimeError("shapes"))] == [True, False]


def test_ctrl_c_ends_all(interruptible: None) -> None:
    began: list[float] = []

    def interrupt(rank: int, process: int) -> None:
        began.append(time.monotonic())
        if len(began) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        launch(rank_functions.wait_for_ever, gpus=2, kind="cpu", timeout=600, on_message=interrupt)
    assert time.monotonic() - began[-1] < SETTLE + GRACE + 30  # and not the 1000 s of a rank; processors may be few


def test_nothing_starts_where_it_could_not_end_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "get_context", lambda method: pytest.fail("a process was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ParallelError, match=rf"port {port}: ranks cannot meet there \(Address already in use\)"):
            launch(rank_functions.wait_for_ever, gpus=2, kind="cpu", port=port)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ParallelError, match=r"gpus 2: .* finds 1 GPU here \(CUDA_VISIBLE_DEVICES 0\)"):
        launch(rank_functions.wait_for_ever, gpus=2, kind="cuda")
    with pytest.raises(ValueError, match="gpus 0: must be at least 1"):
        launch(rank_functions.wait_for_ever, gpus=0)
    with pytest.raises(ParallelError, match="RANK: is not set"), join("cpu"):
        pass


@pytest.mark.parametrize("chosen", [None, "7000"])
def test_torchs_watchdog_ends_a_rank_soon_after_the_time_out(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a minute later, unless the user wants that."""
    name, soon = NCCL_DUMP_WAIT
    for variable in (name, *INTERFACES):  # so that they are as before afterwards
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for variable, value in environment_of(0, 1, port).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")  # the only rank holds the store itself
    if chosen is not None:
        monkeypatch.setenv(name, chosen)
    with join("cpu"):
        assert os.environ[name] == (chosen or soon)


def test_unequal_drivers_are_named() -> None:
    here = {"torch": "2.11.0", "driver": "580.95"}
    check_alike([here, here])
    with pytest.raises(ParallelError, match="driver: is 580.95 on rank 0, 2, 550.54 on rank 1; all ranks must have"):
        check_alike([here, {**here, "driver": "550.54"}, here])
    with pytest.raises(ParallelError, match="driver: is 580.95 on rank 0, none on rank 1"):
        check_alike([here, {"torch": "2.11.0"}])
