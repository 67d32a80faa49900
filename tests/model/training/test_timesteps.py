# SPDX-License-Identifier: Apache-2.0
"""What a step draws: from one stratum, all strata in turn, and the same whenever it is asked."""

from __future__ import annotations

import torch

from vorta_trt.model.training.timesteps import (
    add_noise,
    draw_noise,
    draw_timesteps,
    interval_of,
    least_noise,
    sample_indices,
)


def test_every_interval_has_its_turn(seed: int) -> None:
    intervals = [interval_of(seed, step, 5) for step in range(1, 101)]
    for turn in range(0, 100, 5):
        assert sorted(intervals[turn : turn + 5]) == [0, 1, 2, 3, 4]
    assert intervals[:5] != intervals[5:10] or intervals[5:10] != intervals[10:15]


def test_timesteps_fill_their_interval(seed: int) -> None:
    seen = set()
    for step in range(1, 6):
        timesteps = draw_timesteps(seed, step, 0, 5000, 5)
        interval = interval_of(seed, step, 5)
        assert timesteps.dtype == torch.float32
        assert bool((timesteps == timesteps.round()).all())
        assert timesteps.max() <= 1000 - 200 * interval
        assert timesteps.min() >= 1000 - 200 * (interval + 1) + 1
        assert torch.equal(least_noise(timesteps, 5), timesteps < 200)
        assert bool((least_noise(timesteps, 5) <= (interval == 4)).all())
        seen.update(timesteps.tolist())
    assert seen == set(range(1, 1001))


def test_draws_depend_on_seed_step_and_part_alone(seed: int) -> None:
    torch.rand(3)  # the global generator has no say
    noise = draw_noise(seed, 3, 1, (2, 5))
    assert torch.equal(noise, draw_noise(seed, 3, 1, (2, 5)))
    for other in ((seed + 1, 3, 1), (seed, 4, 1), (seed, 3, 2)):
        assert not torch.equal(noise, draw_noise(*other, (2, 5)))
        assert not torch.equal(draw_timesteps(*other, 50, 5), draw_timesteps(seed, 3, 1, 50, 5))


def test_every_epoch_has_every_sample_once(seed: int) -> None:
    indices = sample_indices(seed, 0, 21, 7)
    epochs = [indices[:7], indices[7:14], indices[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert sample_indices(seed, 5, 4, 7) == indices[5:9]


def test_noise_is_mixed_in_by_the_timestep() -> None:
    latents, noise = torch.randn(3, 2, 1, 2, 2), torch.randn(3, 2, 1, 2, 2)
    noisy = add_noise(latents, noise, torch.tensor([0.0, 250.0, 1000.0]))
    torch.testing.assert_close(noisy, torch.stack([latents[0], 0.75 * latents[1] + 0.25 * noise[1], noise[2]]))
