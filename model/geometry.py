# SPDX-License-Identifier: Apache-2.0
"""The geometry of routed attention: the only place that knows about grids, tiles, windows and buckets.

Letters: S video tokens (= F*H*W of the token grid), T text tokens (padded), D head dimension. Axes are always (frame,
height, width); video tokens lie in raster order and text tokens follow them.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any

from vorta_trt.model.boxes import Shape, box_counts, box_kinds, least_window, window_pairs
from vorta_trt.model.families import DEFAULT_FAMILY, ModelFamily, get_family
from vorta_trt.model.tiling import PUBLISHED_WINDOW, choose_bucket, choose_tile
from vorta_trt.plugins.operator_schema import MOST_TOKENS, ULYSSES_ATTENTION, choices


class GeometryTypeError(TypeError, ValueError):
    """A value of the wrong type; a ValueError too, so that callers report it like every other bad value."""


class Branch(IntEnum):
    """Branch ids as they stand in `routes`; any other id is treated as FULL."""

    FULL = 0
    CORESET = 1
    SLIDING = 2


PUBLISHED_REDUCTION_RATE = 0.5
LARGEST_SIZE = 1 << 20  # frames or pixels of a side
_ROUTER_CONFIG_KEYS = ("latent_shape", "tile_size", "window_size", "lowres_window_size", "lowres_reduction_rate")


@dataclass(frozen=True)
class AttentionGeometry:
    """Shapes of one routed attention; they are the first attributes of the operator, in its order.

    Attributes:
        grid: Token grid (frames, height, width); S = F*H*W.
        tile: Sliding tile in tokens. Tiles start at multiples of its size; the last along an axis may be shorter, even
            if it is the only one.
        window: Sliding window in tiles; odd along each axis. A window of at least as many tiles as the axis has sees
            the whole axis.
        bucket: Coreset bucket in tokens; the last along an axis may be shorter, as with tiles.
        keep: Tokens of a whole bucket that stay, its centre included; 1 <= keep <= prod(bucket). A shorter bucket keeps
            as large a share, rounded down, and at least its centre.
        coreset_keys: "query" if the queries' similarities choose the kept keys and values too, "key" if the keys' own
            do.
        text_tokens: T, padded text tokens after the video tokens; 0 if the self-attention has none.

    Raises:
        GeometryTypeError: An entry is not an integer (bool and float are refused).
        ValueError: A rule above is broken; the message names argument, value, rule and remedy.
    """

    grid: Shape
    tile: Shape
    window: Shape
    bucket: Shape
    keep: int
    coreset_keys: str = "query"
    text_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("grid", "tile", "window", "bucket"):
            object.__setattr__(self, name, _shape(name, getattr(self, name)))
        for name, lowest in (("keep", 1), ("text_tokens", 0)):
            object.__setattr__(self, name, _integer(name, getattr(self, name), lowest))
        if any(size % 2 == 0 for size in self.window):
            odd = tuple(size + 1 - size % 2 for size in self.window)
            raise ValueError(
                f"window {self.window}: every entry must be odd, so that the query's tile is its centre; use {odd}"
            )
        if self.keep > self.bucket_tokens:
            raise ValueError(
                f"keep {self.keep}: must be between 1 and the {self.bucket_tokens} tokens of bucket {self.bucket}; "
                f"use {self.bucket_tokens} to keep all"
            )
        if self.coreset_keys not in choices("coreset_keys"):
            raise ValueError(
                f"coreset_keys {self.coreset_keys!r}: must be 'query' (the queries' choice) or 'key' (the keys' own "
                f"similarities)"
            )

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @property
    def video_tokens(self) -> int:
        """S."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        """S + T."""
        return self.video_tokens + self.text_tokens

    @property
    def tile_tokens(self) -> int:
        """Tokens of a whole tile."""
        return math.prod(self.tile)

    @property
    def bucket_tokens(self) -> int:
        """Tokens of a whole bucket."""
        return math.prod(self.bucket)

    @property
    def tiles(self) -> Shape:
        """Tiles along each axis."""
        return box_counts(self.grid, self.tile)

    @property
    def buckets(self) -> Shape:
        """Buckets along each axis."""
        return box_counts(self.grid, self.bucket)

    @property
    def window_tiles(self) -> Shape:
        """Tiles that a query sees along each axis: the window, at most the whole axis."""
        frames, height, width = (min(size, tiles) for size, tiles in zip(self.window, self.tiles, strict=True))
        return frames, height, width

    @property
    def sliding_pairs(self) -> int:
        """Pairs of a video query and a video key that it sees in the sliding branch."""
        return window_pairs(self.grid, self.tile, self.window)

    @property
    def least_window_tokens(self) -> int:
        """Video tokens of the smallest window of any video query; windows that hold a shorter tile are smaller."""
        return least_window(self.grid, self.tile, self.window)

    @property
    def coreset_tokens(self) -> int:
        """Video tokens that the coreset branch keeps."""
        return sum(kind.boxes * self.keep_of(kind.tokens) for kind in box_kinds(self.grid, self.bucket))

    @property
    def coverage(self) -> str:
        """The shares of the video that windows and coreset see, in words."""
        least, mean = self.least_window_tokens / self.video_tokens, self.density("sliding")
        window, average = (f"{100 * share:.1f} %" for share in (least, mean))
        if window != average:
            window = f"at least {window}, on average {average},"
        kept = 100 * self.coreset_tokens / self.video_tokens
        return f"a window sees {window} of the video tokens, a coreset keeps {kept:.1f} %"

    def keep_of(self, tokens: int) -> int:
        """How many tokens a bucket of `tokens` tokens keeps; a whole bucket keeps `keep`."""
        return max(1, tokens * self.keep // self.bucket_tokens)

    def density(self, branch: str | Branch) -> float:
        """Share of the S*S video query-key pairs that `branch` ("full", "coreset", "sliding") computes."""
        branch = _branch(branch)
        if branch is Branch.CORESET:
            return (self.coreset_tokens / self.video_tokens) ** 2
        if branch is Branch.SLIDING:
            return self.sliding_pairs / self.video_tokens**2
        return 1.0

    def attention_flops(self, branch: str | Branch, head_dim: int, text_length: int | None = None) -> int:
        """FLOPs of QK^T and PV of one head: 4 * D per query-key pair; `text_length` defaults to all T text tokens."""
        branch = _branch(branch)
        text = self.text_tokens if text_length is None else text_length
        video = self.video_tokens
        if branch is Branch.CORESET:
            pairs = (self.coreset_tokens + text) ** 2
        elif branch is Branch.SLIDING:
            pairs = self.sliding_pairs + video * text + text * (video + text)
        else:
            pairs = (video + text) ** 2
        return 4 * head_dim * pairs

    # -- constructors --------------------------------------------------------------------------------------------------

    @classmethod
    def for_grid(
        cls,
        grid: Sequence[int],
        family: str = DEFAULT_FAMILY,
        *,
        tile: Sequence[int] | None = None,
        bucket: Sequence[int] | None = None,
        window: Sequence[int] = PUBLISHED_WINDOW,
        reduction_rate: float = PUBLISHED_REDUCTION_RATE,
        text_tokens: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> AttentionGeometry:
        """Geometry for a token grid.

        Args:
            grid: Tokens (frames, height, width).
            family: Name of the model family, which says who chooses the coreset's keys and how long the text is.
            tile: Sliding tile; None chooses one by the rule in `tiling.py`.
            bucket: Coreset bucket; None is the published one, as far as the grid has room for it.
            window: Sliding window in tiles. The rule chooses a tile for the published window, whatever is given here.
            reduction_rate: Share of a bucket's tokens that are dropped.
            text_tokens: Padded text tokens; None are the model's.
            config: Config of the diffusers transformer; None stands for a published model of the family.

        Raises:
            ValueError: A value breaks a rule of the class.
        """
        settings = get_family(family)
        grid = _shape("grid", grid)
        if tile is None:
            tile = choose_tile(grid, settings.published_grid, settings.published_tile)
        bucket = choose_bucket(grid) if bucket is None else _shape("bucket", bucket)
        return cls(
            grid=grid,
            tile=_shape("tile", tile),
            window=_shape("window", window),
            bucket=bucket,
            keep=keep_tokens(bucket, reduction_rate),
            coreset_keys=settings.coreset_keys,
            text_tokens=_text_tokens(settings, config) if text_tokens is None else text_tokens,
        )

    @classmethod
    def for_video(
        cls,
        frames: int,
        height: int,
        width: int,
        family: str = DEFAULT_FAMILY,
        *,
        tile: Sequence[int] | None = None,
        bucket: Sequence[int] | None = None,
        window: Sequence[int] = PUBLISHED_WINDOW,
        reduction_rate: float = PUBLISHED_REDUCTION_RATE,
        text_tokens: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> AttentionGeometry:
        """Geometry for a video of `frames` x `height` x `width` pixels.

        The VAE turns 1 + 4n frames into 1 + n latent frames and shrinks height and width by 8, patches of (1, 2, 2)
        make tokens of that: 81 x 480 x 832 -> grid (21, 30, 52). Other families, and some models of a family, have
        other factors. Every size of whole tokens has a geometry. The other keyword arguments are those of `for_grid`.

        Args:
            frames: Number of frames of the video.
            height: Height of the video in pixels.
            width: Width of the video in pixels.
            family: Name of the model family.
            tile: Sliding tile in tokens; see `for_grid`.
            bucket: Coreset bucket in tokens; see `for_grid`.
            window: Sliding window in tiles.
            reduction_rate: Share of a bucket's tokens that are dropped.
            text_tokens: Padded text tokens; None are the model's.
            config: The diffusers config of the transformer, for its patches and the factors of its VAE; None takes
                those of the family's usual models.

        Raises:
            ValueError: The VAE or the patches rule the size out; the message names the nearest sizes that fit.
        """
        settings = get_family(family)
        sizes = {"frames": frames, "height": height, "width": width}
        pixels = tuple(_integer(name, value, 1) for name, value in sizes.items())
        for name, size in zip(sizes, pixels, strict=True):
            if size > LARGEST_SIZE:
                raise ValueError(f"{name} {size}: must be at most {LARGEST_SIZE}; use e.g. 77x720x1280")
        temporal, spatial = settings.compression(config)
        patch = settings.patch if config is None else settings.patch_of(config)
        steps = (temporal * patch[0], spatial * patch[1], spatial * patch[2])
        for name, size, step, first in zip(sizes, pixels, steps, (1, 0, 0), strict=True):
            if (size - first) % step:
                rule = f"1 + a multiple of {step}" if first else f"a multiple of {step} pixels"
                raise ValueError(
                    f"{name} {size} of video {_times(pixels)}: must be {rule}; nearest video sizes that fit: "
                    f"{', '.join(map(_times, _nearest_sizes(pixels, steps)))}"
                )
        grid = ((pixels[0] - 1) // steps[0] + 1, pixels[1] // steps[1], pixels[2] // steps[2])
        if math.prod(grid) > MOST_TOKENS:
            raise ValueError(
                f"video {_times(pixels)}: has {math.prod(grid)} tokens; must have at most {MOST_TOKENS}; use e.g. "
                f"77x720x1280"
            )
        return cls.for_grid(
            grid,
            family,
            tile=tile,
            bucket=bucket,
            window=window,
            reduction_rate=reduction_rate,
            text_tokens=text_tokens,
            config=config,
        )

    @classmethod
    def from_router_config(
        cls, config: Mapping[str, Any], family: str = DEFAULT_FAMILY, *, text_tokens: int | None = None
    ) -> AttentionGeometry:
        """Geometry from a router's training `config.json`, which does not say which model of the family it is for.

        Args:
            config: The whole mapping, or its `self_attention_kwargs`.
            family: Name of the model family; see `for_grid`.
            text_tokens: Padded text tokens; None are those of a published model of the family.

        Raises:
            ValueError: The mapping lacks a name, or its values break a rule of the class.
        """
        settings = get_family(family)
        if "self_attention_kwargs" in config:
            config = config["self_attention_kwargs"]
        if not isinstance(config, Mapping):
            raise ValueError(f"self_attention_kwargs {config!r}: must be a mapping; use the router's own config.json")
        missing = [key for key in _ROUTER_CONFIG_KEYS if key not in config]
        if missing:
            raise ValueError(
                f"router config with keys {sorted(config)}: lacks {', '.join(missing)}; use the config.json that the "
                f"router was trained with, or pass geometry="
            )
        bucket = _shape("lowres_window_size", config["lowres_window_size"])
        return cls(
            grid=_shape("latent_shape", config["latent_shape"]),
            tile=_shape("tile_size", config["tile_size"]),
            window=_shape("window_size", config["window_size"]),
            bucket=bucket,
            keep=keep_tokens(bucket, config["lowres_reduction_rate"]),
            coreset_keys=settings.coreset_keys,
            text_tokens=settings.text_tokens if text_tokens is None else text_tokens,
        )

    # -- serialisation -------------------------------------------------------------------------------------------------

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> AttentionGeometry:
        """The geometry of an ONNX node, from its attributes; others than the geometry's are ignored."""
        foreign = set(ULYSSES_ATTENTION.node_attributes) - {field.name for field in fields(cls)}
        values = {key: value for key, value in attributes.items() if key not in foreign}
        coreset_keys = values.get("coreset_keys")
        if isinstance(coreset_keys, bytes):  # as onnx gives string attributes
            values["coreset_keys"] = coreset_keys.decode()
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain JSON types: what an ONNX node and a plugin carry of the geometry, by their names."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttentionGeometry:
        """Inverse of `to_dict`; every field must be there, and no other."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"geometry with keys {sorted(values)}: must have exactly {sorted(names)}; "
                f"missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}"
            )
        return cls(**values)

    def __str__(self) -> str:
        return (
            f"grid {_times(self.grid)}, tile {_times(self.tile)}, window {_times(self.window)}, "
            f"bucket {_times(self.bucket)} keep {self.keep}, keys by {self.coreset_keys}, text {self.text_tokens}"
        )


def _text_tokens(family: ModelFamily, config: Mapping[str, Any] | None) -> int:
    return family.text_tokens if config is None else family.text_tokens_of(config)


def keep_tokens(bucket: Shape, reduction_rate: float) -> int:
    """Kept tokens of a bucket: int(prod(bucket) * (1 - reduction_rate)), at least the centre."""
    if isinstance(reduction_rate, bool) or not isinstance(reduction_rate, (int, float)):
        raise GeometryTypeError(f"reduction rate {reduction_rate!r}: must be a number in [0, 1); use 0.5")
    if not 0 <= reduction_rate < 1:
        raise ValueError(f"reduction rate {reduction_rate}: must be in [0, 1), the share of tokens to drop; use 0.5")
    return max(1, int(math.prod(bucket) * (1 - reduction_rate)))


def _branch(branch: str | Branch) -> Branch:
    if isinstance(branch, Branch):
        return branch
    if isinstance(branch, str) and branch.upper() in Branch.__members__:
        return Branch[branch.upper()]
    raise ValueError(f"branch {branch!r}: must be 'full', 'coreset' or 'sliding'")


def _integer(name: str, value: Any, lowest: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise GeometryTypeError(
            f"{name} {value!r}: must be an integer, not {type(value).__name__}; use e.g. {max(lowest, 1)}"
        )
    number = operator.index(value)
    if number < lowest:
        raise ValueError(f"{name} {number}: must be at least {lowest}; use e.g. {max(lowest, 1)}")
    return number


def _shape(name: str, value: Any) -> Shape:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise GeometryTypeError(f"{name} {value!r}: must be three integers (frame, height, width); use e.g. (2, 3, 2)")
    entries = tuple(value)
    if len(entries) != 3:
        raise ValueError(f"{name} {entries}: must have three entries (frame, height, width), not {len(entries)}")
    frame, height, width = (_integer(f"{name} {entries}: entry", entry, 1) for entry in entries)
    return frame, height, width


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _nearest_sizes(pixels: Sequence[int], steps: Shape) -> list[tuple[int, ...]]:
    """At most 3 sizes of whole tokens next to a video size that is none, the nearest (by ratio) first."""
    axes = []
    for size, step, first in zip(pixels, steps, (1, 0, 0), strict=True):
        below = (size - first) // step * step + first
        axes.append({max(below, first or step), below + step if below < size else size})
    sizes = itertools.product(*axes)

    def distance(video: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return round(sum(abs(math.log(size / given)) for size, given in zip(video, pixels, strict=True)), 9), video

    return sorted(sizes, key=distance)[:3]
