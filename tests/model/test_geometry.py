# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import pytest

from vorta_trt.model import AttentionGeometry, Branch
from vorta_trt.model.geometry import GeometryTypeError
from vorta_trt.plugins.operator_schema import MOST_TOKENS

VALID: dict[str, Any] = {
    "grid": (4, 6, 8),
    "tile": (2, 3, 4),
    "window": (3, 1, 3),
    "bucket": (2, 3, 2),
    "keep": 6,
    "coreset_keys": "query",
    "text_tokens": 5,
}


def test_published_settings_of_wan() -> None:
    geometry = AttentionGeometry.for_video(77, 720, 1280, "wan")
    assert geometry == AttentionGeometry((20, 45, 80), (5, 9, 8), (3, 3, 3), (2, 3, 2), 6, "query", 0)
    assert geometry.video_tokens == geometry.tokens == 72_000
    assert geometry.tile_tokens == 360 and geometry.bucket_tokens == 12 and geometry.tiles == (4, 5, 10)
    assert geometry.density("sliding") == pytest.approx(0.135)
    assert geometry.density("coreset") == 0.25
    assert geometry.density("full") == 1


def test_a_tile_and_a_bucket_of_ones_own() -> None:
    geometry = AttentionGeometry.for_video(77, 720, 1280, tile=(4, 5, 8), bucket=[5, 3, 2], reduction_rate=0.9)
    assert (geometry.tile, geometry.bucket, geometry.keep) == ((4, 5, 8), (5, 3, 2), 3 - 1)  # int(2.9999999999999996)
    assert AttentionGeometry.for_grid((1, 1, 37), tile=(1, 1, 37), bucket=(1, 1, 1)).tiles == (1, 1, 1)
    assert AttentionGeometry.for_video(77, 720, 1280, tile=(6, 9, 8)).tiles == (4, 5, 10)
    assert AttentionGeometry.for_video(77, 720, 1280, tile=(21, 9, 8)).tiles == (1, 5, 10)
    still = AttentionGeometry.for_grid((1, 45, 80), bucket=(2, 3, 2))
    assert (still.keep, still.keep_of(6), still.coreset_tokens) == (6, 3, 15 * 40 * 3)


def test_published_settings_of_hunyuan_video() -> None:
    geometry = AttentionGeometry.for_video(117, 720, 1280, "hunyuan_video")
    assert geometry == AttentionGeometry((30, 45, 80), (6, 9, 8), (3, 3, 3), (2, 3, 2), 6, "key", 256)
    assert geometry.tokens == 108_256
    assert geometry.density(Branch.SLIDING) == pytest.approx(0.108)


