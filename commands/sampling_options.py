# SPDX-License-Identifier: Apache-2.0
"""Options of commands that sample: step caching and quality guards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vorta_trt.commands.options import numbers

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath
    from vorta_trt.runtime.sampling.route_guards import RouteGuards
    from vorta_trt.runtime.sampling.step_cache import StepCache


class Cache(str, Enum):
    tea = "tea"
    broadcast = "broadcast"


class CacheSignal(str, Enum):
    embedding = "embedding"
    modulation = "modulation"


CacheOption = Annotated[
    Cache | None,
    typer.Option(
        "--cache",
        help="Skip steps and reuse the last sample: tea (TeaCache), where the timestep embedding changed little; "
        "broadcast, all but every k-th step in a range of timesteps [default: compute every step].",
    ),
]
CacheThreshold = Annotated[
    float | None,
    typer.Option(min=0, help="tea: change that may add up before a step is computed [default: as published]."),
]
CacheCoefficients = Annotated[
    str | None,
    typer.Option(
        metavar="published|NAME|none|FILE",
        help="tea: the polynomial from embedding to output change; published goes by the checkpoint's name, NAME says "
        "which published checkpoint it is; none takes the distance as it is, and wants thresholds about ten times "
        "smaller [default: published].",
    ),
]
CacheSignalOption = Annotated[
    CacheSignal | None,
    typer.Option(
        "--cache-signal", help="tea: the timestep embedding, or the modulation made of it alone [default: embedding]."
    ),
]
CacheRange = Annotated[
    str | None,
    typer.Option(metavar="LOW:HIGH", help="broadcast: timesteps between which steps are skipped [default: 100:800]."),
]
CacheInterval = Annotated[
    int | None, typer.Option(min=1, help="broadcast: every how many steps one is computed [default: 2].")
]
DenseFirst = Annotated[int, typer.Option(min=0, metavar="STEPS", help="Full attention in the first steps.")]
DenseLast = Annotated[int, typer.Option(min=0, metavar="STEPS", help="Full attention in the last steps.")]
DenseLayers = Annotated[
    list[str] | None, typer.Option(metavar="LAYERS", help="Layers with full attention at every step, e.g. 0,1,39.")
]
RunTau = Annotated[float | None, typer.Option("--tau", help="Routing threshold; above 1 is dense [default: built in].")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail where something would run otherwise than asked for, instead of warning.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show schedule, routes, skipped steps and predicted cost, and sample nothing.")
]


@dataclass(frozen=True)
class SamplingOptions:
    """The options above that say what is cached and guarded, as given."""

    cache: Cache | None = None
    cache_threshold: float | None = None
    cache_coefficients: str | None = None
    cache_signal: CacheSignal | None = None
    cache_range: str | None = None
    cache_interval: int | None = None
    dense_first: int = 0
    dense_last: int = 0
    dense_layers: list[str] | None = None

    def guards(self) -> RouteGuards:
        from vorta_trt.runtime.sampling.route_guards import RouteGuards

        return RouteGuards(self.dense_first, self.dense_last, numbers(self.dense_layers, "--dense-layers"))

    def step_cache(self, path: TimestepPath | None) -> StepCache | None:
        """What `--cache` asks for; TeaCache's published settings depend on the model."""
        self._check_cache_options()
        if self.cache is Cache.tea:
            return self._tea(path)
        if self.cache is Cache.broadcast:
            from vorta_trt.runtime.sampling.step_broadcast import DEFAULT_INTERVAL, DEFAULT_RANGE, StepBroadcast

            interval = DEFAULT_INTERVAL if self.cache_interval is None else self.cache_interval
            return StepBroadcast(interval, DEFAULT_RANGE if self.cache_range is None else _range(self.cache_range))
        return None

    def _tea(self, path: TimestepPath | None) -> StepCache:
        from vorta_trt.model.families import get_family
        from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache, known_path
        from vorta_trt.runtime.sampling.tea_fit import TeaCoefficients

        path = known_path(path)
        signal = "embedding" if self.cache_signal is None else self.cache_signal.value
        if self.cache_coefficients in (None, "published"):
            return TeaCache.published(path, self.cache_threshold, signal)  # type: ignore[arg-type]
        if self.cache_coefficients in get_family(path.family).tea_cache_models():
            return TeaCache.published(path, self.cache_threshold, signal, self.cache_coefficients)  # type: ignore[arg-type]
        if self.cache_threshold is None:
            raise typer.BadParameter(
                "must be given where no published one is known; try a plan with --dry-run",
                param_hint="--cache-threshold",
            )
        if self.cache_coefficients == "none":
            return TeaCache(self.cache_threshold, IDENTITY, signal)  # type: ignore[arg-type]
        fitted = TeaCoefficients.load(Path(str(self.cache_coefficients)))
        if self.cache_signal is not None and fitted.signal != signal:
            raise typer.BadParameter(
                f"{signal}: {self.cache_coefficients} was fitted for {fitted.signal}; leave it out",
                param_hint="--cache-signal",
            )
        return fitted.cache(self.cache_threshold)

    def _check_cache_options(self) -> None:
        belongs = {
            "--cache-threshold": (Cache.tea, self.cache_threshold),
            "--cache-coefficients": (Cache.tea, self.cache_coefficients),
            "--cache-signal": (Cache.tea, self.cache_signal),
            "--cache-range": (Cache.broadcast, self.cache_range),
            "--cache-interval": (Cache.broadcast, self.cache_interval),
        }
        for option, (cache, value) in belongs.items():
            if value is not None and self.cache is not cache:
                raise typer.BadParameter(f"belongs to --cache {cache.value}; give that too", param_hint=option)


def _range(text: str) -> tuple[float, float]:
    parts = text.split(":")
    try:
        low, high = map(float, parts)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: must be LOW:HIGH, timesteps; use e.g. 100:800", param_hint="--cache-range"
        ) from None
    return low, high
