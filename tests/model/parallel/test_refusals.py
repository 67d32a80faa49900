# SPDX-License-Identifier: Apache-2.0
"""What `parallelize` and a parallelized model refuse, and what they say."""

from __future__ import annotations

import pytest

from vorta_trt.model import RoutedTransformer

from ...ranks import Pool

SAID = {
    "placement": ("ValueError", "placement 'random'", "'balanced'"),
    "exchange": ("ValueError", "exchange 'nccl'", "'auto', 'library', 'torch'"),
    "library": ("ValueError", "exchange 'library'", "rank 0: computes on cpu", "use 'torch' or 'auto'"),
    "type": ("TypeError", "group [0, 1]", "new_group"),
    "not in it": ("ValueError", "here rank 1", "call this on those ranks alone that new_group was given"),
    "rows": ("ValueError", "group None", "here rank 1", "For all 4 processes leave the group out"),
    "tiles": ("ValueError", "group None", "here rank 1"),
    "destroyed": ("ValueError", "was destroyed", "new_group"),
    "heads": ("ValueError", "2 GPUs for 3 heads", "use one of 1, 3"),
    "costs": ("ValueError", "costs (1.0, -1.0, 0.5)", "must be a number >= 0 for each of full, coreset and sliding"),
    "gradients": ("RuntimeError", "grad mode is on", "torch.no_grad()"),
    "mixed": ("RuntimeError", "attention_mode", "tau=2"),
    "full": ("RuntimeError", "attention_mode", "tau=2"),
    "observer": ("RuntimeError", "observer", "calibrate"),
}


def test_refusals(pool: Pool, folders: dict[str, dict[str, str]]) -> None:
    first, second = pool("refusals", 2, **folders["wan"])
    assert set(second) == set(SAID) and set(SAID) - set(first) == {"not in it", "rows", "tiles"}
    for what, parts in SAID.items():
        assert all(part in second[what] for part in parts), second[what]


def test_no_process_group(folders: dict[str, dict[str, str]]) -> None:
    model = RoutedTransformer.from_pretrained(folders["wan"]["folder"])
    with pytest.raises(RuntimeError, match=r"in no process group; call torch.distributed.init_process_group"):
        model.parallelize()
    assert model.parallel is None
