# SPDX-License-Identifier: Apache-2.0
"""`vorta::ulysses_attention` on 1, 2 and 4 GPUs equals `vorta::routed_attention` on one.

Every rank has all of the inputs, computes both, and compares its own rows. Heads are in a random order, video tokens do
not fill the last shard, padding is NaN; calls are eager, and captured in a CUDA graph whose routes and order change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vorta_trt.plugins import load_library
from vorta_trt.plugins.communicator import create_id

from .ulysses_worker import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_gets_its_rows_of_the_whole(
    ranks: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    identity = create_id(load_library())
    arguments = (ranks, identity, seed, str(tmp_path / "found"))
    torch.multiprocessing.spawn(run, arguments, nprocs=ranks)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"found{rank}")
        print(rank, found)
        assert len(found) >= 8
        assert all(difference == 0 for difference in found.values()), (rank, found)
