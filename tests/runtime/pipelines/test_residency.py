# SPDX-License-Identifier: Apache-2.0
"""Sequential generation: the same videos, with one part loaded at a time; and who chooses it, by which figures."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.runtime import Engine, SamplingParams, VortaPipeline
from vorta_trt.runtime.card_plan import CardPlan
from vorta_trt.runtime.pipelines import pipeline, residency, stages, transformer
from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.residency import Residency, by_plan, choose_residency
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast

from ...tiny import Tiny

PROMPTS = ["a red wall", "a blue wall", "a red wall"]
GPU = torch.device("cuda", 0)


class Watch:
    """What is loaded, as it comes and goes.

    Attributes:
        events: "open" and "close" of the engine, "parts" with the names of what has been loaded of the pipeline.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._parts: dict[str, weakref.ref[Any]] = {}
        watch = self

        class WatchedEngine(Engine):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                watch.events.append(f"open beside {watch.loaded()}")
                super().__init__(*arguments, **options)

            def close(self) -> None:
                if not self.closed:
                    watch.events.append("close")
                super().close()

        load = stages.load_pipeline

        def watched(*arguments: Any, **options: Any) -> Any:
            watch.events.append(f"load beside {watch.loaded()}")
            pipeline = load(*arguments, **options)
            for name in ("text_encoder", "text_encoder_2", "vae"):
                if (part := getattr(pipeline, name, None)) is not None:
                    watch._parts[name] = weakref.ref(part)
            return pipeline

        monkeypatch.setattr(transformer, "Engine", WatchedEngine)
        monkeypatch.setattr(stages, "load_pipeline", watched)

    def loaded(self) -> list[str]:
        """Parts that somebody holds on to; no collection here, which would hide that nobody lets go of cycles."""
        return sorted(name for name, part in self._parts.items() if part() is not None)


def settings(family: str) -> SamplingParams:
    """With guidance in both families."""
    return SamplingParams(num_inference_steps=3, true_cfg_scale=1.0 if family == "wan" else 3.0)


def generate(pipe: VortaPipeline, family: str, **options: Any) -> list[GeneratedVideo]:
    videos: list[GeneratedVideo] = []

    def keep(number: int, video: GeneratedVideo) -> None:
        assert number == len(videos)
        videos.append(video)

    pipe.generate_each(PROMPTS, keep, seed=3, negative_prompt="red", params=settings(family), **options)
    return videos


def test_sequential_videos_are_the_resident_ones_bit_for_bit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
        assert pipe.residency.residency is Residency.RESIDENT
        expected = generate(pipe, tiny.family)
    watch = Watch(monkeypatch)
    stages: list[tuple[str, int, int]] = []
    steps: list[tuple[int, int]] = []
    with VortaPipeline.from_pretrained(tiny.onnx, residency="sequential", strict=True) as pipe:
        assert watch.events == []
        videos = generate(
            pipe,
            tiny.family,
            on_stage=lambda *stage: stages.append(stage),
            on_step=lambda number, step, planned: steps.append((number, step)),
        )
        again = pipe("a blue wall", seed=3, params=SamplingParams(num_inference_steps=3))
        assert pipe.executor == "onnxruntime"
    for video, resident in zip(videos, expected, strict=True):
        assert np.array_equal(video.frames, resident.frames)
        assert (video.prompt, video.seed, video.launches) == (resident.prompt, 3, 6)
        assert 0 < video.seconds
    assert not np.array_equal(videos[0].frames, videos[1].frames)
    assert not np.array_equal(again.frames, videos[1].frames)  # without the negative prompt
    one_request = [*2 * ["load beside []"], "open beside []", "load beside []", "close", "load beside []"]
    assert watch.events == 2 * one_request  # tokenizer, encoders, engine, a pipeline of scheduler and engine, VAE
    assert steps == [(number, step) for number in range(3) for step in range(3)]
    assert stages == [
        ("loading the tokenizer", 0, 0),
        ("loading the text encoder", 0, 0),
        ("encoding prompts", 0, 3),  # every text once, the negative prompt, too
        ("encoding prompts", 1, 3),
        ("encoding prompts", 2, 3),
        ("loading the engine", 0, 0),
        ("loading the VAE", 0, 0),
        ("decoding", 0, 3),
        ("decoding", 1, 3),
        ("decoding", 2, 3),
    ]


