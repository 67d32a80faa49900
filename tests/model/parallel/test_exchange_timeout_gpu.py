# SPDX-License-Identifier: Apache-2.0
"""A rank that does not come to an exchange, on two GPUs: the one that waits ends within the time-out and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

TIMEOUT = 5.0  # seconds
START = 60.0  # seconds that two processes may take to import torch, meet and make a communicator
JOINED = {  # as `join` has it
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "500",
}

PROGRAM = """
import sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.parallel.attention import sharded_attention
from vorta_trt.model.parallel.group_communicator import GroupCommunicator
from vorta_trt.plugins import load_library

rank, folder, exchange = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.cuda.set_device(rank)
meeting, start = "file://" + folder + "/rendezvous", timedelta(seconds={start})
dist.init_process_group("cpu:gloo,cuda:nccl", init_method=meeting, rank=rank, world_size=2, timeout=start)
group = dist.new_group(timeout=timedelta(seconds={timeout}))  # CUDA and NCCL may take longer than that to start
joined = None
if exchange == "library":
    joined = GroupCommunicator.of(load_library(), dist.group.WORLD, torch.device("cuda", rank), {start})
geometry = AttentionGeometry.for_grid((2, 6, 8), "wan")
tokens = torch.randn(1, geometry.tokens // 2, 4, 64, device="cuda", dtype=torch.bfloat16)
routes, order = torch.zeros(1, 4, dtype=torch.int32, device="cuda"), torch.arange(4, device="cuda")
attend = lambda: sharded_attention(tokens, tokens, tokens, routes, order, geometry, group, communicator=joined)
attend()
torch.cuda.synchronize()
dist.barrier()
print("met", flush=True)
if joined is not None:
    joined._watch.timeout = {timeout}
if rank == 1:
    time.sleep(100)
attend()
torch.cuda.synchronize()
print("exchanged", flush=True)
"""


@pytest.mark.parametrize("exchange", ["library", "torch"])
def test_a_rank_that_waits_too_long_ends(exchange: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    program = PROGRAM.format(timeout=TIMEOUT, start=START)
    command = [sys.executable, "-c", program]
    environment = {**os.environ, **JOINED, "NCCL_NVLS_ENABLE": "0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), exchange], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        begun = time.monotonic()
        out, error = ranks[0].communicate(timeout=START + 4 * TIMEOUT)
        seconds = time.monotonic() - begun
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()  # reads the rest and closes the pipes
    print(f"{exchange}: {seconds:.1f} s", error[-3000:])
    assert out == "met\n", error
    assert ranks[0].returncode == -signal.SIGABRT
    if exchange == "library":
        assert f"rank 0: exchanges of 2 ranks: one has taken longer than {TIMEOUT:g} s" in error
        assert "torch.cuda.synchronize()" in error or "<string>" in error  # where the process was
