# SPDX-License-Identifier: Apache-2.0
"""Both families, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ...tiny import Tiny


@pytest.fixture(scope="session", params=["wan", "hunyuan_video"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    made: Tiny = request.getfixturevalue(f"tiny_{request.param}")
    return made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only cost time at this size, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
