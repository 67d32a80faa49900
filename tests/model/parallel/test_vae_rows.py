# SPDX-License-Identifier: Apache-2.0
"""A VAE whose ranks decode some rows of every frame each, against one process, over gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vorta_trt.model.parallel.groups import EVERYONE
from vorta_trt.model.parallel.vae_rows import RowSplit, decoding_rows

from ...ranks import Pool

# Relative, of convolutions over another number of rows.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
CHANNELS = 4
SIZES = {"base_dim": 4, "z_dim": CHANNELS, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
STATISTICS = {"latents_mean": [0.1] * CHANNELS, "latents_std": [1.0] * CHANNELS}
RESIDUAL = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 4}
FIRST, SECOND = {**SIZES, **STATISTICS}, {**SIZES, **STATISTICS, **RESIDUAL, "scale_factor_spatial": 16}


@pytest.mark.parametrize(
    ("config", "ranks", "rows", "scale", "dtype"),
    [
        (FIRST, 2, 5, 8, torch.float32),
        (FIRST, 4, 9, 8, torch.float32),
        (FIRST, 4, 4, 8, torch.float32),
        (SECOND, 3, 7, 16, torch.float32),
        (FIRST, 2, 5, 8, torch.bfloat16),
    ],
)
def test_rows_of_ranks_are_those_of_one(
    pool: Pool, config: dict[str, Any], ranks: int, rows: int, scale: int, dtype: torch.dtype
) -> None:
    latents = 1, CHANNELS, 3, rows, 6
    case = {"family": "wan", "vae_class": "AutoencoderKLWan", "config": config, "latents": latents, "seed": 3}
    case |= {"dtype": dtype}
    for distance, shape in pool("decoded_rows", ranks, **case):
        assert distance < ROUNDING[dtype]
        assert shape == (1, 3, 9, rows * scale, 6 * scale)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of latents on 4 ranks: must be at least one for each"):
        RowSplit(3, EVERYONE, 4, 0)
    strided = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1))
    with (
        pytest.raises(ValueError, match=r"0: a convolution with kernel \(3, 3\), stride \(2, 2\)"),
        decoding_rows(strided, RowSplit(4, EVERYONE, 1, 0), ()),
    ):
        pass
    assert not strided[0]._forward_pre_hooks
    assert torch.equal(RowSplit(4, EVERYONE, 1, 0).own(torch.ones(2, 8, 3)), torch.ones(2, 8, 3))
