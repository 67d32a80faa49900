# SPDX-License-Identifier: Apache-2.0
"""Ranges for Nsight Systems, with torch's functions for them replaced."""

from __future__ import annotations

import pytest
import torch

from vorta_trt.runtime.device.nvtx import nvtx_range


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_a_range_has_the_name_as_it_is(monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", pushed.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: pushed.append("end"))
    for name in ("wan.bundle step 3", "wan {0} {x}.bundle"):
        with nvtx_range(name):
            assert pushed[-1:] == ([name] if cuda else [])
    assert pushed[1::2] == (["end", "end"] if cuda else [])