def test_many_videos_go_in_rounds_each_with_its_seed(tiny_wan: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions and latents of a few wait in memory, not of all."""
    request, seeds = SamplingParams(num_inference_steps=1, guidance_scale=1.0), [3, 4, 3]
    videos: list[GeneratedVideo] = []
    monkeypatch.setattr(pipeline, "MOST_TOGETHER", 2)
    watch = Watch(monkeypatch)
    with VortaPipeline.from_pretrained(tiny_wan.onnx, residency="sequential") as pipe:
        pipe.generate_each(PROMPTS, lambda number, video: videos.append(video), request, seeds=seeds)
    assert watch.events.count("close") == 2
    assert [video.seed for video in videos] == seeds
    assert np.array_equal(videos[0].frames, videos[2].frames)
    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        assert np.array_equal(pipe(PROMPTS[1], request, seed=4).frames, videos[1].frames)
        with pytest.raises(ValueError, match="seeds: 1 of them; must be one for each of 3 prompts"):
            pipe.generate_each(PROMPTS, print, request, seeds=[1])
        with pytest.raises(ValueError, match="in the place of a seed"):
            pipe.generate_each(PROMPTS, print, request, seeds=seeds, seed=2)


def test_every_setting_works_sequentially(tiny_wan: Tiny) -> None:
    chosen = SamplingParams(
        num_inference_steps=6,
        scheduler="flow-euler",
        cache=StepBroadcast(3, (100, 950)),
        guidance_batching=GuidanceMode.BATCHED,
    )
    videos = []
    for mode in Residency:
        with VortaPipeline.from_pretrained(tiny_wan.onnx, residency=mode, vae_tiling=True, strict=True) as pipe:
            videos.append(pipe("a red wall", seed=1, params=chosen))
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert {video.launches for video in videos} == {videos[0].planned.steps.computed_steps + 1}


def test_a_stopped_request_leaves_nothing_loaded(tiny_wan: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(number: int, step: int, planned: PlannedRequest) -> None:
        if (number, step) == (1, 1):
            raise KeyboardInterrupt

    watch = Watch(monkeypatch)
    with VortaPipeline.from_pretrained(tiny_wan.onnx, residency="sequential") as pipe:
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, "wan", on_step=stop)
        assert watch.events[-1] == "close"
        gc.collect()
        assert watch.loaded() == []
        assert len(generate(pipe, "wan")) == 3


def test_a_video_is_there_before_the_next_is_decoded(tiny_wan: Tiny, tmp_path: Path) -> None:
    def write(number: int, video: GeneratedVideo) -> None:
        if number == 1:
            raise KeyboardInterrupt
        video.save(tmp_path / f"{number}.npy")

    with VortaPipeline.from_pretrained(tiny_wan.onnx, residency="sequential") as pipe:
        with pytest.raises(ValueError, match="must hold at least one"):
            pipe.generate_each([], write)
        with pytest.raises(KeyboardInterrupt):
            pipe.generate_each(PROMPTS, write, params=SamplingParams(num_inference_steps=1))
    assert [file.name for file in tmp_path.iterdir()] == ["0.npy"]


def test_what_has_no_effect(tiny_wan: Tiny) -> None:
    with pytest.raises(ValueError, match="cpu_offload: has no effect in residency sequential"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, residency="sequential", cpu_offload=True)
    with pytest.raises(ValueError, match="residency sequential: opens and closes an engine, and a routed model stays"):
        VortaPipeline.from_pretrained(tiny_wan.model(), residency="sequential")
    with pytest.raises(ValueError, match="residency 'small': must be one of auto, resident, sequential"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, residency="small")


# -- who chooses -------------------------------------------------------------------------------------------------------


def card(**changes: Any) -> CardPlan:
    """80 GiB, everything stays."""
    plan = CardPlan(
        gib=80,
        fits=True,
        guidance="batched",
        text_encoder="stays",
        vae="stays",
        weight_streaming_budget=None,
        encoding="beside",
        decoding="beside",
        sampling_bytes=60 << 30,
        remarks=[],
    )
    return plan.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "mode", "encoders", "offload", "streams"),
    [
        ({}, "resident", GPU, False, False),
        ({"text_encoder": "leaves"}, "resident", GPU, True, False),
        ({"weight_streaming_budget": 9, "text_encoder": "leaves", "vae": "leaves"}, "resident", GPU, True, True),
        ({"encoding": "alone"}, "sequential", GPU, False, False),
        ({"decoding": "alone"}, "sequential", GPU, False, False),
        ({"encoding": "too large"}, "sequential", torch.device("cpu"), False, False),
        ({"encoding": "alone", "vae": "leaves", "weight_streaming_budget": 9}, "sequential", GPU, False, True),
        ({"fits": False, "weight_streaming_budget": 9}, "sequential", GPU, False, False),  # not built for streaming
        ({"text_encoder": None, "vae": None, "encoding": None, "decoding": None}, "resident", GPU, False, False),
    ],
)
def test_auto_follows_the_plan(
    changes: dict[str, Any], mode: str, encoders: torch.device, offload: bool, streams: bool
) -> None:
    choice = by_plan(Residency.AUTO, card(**changes), GPU)
    assert (choice.residency.value, choice.encoders) == (mode, encoders)
    assert (choice.cpu_offload, choice.stream_weights) == (offload, streams)
    assert choice.reason.startswith("free on the GPU are 80 GiB: ")
    asked = by_plan(Residency.SEQUENTIAL, card(**changes), GPU)
    assert (asked.residency, asked.encoders, asked.stream_weights) == (Residency.SEQUENTIAL, encoders, False)
    assert asked.reason.startswith("asked for; free on the GPU are 80 GiB: ")


@pytest.mark.parametrize("experts", ["together", "in turn"])
def test_experts_follow_the_plan(experts: str) -> None:
    for changes in ({}, {"encoding": "alone"}):
        for asked in (Residency.AUTO, Residency.SEQUENTIAL):
            assert by_plan(asked, card(experts=experts, **changes), GPU).in_turn == (experts == "in turn")


def test_what_was_asked_for_stays_asked_for() -> None:
    choice = by_plan(Residency.AUTO, card(), GPU, cpu_offload=True, stream_weights=True)
    assert choice.cpu_offload and choice.stream_weights


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A machine whose GPU runs the bundle; `free`: bytes."""
    machine = SimpleNamespace(free=24 << 30)
    monkeypatch.setattr(residency, "check_device", lambda *what: None)
    monkeypatch.setattr(residency, "_free_bytes", lambda index: machine.free)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield machine


def test_auto_asks_for_the_free_memory(bundle: Path, tiny_wan: Tiny, gpu: Any) -> None:
    choice = choose_residency(Residency.AUTO, bundle, tiny_wan.checkpoint, device="cuda:1")
    assert (choice.residency, choice.device) == (Residency.RESIDENT, torch.device("cuda", 1))
    assert "24 GiB: guidance batched, text encoder stays, VAE stays" in choice.reason
    gpu.free = 1 << 20
    choice = choose_residency(Residency.AUTO, bundle, tiny_wan.checkpoint)
    assert choice.is_sequential
    assert "0.1 GiB: does not fit" in choice.reason


def test_what_a_compiled_vae_takes_counts(bundle: Path, tiny_wan: Tiny, gpu: Any, tmp_path: Path) -> None:
    """The VAE has tensors of 1.76 GiB: eager it takes 8 of them, compiled 13, half of that in 16 bits."""
    checkpoint = tmp_path / "wide"
    shutil.copytree(tiny_wan.checkpoint / "vae", checkpoint / "vae")
    (checkpoint / "vae" / "config.json").write_text(json.dumps({"base_dim": 9600}))

    def chosen(**options: Any) -> Residency:
        return choose_residency(Residency.AUTO, bundle, checkpoint, **options).residency

    assert chosen() is Residency.RESIDENT
    assert chosen(compile_vae=True) is Residency.SEQUENTIAL
    assert chosen(compile_vae=True, vae_precision="fp16") is Residency.RESIDENT


def test_without_cuda_in_torch_only_the_engine_is_on_the_gpu(
    bundle: Path, tiny_wan: Tiny, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.free = 1 << 20
    choice = choose_residency(Residency.AUTO, bundle, tiny_wan.checkpoint)
    assert (choice.residency, choice.device.type) == (Residency.RESIDENT, "cpu")