@pytest.mark.parametrize(
    ("video", "grid"),
    [
        ((81, 480, 832), (21, 30, 52)),
        ((77, 480, 832), (20, 30, 52)),
        ((1, 480, 832), (1, 30, 52)),
        ((5, 16, 16), (2, 1, 1)),
    ],
)
def test_pixels_to_tokens(video: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    assert AttentionGeometry.for_video(*video).grid == grid


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
@pytest.mark.parametrize("frames", [5, 17, 49, 77, 81, 113, 117, 121, 129])
@pytest.mark.parametrize("size", [(480, 832), (480, 848), (832, 480), (720, 1280), (704, 1280), (1264, 688), (16, 16)])
def test_every_window_covers_the_published_share(frames: int, size: tuple[int, int], family: str) -> None:
    geometry = AttentionGeometry.for_video(frames, *size, family)
    share = 0.135 if family == "wan" else 0.108
    assert geometry.least_window_tokens / geometry.video_tokens >= share
    assert geometry == AttentionGeometry.for_grid(geometry.grid, family)
    if geometry.video_tokens > 10_000:
        assert geometry.density("sliding") < 1.45 * share
        assert (geometry.bucket, geometry.keep) == ((2, 3, 2), 6)
        assert 0.24 < geometry.density("coreset") <= 0.25
        published = (5, 9, 8) if family == "wan" else (6, 9, 8)
        stretch = [side / other for side, other in zip(geometry.tile, published, strict=True)]
        assert max(stretch) / min(stretch) < 2**2


@pytest.mark.parametrize(
    ("video", "family", "tile"),
    [
        ((77, 720, 1280), "wan", (5, 9, 8)),  # published
        ((117, 720, 1280), "hunyuan_video", (6, 9, 8)),  # published
        ((77, 432, 768), "wan", (5, 9, 8)),  # divides, and covers more than the published share
        ((157, 720, 1280), "wan", (8, 9, 10)),  # the published tile divides, and would cover 6.75 %
        ((121, 720, 1280), "wan", (8, 15, 5)),
        ((121, 720, 1280), "hunyuan_video", (11, 9, 5)),
        ((81, 480, 832), "wan", (7, 6, 4)),
    ],
)
def test_chosen_tiles(video: tuple[int, int, int], family: str, tile: tuple[int, int, int]) -> None:
    assert AttentionGeometry.for_video(*video, family).tile == tile


def test_coverage_in_words() -> None:
    assert AttentionGeometry.for_video(77, 720, 1280).coverage == (
        "a window sees 13.5 % of the video tokens, a coreset keeps 50.0 %"
    )
    ragged = AttentionGeometry((1, 1, 10), (1, 1, 3), (1, 1, 1), (1, 1, 4), 2)
    assert ragged.coverage == (
        "a window sees at least 10.0 %, on average 28.0 %, of the video tokens, a coreset keeps 50.0 %"
    )


def test_choice_is_fast_for_huge_grids() -> None:
    start = time.thread_time()  # of the processor: others may have it meanwhile
    for grid in [(65_536, 65_536, 65_536), (1, 65_521, 65_519), (65_521, 1, 1), (4_001, 4_003, 4_007)]:
        geometry = AttentionGeometry.for_grid(grid)
        assert geometry.least_window_tokens / geometry.video_tokens >= 0.135
        assert geometry.attention_flops("coreset", 128) < geometry.attention_flops("full", 128)
    assert time.thread_time() - start < 5


def test_small_grids_get_small_tiles() -> None:
    for size in ((9, 128, 192), (9, 64, 96), (5, 32, 64), (1, 96, 96)):
        assert AttentionGeometry.for_video(*size).density("sliding") < 1
    assert AttentionGeometry.for_grid((1, 1, 1)).keep == 1


@pytest.mark.parametrize(
    ("grid", "bucket"),
    [((1, 45, 80), (1, 4, 3)), ((5, 2, 80), (2, 2, 3)), ((1, 1, 37), (1, 1, 12)), ((1, 2, 3), (1, 2, 3))],
)
def test_buckets_of_narrow_grids(grid: tuple[int, int, int], bucket: tuple[int, int, int]) -> None:
    assert AttentionGeometry.for_grid(grid).bucket == bucket


@pytest.mark.parametrize(
    ("video", "culprit"),
    [
        ((80, 480, 832), "frames 80"),
        ((81, 481, 832), "height 481"),
        ((81, 480, 833), "width 833"),
        ((2, 8, 8), "frames 2"),
        ((1, 8, 16), "height 8"),
    ],
)
def test_video_that_does_not_fit_names_the_nearest_in_pixels(video: tuple[int, int, int], culprit: str) -> None:
    with pytest.raises(ValueError, match=f"{culprit}.*nearest video sizes that fit") as error:
        AttentionGeometry.for_video(*video)
    for size in str(error.value).rsplit(": ", 1)[1].split(", "):
        assert AttentionGeometry.for_video(*map(int, size.split("x")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 6)}, r"grid \(4, 6\): must have three entries"),
        ({"grid": (4, 6, 0)}, r"grid \(4, 6, 0\): entry 0: must be at least 1"),
        ({"window": (3, 2, 3)}, r"window \(3, 2, 3\): every entry must be odd.*use \(3, 3, 3\)"),
        ({"keep": 0}, "keep 0: must be at least 1"),
        ({"keep": 13}, "keep 13: must be between 1 and the 12 tokens"),
        ({"coreset_keys": "value"}, "coreset_keys 'value': must be 'query'"),
        ({"text_tokens": -1}, "text_tokens -1: must be at least 0"),
    ],
)
def test_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionGeometry(**{**VALID, **change})


@pytest.mark.parametrize(
    "change",
    [{"grid": (4, 6, 8.0)}, {"tile": (True, 3, 4)}, {"keep": 6.0}, {"keep": True}, {"text_tokens": "5"}, {"grid": 4}],
)
def test_only_integers(change: dict[str, Any]) -> None:
    with pytest.raises(GeometryTypeError, match="integer"):
        AttentionGeometry(**{**VALID, **change})


