# SPDX-License-Identifier: Apache-2.0
"""The step broadcast skips the steps at which diffusers' Pyramid Attention Broadcast reuses an attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast


def computed_by_diffusers(timesteps: list[float], interval: int, low: float, high: float) -> list[bool]:
    """Runs diffusers' hook on a module that counts its calls."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook

    class Attention(torch.nn.Module):
        calls = 0

        def forward(self, value: float) -> float:
            self.calls += 1
            return value

    attention, now = Attention(), [0.0]
    hook = PyramidAttentionBroadcastHook((low, high), interval, lambda: now[0])
    HookRegistry.check_if_exists_or_initialize(attention).register_hook(hook, "pab")
    computed = []
    for timestep in timesteps:
        now[0], before = timestep, attention.calls
        attention(timestep)
        computed.append(attention.calls > before)
    return computed


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_the_rule_is_that_of_diffusers(interval: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    timesteps = sorted(random.uniform(0, 1000, random.integers(4, 60)).tolist(), reverse=True)
    timesteps[1], timesteps[-2] = 800.0, 100.0  # the ends of the range are outside
    timesteps.sort(reverse=True)
    expected = computed_by_diffusers(timesteps, interval, 100, 800)
    expected[-1] = True  # always, here
    found = StepBroadcast(interval, (100, 800)).compute(timesteps, None, [False] * len(timesteps))
    assert list(found) == expected


def test_forced_steps_and_the_ends() -> None:
    timesteps = [700.0, 600.0, 500.0, 400.0, 300.0, 200.0]
    cache = StepBroadcast(10)
    assert cache.compute(timesteps, None, [False] * 6) == (True, False, False, False, False, True)
    assert cache.compute(timesteps, None, [False, False, True, False, False, False])[2]
    assert cache.to_dict() == {"method": "broadcast", "interval": 10, "timestep_range": [100.0, 800.0]}
    assert cache.notes(timesteps, None) == []


def test_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match="interval 0: must be at least 1"):
        StepBroadcast(0)
    with pytest.raises(ValueError, match="timestep range 800 to 100: must go up"):
        StepBroadcast(2, (800, 100))
