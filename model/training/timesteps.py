# SPDX-License-Identifier: Apache-2.0
"""The random draws of a training step: timesteps, noise and samples, functions of seed, step and sample alone.

Nothing here has a state, so a resumed run draws exactly what the uninterrupted one would have, on any device, and
processes and micro-batches draw together what a single one would.

Flow matching: a latent x and noise e are mixed to (1 - s) x + s e at timestep t = 1000 s; the model predicts e - x.
Timesteps are the integers from 1 (little noise) to 1000, or those that one of two experts takes. They are cut into
intervals; a step draws all of its timesteps from one of them, and every interval has its turn before one comes again.
"""

from __future__ import annotations

import math

import torch
from numpy.random import SeedSequence
from torch import Tensor

from vorta_trt.model.constants import TRAIN_TIMESTEPS
from vorta_trt.model.experts import timesteps_of_expert

ALL_TIMESTEPS = range(TRAIN_TIMESTEPS, 0, -1)
_INTERVALS, _TIMESTEPS, _NOISE, _ORDER = range(4)  # streams of random numbers


def interval_of(seed: int, step: int, intervals: int) -> int:
    """Returns which interval a step (from 1 on) draws from; 0 has the most noise."""
    turn, position = divmod(step - 1, intervals)
    return int(torch.randperm(intervals, generator=_generator(_INTERVALS, seed, turn))[position])


def timesteps_of(component: str, boundary_ratio: float | None) -> range:
    """The timesteps to train a model with, from the highest down: all, or those that one of two experts takes."""
    highest, lowest = timesteps_of_expert(component, boundary_ratio)
    first = TRAIN_TIMESTEPS if highest == TRAIN_TIMESTEPS else math.ceil(highest) - 1
    return range(first, max(math.ceil(lowest), 1) - 1, -1)


def draw_timesteps(seed: int, step: int, part: int, count: int, intervals: int, among: range = ALL_TIMESTEPS) -> Tensor:
    """Draws timesteps of one part of a step, uniform in the step's interval: float32 [count].

    Args:
        seed: Seed of the run.
        step: Number of the step, from 1 on.
        part: Number of the sample in the step.
        count: How many timesteps.
        intervals: How many intervals there are.
        among: The timesteps, from the highest down, which are cut into the intervals.
    """
    share = torch.rand(count, generator=_generator(_TIMESTEPS, seed, step, part))  # [count], in [0, 1)
    share = (share + interval_of(seed, step, intervals)) / intervals
    return among.start - (share * len(among)).floor().clamp(max=len(among) - 1)


def draw_noise(seed: int, step: int, part: int, shape: tuple[int, ...]) -> Tensor:
    """Draws normal noise, float32, on the CPU."""
    return torch.randn(shape, generator=_generator(_NOISE, seed, step, part))


def sample_indices(seed: int, first: int, count: int, samples: int) -> list[int]:
    """Returns the samples at positions `first`, `first` + 1, .. of endless epochs, each in an order of its own."""
    indices = []
    for position in range(first, first + count):
        epoch, offset = divmod(position, samples)
        order = torch.randperm(samples, generator=_generator(_ORDER, seed, epoch))
        indices.append(int(order[offset]))
    return indices


def least_noise(timesteps: Tensor, intervals: int) -> Tensor:
    """Says which timesteps [B] have too little noise for the diffusion term: bool [B].

    These are the timesteps below the upper end of the last interval. The end itself (200 of 1000, with 5 intervals) is
    not one of them, as in the authors' code, although it is drawn from that interval.
    """
    return timesteps < TRAIN_TIMESTEPS / intervals


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Returns what the model sees: (1 - t/1000) latents + t/1000 noise, all [B, C, F, H, W], timesteps [B]."""
    sigma = (timesteps / TRAIN_TIMESTEPS).view(-1, *[1] * (latents.ndim - 1))  # [B, 1, 1, 1, 1]
    return (1 - sigma) * latents + sigma * noise


def _generator(*stream: int) -> torch.Generator:
    state = SeedSequence(stream).generate_state(2)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
