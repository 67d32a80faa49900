# SPDX-License-Identifier: Apache-2.0
"""Processes of one run on the CPU: they meet, exchange and end together, whatever ends them."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from vorta_trt.runtime.parallel import launch as launching
from vorta_trt.runtime.parallel.errors import ParallelError, RankError
from vorta_trt.runtime.parallel.launch import GRACE, SETTLE, launch
from vorta_trt.runtime.parallel.versions import check_alike
from vorta_trt.runtime.parallel.world import join

from . import rank_functions


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


def children() -> list[str]:
    """Processes below this one, zombies among them, but for multiprocessing's own helper."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields, command = stat.read_text().rpartition(")")[2].split(), stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"resource_tracker" not in command:
            found.append(f"{stat.parent.name} {fields[0]} {command!r}")
    return found


def test_ranks_exchange_and_notice_that_they_differ() -> None:
    told: dict[int, Any] = {}
    with pytest.raises(RankError, match=r"latents before step 2: rank 1 have other values than rank 0") as caught:
        launch(rank_functions.exchange_then_differ, 2.0, gpus=2, kind="cpu", timeout=60, on_message=told.__setitem__)
    assert "compare_step" in caught.value.traceback
    expected = {
        "gathered": [0, 1],
        "from the first": 7,
        "passes": [[2.0], [4.0]],
        "text": {"rows": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "valid": [True, False]},
    }
    assert told == {0: expected, 1: expected}
    assert children() == []


def test_a_rank_that_is_killed_ends_all() -> None:
    with pytest.raises(RankError, match="rank 1 of 2: was ended by SIGKILL; all ranks were ended"):
        launch(rank_functions.die_in_an_exchange, gpus=2, kind="cpu", timeout=600)
    assert children() == []


def test_ctrl_c_ends_all(interruptible: None) -> None:
    began: list[float] = []

    def interrupt(rank: int, process: int) -> None:
        began.append(time.monotonic())
        if len(began) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        launch(rank_functions.wait_for_ever, gpus=2, kind="cpu", timeout=600, on_message=interrupt)
    assert time.monotonic() - began[-1] < SETTLE + GRACE + 1
    assert children() == []


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


def test_unequal_drivers_are_named() -> None:
    here = {"torch": "2.11.0", "driver": "580.95"}
    check_alike([here, here])
    with pytest.raises(ParallelError, match="driver: is 580.95 on rank 0, 2, 550.54 on rank 1; all ranks must have"):
        check_alike([here, {**here, "driver": "550.54"}, here])
    with pytest.raises(ParallelError, match="driver: is 580.95 on rank 0, none on rank 1"):
        check_alike([here, {"torch": "2.11.0"}])