def test_lists_become_tuples_and_geometry_hashes() -> None:
    assert AttentionGeometry(**{**VALID, "grid": [4, 6, 8]}) == AttentionGeometry(**VALID)
    assert hash(AttentionGeometry(**VALID)) == hash(AttentionGeometry(**VALID))


def test_attributes_and_dictionaries_round_trip() -> None:
    geometry = AttentionGeometry(**VALID)
    attributes = geometry.to_dict()
    assert list(attributes) == ["grid", "tile", "window", "bucket", "keep", "coreset_keys", "text_tokens"]
    node = {**attributes, "coreset_keys": b"query", "scale": 0.5, "plugin_namespace": b"vorta", "plugin_version": b"1"}
    assert AttentionGeometry.from_attributes(node) == geometry
    assert AttentionGeometry.from_dict(geometry.to_dict()) == geometry
    with pytest.raises(ValueError, match="unknown.*colour"):
        AttentionGeometry.from_attributes({**attributes, "colour": 1})
    with pytest.raises(ValueError, match="missing.*keep"):
        AttentionGeometry.from_dict({key: value for key, value in attributes.items() if key != "keep"})


PUBLISHED_CONFIG = {
    "latent_shape": [20, 45, 80],
    "tile_size": [5, 9, 8],
    "window_size": [3, 3, 3],
    "lowres_window_size": [2, 3, 2],
    "lowres_reduction_rate": 0.5,
}


def test_router_config() -> None:
    expected = AttentionGeometry.for_video(77, 720, 1280)
    assert AttentionGeometry.from_router_config(PUBLISHED_CONFIG) == expected
    assert AttentionGeometry.from_router_config({"self_attention_kwargs": PUBLISHED_CONFIG, "name": "x"}) == expected
    video = {**PUBLISHED_CONFIG, "latent_shape": [30, 45, 80], "tile_size": [6, 9, 8]}
    hunyuan = AttentionGeometry.from_router_config(video, "hunyuan_video")
    assert hunyuan == AttentionGeometry.for_video(117, 720, 1280, "hunyuan_video")
    with pytest.raises(ValueError, match="lacks tile_size"):
        AttentionGeometry.from_router_config(
            {key: value for key, value in PUBLISHED_CONFIG.items() if key != "tile_size"}
        )


@pytest.mark.parametrize(("rate", "keep"), [(0.0, 12), (0.5, 6), (0.75, 3), (0.9, 1), (0.99, 1)])
def test_keep_of_reduction_rate(rate: float, keep: int) -> None:
    assert AttentionGeometry.from_router_config({**PUBLISHED_CONFIG, "lowres_reduction_rate": rate}).keep == keep


@pytest.mark.parametrize("rate", [1.0, -0.1, 2])
def test_reduction_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match="reduction rate"):
        AttentionGeometry.for_grid((4, 6, 8), reduction_rate=rate)


@pytest.mark.parametrize("size", [(10**20 + 1, 96, 96), (45, 10**400, 96), (45, 96, (1 << 20) + 16)])
def test_sizes_that_no_video_has(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="(frames|height|width) .*: must be at most 1048576; use e.g. 77x720x1280"):
        AttentionGeometry.for_video(*size)


def test_more_tokens_than_the_kernels_count() -> None:
    with pytest.raises(ValueError, match=f"has 4295032832 tokens; must have at most {MOST_TOKENS}; use e.g."):
        AttentionGeometry.for_video(4 * 65536 + 1, 4096, 4096)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="family 'mochi': must be one of 'wan'"):
        AttentionGeometry.for_video(77, 720, 1280, "mochi")
    with pytest.raises(ValueError, match="branch 'dense'"):
        AttentionGeometry(**VALID).density("dense")


def test_flops() -> None:
    geometry = AttentionGeometry(**VALID)
    tokens, text = math.prod(VALID["grid"]), VALID["text_tokens"]
    assert geometry.attention_flops("full", 64) == 4 * 64 * (tokens + text) ** 2
    assert geometry.attention_flops("coreset", 64, text_length=0) == 4 * 64 * (tokens // 2) ** 2
    seen = 2 * 1 * 2 * geometry.tile_tokens  # the window spans both frame tiles, one row, and both of the columns
    assert geometry.sliding_pairs == tokens * seen and geometry.least_window_tokens == seen
    assert geometry.attention_flops("sliding", 64) == 4 * 64 * (tokens * (seen + text) + text * (tokens + text))


def test_geometry_needs_no_torch() -> None:
    code = "import sys; from vorta_trt.model import AttentionGeometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
