# SPDX-License-Identifier: Apache-2.0
"""`vorta::ulysses_attention` on 1, 2 and 4 GPUs equals `vorta::routed_attention` on one.

Every rank has all of the inputs, computes both, and compares its own rows. Heads are in a random order, video tokens do
not fill the last shard, padding is NaN; calls are eager, and captured in a CUDA graph whose routes and order change.

On a machine with one GPU the ranks share it, with a library in the place of NCCL that moves messages through files.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from vorta_trt.plugins import load_library
from vorta_trt.plugins.communicator import create_id

from .ulysses_worker import run

pytestmark = pytest.mark.gpu


def compare(ranks: int, seed: int, folder: Path, one_gpu: bool = False) -> None:
    identity = create_id(load_library())
    spawn(run, (ranks, identity, seed, str(folder / "found"), one_gpu), nprocs=ranks)  # type: ignore[no-untyped-call]
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
    folders = [Path("/usr/local/cuda/include"), *Path(sysconfig.get_path("purelib")).glob("nvidia/*/include")]
    include = next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)
    runtimes = [*Path(sysconfig.get_path("purelib")).glob("nvidia/*/lib/libcudart.so.*"),
                *Path("/usr/local/cuda/lib64").glob("libcudart.so.*")]  # fmt: skip
    if include is None or not runtimes:
        pytest.skip("needs cuda_runtime_api.h and libcudart")
    library = tmp_path / "libnccl.so.2"
    source = Path(__file__).with_name("loopback_nccl.cpp")
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{include}", str(source), str(runtimes[0])]
    subprocess.run([*command, "-o", str(library)], check=True)
    monkeypatch.setenv("VORTA_TRT_NCCL", str(library))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(runtimes[0].parent), prepend=":")
    compare(ranks, seed, tmp_path, one_gpu=True)
