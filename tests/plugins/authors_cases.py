# SPDX-License-Identifier: Apache-2.0
"""Outputs of the method's authors' code, for the oracles of the kernel tests.

Letters: B batch, S video tokens, T text tokens, N heads, D head dim.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .kernel_oracle import CORESET, FULL, SLIDING

#: query, key, value and an output by each name below, float32 [B, S+T, N, D]; grid (10, 6, 6), tile (2, 3, 2), window
#: (3, 1, 3), bucket (2, 3, 2), keep 6, 5 valid text tokens where there are 8.
FILE = Path(__file__).parents[1] / "data" / "attention.safetensors"

every_case = pytest.mark.parametrize(
    ("name", "route", "text", "coreset_keys"),
    [
        ("full_video_only", FULL, 0, "query"),
        ("full_with_text", FULL, 8, "query"),
        ("sliding_video_only", SLIDING, 0, "query"),
        ("sliding_with_text", SLIDING, 8, "query"),
        ("coreset_video_only_keys_by_query", CORESET, 0, "query"),
        ("coreset_with_text_keys_by_key", CORESET, 8, "key"),
    ],
)
