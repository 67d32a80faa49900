# SPDX-License-Identifier: Apache-2.0
"""Constants that several packages share. This module imports nothing but typing, so importing it costs nothing."""

from __future__ import annotations

from typing import Final

ROUTER_DECIDES: Final = -1
"""In `route_override`: the router decides about this head. Ids from 0 on are those of `Branch`."""

DEFAULT_TAU: Final = 0.3
"""Routing threshold of the authors' inference script. It changes no route: the best of 3 scores is at least 1/3."""

DENSE_TAU: Final = 1.1
"""A routing threshold that no score reaches, because scores are probabilities: every head is full."""

TRAIN_TIMESTEPS: Final = 1000
"""Timesteps of every flow-matching schedule: timestep = 1000 * sigma, from 1000 (noise) down to 0 (video)."""

TRANSFORMER: Final = "transformer"
"""The component that every checkpoint has; with two experts, the one for high noise."""

TRANSFORMER_2: Final = "transformer_2"
"""The second expert, for low noise, of checkpoints that have two."""

COMPONENTS: Final = (TRANSFORMER, TRANSFORMER_2)
"""Components of a diffusers pipeline that engines are built of, in running order."""

RANK: Final = "rank"
HEAD_ORDERS: Final = "head_orders"
RANK_INPUTS: Final = (RANK, HEAD_ORDERS)
"""Inputs of a model that is exported for several GPUs: int32 [1], and int32 [L, N]."""
