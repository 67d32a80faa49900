# SPDX-License-Identifier: Apache-2.0
"""Inputs of attention like those of real transformers: values with a mean, dominant keys, outlier channels.

Unit-normal inputs alone hide what goes wrong in low precision: every weight is small and alike, V averages to nothing.
So every test's values have a mean of their own in each channel, and the heads take turns at `CHARACTERS`.

Letters: B batch, L tokens, N heads, D head dim.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

#: Kinds of a head's query and key.
CHARACTERS = ("normal", "sinks", "query and key outliers", "key outliers", "key mean", "sinks and outliers")
#: A sink's logit above those of the other keys, in nats.
SINK_NATS = (0.0, 14.0)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def add_sinks(
    query: Tensor,
    key: Tensor,
    places: Sequence[int],
    nats: float,
    generator: torch.Generator,
    scale: float | None = None,
) -> None:
    """Changes query and key [L, D] of one head so that the logits of the keys at `places` are `nats` above the others.

    Args:
        query: Changed in place, all rows.
        key: Changed in place, the rows of `places`.
        places: Token ids of the sinks.
        nats: Difference to the mean logit of the other keys, the same for every query.
        generator: Draws the direction that queries and sinks share.
        scale: Scale of the logits; 1/sqrt(D) if None.
    """
    width = query.shape[-1]
    signs = torch.randint(0, 2, (width,), generator=generator, device=generator.device).to(query) * 2 - 1  # [D]
    # With an entry of `size` in query and key alike a logit gains scale * D * size^2.
    size = (nats / (width * (width**-0.5 if scale is None else scale))) ** 0.5
    query += signs * size
    sinks = key[list(places)]
    key[list(places)] = sinks + signs * (size - (sinks @ signs)[:, None] / width)  # without their own part in it


def add_outliers(query: Tensor, key: Tensor, kind: str) -> None:
    """Gives query and key [L, D] outlier channels.

    Args:
        query: Changed in place.
        key: Changed in place.
        kind: "query and key": 4 channels of the query and 4 others of the key are 16 times as large. "key": 3 channels
            of the key are 20 times as large. "key mean": 3 channels of the key have a mean of 20.
    """
    if kind == "query and key":
        query[:, :4] *= 16
        key[:, 4:8] *= 16
    elif kind == "key":
        key[:, 1:4] *= 20
    else:
        key[:, 1:4] += 20


def realistic(
    shape: tuple[int, int, int, int], generator: torch.Generator, characters: Sequence[str] = CHARACTERS
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, L, N, D] in float32 on the generator's device.

    Args:
        shape: B, L, N, D; D at least 8.
        generator: Draws the numbers, and which of `characters` comes first.
        characters: Kinds that the heads get in turn.
    """
    batch, length, heads, width = shape
    query, key, value = (normal(shape, generator) for _ in range(3))
    value += normal((batch, 1, heads, width), generator)

    draw = random.Random(f"{generator.initial_seed()} {shape}").randrange
    first = draw(len(characters))
    for index in range(batch * heads):
        sample, head = divmod(index, heads)
        character = characters[(first + index) % len(characters)]
        q, k = query[sample, :, head], key[sample, :, head]  # [L, D]
        if "key mean" in character:
            add_outliers(q, k, "key mean")
        elif "query and key" in character:
            add_outliers(q, k, "query and key")
        elif "outliers" in character:
            add_outliers(q, k, "key")
        if "sinks" in character:
            nats = SINK_NATS[0] + (SINK_NATS[1] - SINK_NATS[0]) * draw(1000) / 999
            places = (0, length // 2, length - 1, draw(length))
            add_sinks(q, k, sorted(set(places[: 1 + draw(4)])), nats, generator)
    return query, key, value
