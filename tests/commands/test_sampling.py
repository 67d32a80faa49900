# SPDX-License-Identifier: Apache-2.0
"""The options of sampling become `SamplingParams`, or a usage error that names the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vorta_trt.commands import app as commands
from vorta_trt.commands.sampling import CACHE_OPTIONS, CommonOptions, SamplingOptions, ScheduleOptions
from vorta_trt.runtime.sampling.params import GuidanceMode, SamplingParams
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache
from vorta_trt.runtime.sampling.tea_fit import TeaCoefficients


def params(**given: Any) -> SamplingParams:
    return SamplingOptions(**given).params()


def test_every_field_is_an_option_with_its_text() -> None:
    options = {option.name: option for option in SamplingOptions.options()}
    assert set(options) == {*SamplingParams.model_fields, *(option.name for option in CACHE_OPTIONS)}
    assert options["num_inference_steps"].flag == "--steps"
    assert options["num_inference_steps"].help.endswith("[default: 50].")
    assert options["flow_shift"].help.endswith("[default: the pipeline's own].")
    assert options["guidance_batching"].metavar == "auto|batched|sequential"
    assert options["cache"].metavar == "tea|broadcast"
    assert "--sigmas" in options["num_inference_steps"].help and "`" not in options["num_inference_steps"].help


def test_a_command_may_take_some_and_have_defaults_of_its_own() -> None:
    assert [option.name for option in ScheduleOptions.options()] == list(ScheduleOptions.names)
    seed = next(option for option in CommonOptions.options() if option.name == "seed")
    assert seed.help.endswith("[default: 0].")
    assert CommonOptions().params().seed == 0 and CommonOptions(seed=3).params().seed == 3
    assert SamplingOptions().params().seed is None


def test_nothing_given_is_the_default() -> None:
    assert params() == SamplingParams()
    assert params(renoise=False, scheduler=None) == SamplingParams()


def test_values_of_all_kinds() -> None:
    assert params(sigmas="1,0.7", renoise=True, scheduler="flow-euler").sigmas == (1.0, 0.7)
    assert params(timesteps="1000,757,522").num_inference_steps == 3
    assert params(dense_layers="0, 2").dense_layers == (0, 2)
    assert params(guidance_batching="batched").guidance_batching is GuidanceMode.BATCHED
    assert params(num_inference_steps=3, seed=2**64 - 1, tau=0.4).seed == 2**64 - 1


def test_caches(tmp_path: Path) -> None:
    assert params(cache="tea").cache == TeaCache()
    given = {"cache": "tea", "cache_threshold": 0.05}
    assert params(**given, cache_coefficients="published", cache_signal="modulation").cache == TeaCache(
        0.05, signal="modulation"
    )
    assert params(cache="tea", cache_coefficients="Wan2.1-T2V-14B").cache == TeaCache(model="Wan2.1-T2V-14B")
    assert params(**given, cache_coefficients="none").cache == TeaCache(0.05, IDENTITY)
    fitted = TeaCoefficients(coefficients=(1.0, 2.0), signal="modulation", fitted_range=(0.1, 0.2))
    fitted.save(tmp_path / "tea.json")
    assert params(**given, cache_coefficients=str(tmp_path / "tea.json")).cache == fitted.cache(0.05)
    assert params(cache="broadcast").cache == StepBroadcast()
    assert params(cache="broadcast", cache_range="200:700.5", cache_interval=3).cache == StepBroadcast(3, (200, 700.5))


@pytest.mark.parametrize(
    ("given", "option", "message"),
    [
        ({"seed": 2**64}, "--seed", "18446744073709551616: .*less than or equal to 18446744073709551615"),
        ({"seed": -1}, "--seed", "-1: .*greater than or equal to 0"),
        ({"num_inference_steps": 0}, "--steps", "0: .*greater than or equal to 1"),
        ({"num_inference_steps": 10**20}, "--steps", "100000000000000000000: .*less than or equal to 1000"),
        ({"flow_shift": 0.0}, "--flow-shift", "0.0: .*greater than or equal to 0.001"),
        ({"tau": float("nan")}, "--tau", "finite"),
        ({"scheduler": "ddim"}, "--scheduler", "'ddim': must be one of unipc"),
        ({"guidance_batching": "both"}, "--guidance-batching", "'both': "),
        ({"sigmas": "1,many"}, "--sigmas", "'1,many': must be numbers"),
        ({"sigmas": "0.2,0.5"}, "--sigmas", "sigmas 0.2, 0.5: must fall"),
        ({"dense_layers": "0-3"}, "--dense-layers", "'0-3': must be a whole number"),
        ({"cache": "teacache"}, "--cache", "'tea', 'broadcast'"),
        ({"cache_threshold": 0.1}, "--cache-threshold", "belongs to --cache tea; give that too"),
        ({"cache": "tea", "cache_interval": 3}, "--cache-interval", "belongs to --cache broadcast; give that too"),
        ({"cache": "broadcast", "cache_signal": "embedding"}, "--cache-signal", "belongs to --cache tea"),
        ({"cache": "broadcast", "cache_range": "100-800"}, "--cache-range", "'100-800': must be LOW:HIGH"),
        ({"cache": "broadcast", "cache_range": "1:2:3"}, "--cache-range", "'1:2:3': must be LOW:HIGH"),
        ({"cache": "broadcast", "cache_interval": 0}, "--cache", "interval 0: must be at least 1"),
        ({"cache": "tea", "cache_coefficients": "none"}, "--cache", "threshold None: must be given"),
        ({"cache": "tea", "cache_signal": "noise"}, "--cache", "'noise'"),
    ],
)
def test_refusals(given: dict[str, Any], option: str | None, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message) as caught:
        params(**given)
    assert caught.value.param_hint == option


def test_a_file_that_was_fitted_for_another_signal(tmp_path: Path) -> None:
    TeaCoefficients(coefficients=(1.0, 2.0), signal="modulation", fitted_range=(0.1, 0.2)).save(tmp_path / "tea.json")
    given = {"cache": "tea", "cache_threshold": 0.1, "cache_coefficients": str(tmp_path / "tea.json")}
    with pytest.raises(typer.BadParameter, match="embedding: .*tea.json was fitted for modulation"):
        params(**given, cache_signal="embedding")


def test_a_command_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: dict[str, typer.Typer] = {}
    monkeypatch.setattr(commands, "_programs", programs)
    seen: list[SamplingParams] = []

    @commands.command("vorta-trt sample --seed 1")
    def sample(sampling: SamplingOptions) -> None:
        seen.append(sampling.params())

    for steps in ("--num-inference-steps", "--steps"):
        arguments = (
            f"--cache broadcast --cache-interval 9 --dense-layers 1,2 --tau 0.4 --renoise {steps} 2 --sigmas 1,.5"
        )
        result = CliRunner().invoke(programs["sample"], arguments.split())
        assert result.exit_code == 0, result.output
    expected = SamplingParams(
        cache=StepBroadcast(9), dense_layers=(1, 2), tau=0.4, renoise=True, num_inference_steps=2, sigmas=(1.0, 0.5)
    )
    assert seen == [expected, expected]
    result = CliRunner().invoke(programs["sample"], ["--seed", str(2**64)])
    assert result.exit_code == 2 and "--seed" in result.stderr and str(2**64) in result.stderr
