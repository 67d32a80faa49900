# SPDX-License-Identifier: Apache-2.0
"""Names of what the benchmarks measure, for the commands' help; the cases themselves need torch."""

from __future__ import annotations

MODELS = (
    "wan-1.3b",
    "wan-14b",
    "wan2.2-a14b",
    "wan2.2-i2v-a14b",
    "wan2.2-ti2v-5b",
    "hunyuan-video",
    "hunyuan-video-1.5",
)
"""The models of `bench step`."""

DEFAULT_MODEL = "wan-14b"

GEOMETRIES = ("wan-1.3b", "wan-14b", "hunyuan", "aligned")
"""The geometries of `bench attention` that are measured unless others are asked for."""
