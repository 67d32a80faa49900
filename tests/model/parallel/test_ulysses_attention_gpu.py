# SPDX-License-Identifier: Apache-2.0
"""`vorta::ulysses_attention` on 1, 2 and 4 GPUs equals `vorta::routed_attention` on one.

Every rank has all of the inputs, computes both, and compares its own rows. Heads are in a random order, video tokens do
not fill the last shard, padding is NaN; calls are eager, and captured in a CUDA graph whose routes and order change.

On a machine with one GPU the ranks share it, with a library in the place of NCCL that moves messages through files.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from vorta_trt.plugins import load_library
from vorta_trt.plugins.communicator import create_id

from .ulysses_worker import run

pytestmark = pytest.mark.gpu

LIMIT = 60  # seconds that the processes of a test may take
PACKAGES = Path(torch.__file__).parents[1]


def compare(ranks: int, seed: int, folder: Path, one_gpu: bool = False) -> None:
    identity = create_id(load_library())
    arguments = (ranks, identity, seed, str(folder / "found"), one_gpu)
    context = spawn(run, arguments, nprocs=ranks, join=False)  # type: ignore[no-untyped-call]
    end = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=1):  # raises what a rank raises
            assert time.monotonic() < end, f"ranks have not ended within {LIMIT} s"
    finally:
        for process in context.processes:
            process.kill()
    for rank in range(ranks):
        found = torch.load(folder / f"found{rank}")
        print(rank, found)
        assert len(found) >= 6
        assert all(difference == 0 for difference in found.values()), (rank, found)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_gets_its_rows_of_the_whole(
    ranks: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    compare(ranks, seed, tmp_path)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_on_one_gpu(ranks: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("g++") or pytest.skip("needs g++ to make the library in NCCL's place")
    folders = [*PACKAGES.glob("nvidia/*/include"), Path("/usr/local/cuda/include")]
    needed = ("cuda_runtime_api.h", "crt/host_defines.h")  # packages of the runtime alone lack the latter
    include = next((folder for folder in folders if all((folder / name).is_file() for name in needed)), None)
    places = [*PACKAGES.glob("nvidia/*/lib/libcudart.so.*"), *Path("/usr/local/cuda/lib64").glob("libcudart.so.*")]
    if include is None or not places:
        pytest.skip("needs cuda_runtime_api.h and libcudart")
    library = tmp_path / "libnccl.so.2"
    source = Path(__file__).with_name("loopback_nccl.cpp")
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{include}", str(source), str(places[0])]
    subprocess.run([*command, "-o", str(library)], check=True)
    monkeypatch.setenv("VORTA_TRT_NCCL", str(library))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(places[0].parent), prepend=":")
    compare(ranks, seed, tmp_path, one_gpu=True)
