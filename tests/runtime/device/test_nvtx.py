# SPDX-License-Identifier: Apache-2.0
"""Ranges for Nsight Systems, with torch's functions for them replaced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vorta_trt.runtime.device import nvtx


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    nvtx._annotation.cache_clear()
    yield
    nvtx._annotation.cache_clear()


def test_a_range_has_the_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", pushed.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: pushed.append("end"))
    for name in ("wan.bundle step 3", "wan {0} {x}.bundle"):
        with nvtx.nvtx_range(name):
            assert pushed[-1] == name
    assert pushed[1::2] == ["end", "end"]
