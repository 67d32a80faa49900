# SPDX-License-Identifier: Apache-2.0
"""The tiny models serve the tests that draw their timesteps: every draw must take all branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.mark.parametrize("name", ["tiny_wan", "tiny_hunyuan_video"])
def test_every_timestep_takes_all_branches(name: str, request: pytest.FixtureRequest) -> None:
    model: Any = request.getfixturevalue(name).model(tau=0.0)
    routes = model.route_scores(torch.arange(0, 1000, 0.125)).argmax(-1)  # [L, B, N]
    missing = [(routes != branch).all(dim=2).all(dim=0).nonzero().flatten().tolist() for branch in range(3)]
    assert missing == [[], [], []], "timesteps (in eighths) without full, coreset and sliding heads"
    assert len(routes.unique(dim=1)[0]) > 10, "routes must change over the schedule"
