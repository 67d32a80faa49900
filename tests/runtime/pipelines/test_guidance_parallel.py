# SPDX-License-Identifier: Apache-2.0
"""Both passes of guidance at once, each on half the ranks: the same samples, half the launches on each rank."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.parallel.errors import ParallelError
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast

from ...tiny import Tiny
from .denoisers import SHAPE, TEXT, RecordingDenoiser, transformer_of

TIMESTEPS = (900.0, 700.0, 600.0, 400.0, 50.0)
COND, UNCOND = (torch.full((1, TEXT, 3), value) for value in (1.0, 2.0))


class TwoThreads:
    """Exchanges samples of two threads as `PassExchange` does those of two processes."""

    def __init__(self) -> None:
        self._meet, self._samples = threading.Barrier(2, timeout=30), [torch.empty(0), torch.empty(0)]

    def of(self, own: int) -> Any:
        def exchange(sample: Tensor) -> list[Tensor]:
            self._samples[own] = sample.clone()
            self._meet.wait()
            both = [each.clone() for each in self._samples]
            self._meet.wait()
            return both

        exchange.own = own  # type: ignore[attr-defined]
        return exchange


def guided_video(transformer: VortaTransformer) -> Tensor:
    """As diffusers' pipelines call it: both samples, then both are read."""
    latents = torch.ones(1, *SHAPE)
    for timestep in torch.tensor(TIMESTEPS):
        samples = []
        for context, prompt in (("cond", COND), ("uncond", UNCOND)):
            with transformer.cache_context(context):
                samples.append(transformer(latents, timestep.expand(1), prompt, return_dict=False)[0])
        latents = latents - 1e-4 * (samples[1] + 3 * (samples[0] - samples[1]))
    return latents


@pytest.mark.parametrize("cache", [None, StepBroadcast(timestep_range=(100, 800))])
def test_each_rank_launches_one_pass(cache: StepBroadcast | None) -> None:
    alone = transformer_of(RecordingDenoiser())
    with alone.request(alone.plan(TIMESTEPS, cache=cache), guidance=GuidanceMode.SEQUENTIAL) as request:
        expected, launches = guided_video(alone), request.launches.total()
    exchange, fallbacks = TwoThreads(), Fallbacks(strict=True)

    def rank(own: int) -> tuple[Tensor, dict[str, int], list[int]]:
        seen: list[int] = []
        transformer = transformer_of(RecordingDenoiser())
        with transformer.request(
            transformer.plan(TIMESTEPS, cache=cache),
            guidance=GuidanceMode.BATCHED,
            fallbacks=fallbacks,
            passes=exchange.of(own),
            on_latents=lambda step, latents: seen.append(step),
        ) as request:
            return guided_video(transformer), dict(request.launches), seen

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(rank, (0, 1)))
    for name, (latents, of_rank, seen) in zip(("cond", "uncond"), results, strict=True):
        assert torch.equal(latents, expected)
        assert of_rank == {name: launches // 2}
        assert seen == list(range(len(TIMESTEPS)))


def test_an_expert_without_guidance_exchanges_nothing() -> None:
    transformer = transformer_of(RecordingDenoiser())
    with transformer.request(transformer.plan(TIMESTEPS), guided=False, passes=TwoThreads().of(1)) as request:
        guided_video(transformer)
    assert request.launches == {"cond": len(TIMESTEPS)}


def test_a_pipeline_that_asks_in_another_order_is_refused() -> None:
    transformer = transformer_of(RecordingDenoiser())
    with (
        pytest.raises(ParallelError, match="asked for before the conditional one"),
        transformer.request(transformer.plan(TIMESTEPS), passes=TwoThreads().of(1)),
        transformer.cache_context("uncond"),
    ):
        transformer(torch.ones(1, *SHAPE), torch.tensor([TIMESTEPS[0]]), UNCOND, return_dict=False)


def test_a_video_of_two_processes_is_that_of_one(tiny_wan: Tiny, tmp_path: Path) -> None:
    videos = []
    for gpus in ((), ("--gpus", 2, "--strict")):
        videos.append(tmp_path / f"{len(gpus)}.npy")
        arguments = [tiny_wan.onnx, "--prompt", "a red wall", "--steps", 3, "--seed", 5, "-o", videos[-1], *gpus]
        arguments += ["--vae-tiling", "--vae-precision", "bf16"]  # each rank decodes all of it
        result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        assert f"seed 5, 3 steps, {3 if '--gpus' in gpus else 6} launches" in result.stdout
    assert np.array_equal(*map(np.load, videos))
    assert sorted(tmp_path.iterdir()) == sorted(videos)
