# SPDX-License-Identifier: Apache-2.0
"""The options of sampling commands become what a plan is made of, or an error that names the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vorta_trt.commands import sampling_options
from vorta_trt.commands.sampling_options import Cache, CacheSignal, SamplingOptions
from vorta_trt.model.families import get_family
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.step_plan import StepPlan, plan_steps
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache
from vorta_trt.runtime.sampling.tea_fit import TeaCoefficients


class FakePath:
    """The timestep path of a Wan 2.1 1.3B, as far as the options ask."""

    family, num_layers, num_heads, checkpoint = "wan", 30, 12, "Wan2.1-T2V-1.3B-Diffusers"


PATH: Any = FakePath()
WAN = get_family("wan")


def plan_of(options: SamplingOptions, timesteps: list[float], path: Any = None, **known: Any) -> StepPlan:
    """What `generate` plans with the options."""
    return plan_steps(timesteps, path=path, cache=options.step_cache(path), guards=options.guards(), **known)


def test_everything_is_off_by_default() -> None:
    plan = plan_of(SamplingOptions(), [900.0, 500.0])
    assert plan.compute == (True, True)
    assert (plan.route_override, plan.tau) == (None, None)


def test_tea_cache_is_published_fitted_or_plain(tmp_path: Path) -> None:
    published = WAN.tea_cache("Wan2.1-T2V-1.3B", "embedding")
    assert published is not None
    assert SamplingOptions(Cache.tea).step_cache(PATH) == TeaCache(published.threshold, published.coefficients)
    modulation = SamplingOptions(Cache.tea, 0.05, "published", CacheSignal.modulation).step_cache(PATH)
    published = WAN.tea_cache("Wan2.1-T2V-1.3B", "modulation")
    assert published is not None
    assert modulation == TeaCache(0.05, published.coefficients, "modulation", first=5)
    assert SamplingOptions(Cache.tea, 0.05, "none").step_cache(PATH) == TeaCache(0.05, IDENTITY)
    fitted = TeaCoefficients((1.0, 2.0), "modulation", (0.1, 0.2))
    fitted.save(tmp_path / "tea.json")
    assert SamplingOptions(Cache.tea, 0.05, str(tmp_path / "tea.json")).step_cache(PATH) == fitted.cache(0.05)


def test_tea_cache_of_a_published_checkpoint_under_another_name() -> None:
    renamed: Any = FakePath()
    renamed.checkpoint = "my-model"
    with pytest.raises(ValueError, match="checkpoint 'my-model' .*Wan2.1-T2V-1.3B or Wan2.1-T2V-14B"):
        SamplingOptions(Cache.tea).step_cache(renamed)
    named = SamplingOptions(Cache.tea, cache_coefficients="Wan2.1-T2V-1.3B").step_cache(renamed)
    assert named == SamplingOptions(Cache.tea).step_cache(PATH)


def test_broadcast() -> None:
    assert SamplingOptions(Cache.broadcast).step_cache(None) == StepBroadcast(2, (100, 800))
    options = SamplingOptions(Cache.broadcast, cache_range="200:700.5", cache_interval=3)
    assert options.step_cache(None) == StepBroadcast(3, (200, 700.5))


def test_guards_reach_the_plan() -> None:
    options = SamplingOptions(dense_first=1, dense_layers=["0, 2", "1"])
    plan = plan_of(options, [900.0, 500.0], heads=(4, 3))
    assert plan.route_override is not None
    assert plan.route_override[0].tolist() == [[0] * 3] * 4
    assert plan.route_override[1].tolist() == [[0] * 3] * 3 + [[-1] * 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SamplingOptions(cache_threshold=0.1), "belongs to --cache tea; give that too"),
        (SamplingOptions(Cache.tea, cache_interval=3), "belongs to --cache broadcast; give that too"),
        (SamplingOptions(Cache.broadcast, cache_signal=CacheSignal.embedding), "belongs to --cache tea"),
        (SamplingOptions(Cache.broadcast, cache_range="100-800"), "'100-800': must be LOW:HIGH"),
        (SamplingOptions(Cache.broadcast, cache_range="1:2:3"), "'1:2:3': must be LOW:HIGH"),
        (SamplingOptions(Cache.tea, cache_coefficients="none"), "must be given where no published one is known"),
        (SamplingOptions(dense_layers=["0-3"]), "'0-3': must be a whole number"),
    ],
)
def test_options_that_do_not_go_together(options: SamplingOptions, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        plan_of(options, [900.0, 500.0], PATH if options.cache is Cache.tea else None, heads=(4, 3))


def test_tea_cache_needs_the_timestep_embedder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model's timestep embedder is not at hand"):
        plan_of(SamplingOptions(Cache.tea), [900.0, 500.0])
    fitted = TeaCoefficients((1.0, 2.0), "modulation", (0.1, 0.2))
    fitted.save(tmp_path / "tea.json")
    options = SamplingOptions(Cache.tea, 0.1, str(tmp_path / "tea.json"), CacheSignal.embedding)
    with pytest.raises(typer.BadParameter, match="embedding: .*tea.json was fitted for modulation; leave it out"):
        options.step_cache(PATH)


def test_a_command_with_all_of_them() -> None:
    """What `generate` does with the options, and their help."""
    app = typer.Typer()

    @app.command()
    def sample(
        cache: sampling_options.CacheOption = None,
        cache_threshold: sampling_options.CacheThreshold = None,
        cache_coefficients: sampling_options.CacheCoefficients = None,
        cache_signal: sampling_options.CacheSignalOption = None,
        cache_range: sampling_options.CacheRange = None,
        cache_interval: sampling_options.CacheInterval = None,
        dense_first: sampling_options.DenseFirst = 0,
        dense_last: sampling_options.DenseLast = 0,
        dense_layers: sampling_options.DenseLayers = None,
        tau: sampling_options.RunTau = None,
        strict: sampling_options.Strict = False,
        dry_run: sampling_options.DryRun = False,
    ) -> None:
        options = SamplingOptions(
            cache,
            cache_threshold,
            cache_coefficients,
            cache_signal,
            cache_range,
            cache_interval,
            dense_first,
            dense_last,
            dense_layers,
        )
        typer.echo("\n".join(plan_of(options, [700.0, 500.0, 300.0], heads=(2, 3)).lines()))
        typer.echo(f"tau {tau}, strict {strict}, dry run {dry_run}")

    arguments = (
        "--cache broadcast --cache-range 100:800 --cache-interval 9 --dense-layers 1 --tau 0.4 --strict --dry-run"
    )
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    assert "2 of 3 steps computed, 1 reused" in result.output
    assert "tau 0.4, strict True, dry run True" in result.output
    result = CliRunner().invoke(app, ["--cache-interval", "9"])
    assert result.exit_code == 2
    assert "--cache-interval" in result.output
    shown = CliRunner().invoke(app, ["--help"], terminal_width=110).output
    for option in ("--cache-threshold", "--cache-coefficients", "--cache-signal", "--dense-first", "--dry-run"):
        assert option in shown
