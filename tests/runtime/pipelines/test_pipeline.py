# SPDX-License-Identifier: Apache-2.0
"""Videos from prompts: the same for the same seed, whatever was generated before or beside; and what stops it."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.video_size import VideoSize
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import SamplingParams, VortaPipeline, VortaTransformer
from vorta_trt.runtime.fallbacks import FallbackError
from vorta_trt.runtime.frames import frame_rate, read_frames
from vorta_trt.runtime.from_checkpoint import Source, export_checkpoint
from vorta_trt.runtime.pipelines import denoiser
from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.sampling.finite import NonFiniteError
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache

from ...tiny import FRAMES, HEIGHT, SIZE, WIDTH, Tiny, build_here, save_calibration

FEW = SamplingParams(num_inference_steps=2)


def vae_of(pipe: VortaPipeline) -> Any:
    with pipe.parts.decoding() as (pipeline, _):
        return pipeline.vae


def living_tensors() -> int:
    """How many there are, without those of tracers and such."""
    gc.collect()
    return sum(type(found) is torch.Tensor for found in gc.get_objects())


def test_a_video_is_the_stock_pipelines_bit_for_bit(tiny: Tiny) -> None:
    """diffusers' own pipeline with the same transformer, in torch on the CPU, from the same seed."""
    model = tiny.model()
    with VortaPipeline.from_pretrained(model, strict=True) as pipe:
        video = pipe("a red wall", seed=7, params=FEW)
        noise = torch.Generator().manual_seed(7)
        again, other = (pipe("a red wall", params=FEW, generator=noise) for _ in range(2))
    stock = tiny.pipeline(VortaTransformer.from_pretrained(model))
    arguments: dict[str, Any] = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 2}
    (expected,) = stock("a red wall", generator=torch.Generator().manual_seed(7), output_type="pt", **arguments).frames
    assert video.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(video.frames, (expected * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    assert np.array_equal(again.frames, video.frames) and not np.array_equal(other.frames, video.frames)
    assert video.frames.std() > 1
    assert (video.seed, again.seed, video.launches) == (7, 7, 4 if tiny.family == "wan" else 2)
    assert video.frames_per_second == (16 if tiny.family == "wan" else 24)


def test_what_this_model_cannot_use(tiny: Tiny) -> None:
    with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
        with pytest.raises(ValueError, match="image: this model makes videos of text alone"):
            pipe("a red wall", image=np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        with pytest.raises(ValueError, match="guidance_scale_2"):
            pipe("a red wall", guidance_scale_2=3.0)
        with pytest.raises(ValueError, match="seed 1: the generator has one of its own"):
            pipe("a red wall", seed=1, generator=torch.Generator())
        message = r"prompt '.*ud[0-9a-f]{3}': has half of a surrogate pair"
        with pytest.raises(ValueError, match=message):
            pipe("a \ud83d")
        with pytest.raises(ValueError, match=message):
            pipe("a red wall", negative_prompt="\udc80")
        with pytest.raises(ValueError, match="params .*: must be SamplingParams"):
            pipe("a red wall", {"seed": 1})  # type: ignore[arg-type]
        for generator in (1, [torch.Generator()], np.random.default_rng(0)):
            with pytest.raises(ValueError, match="generator .*: must be a torch.Generator"):
                pipe("a red wall", generator=generator)
        with pytest.raises(ValueError, match="steps"):
            pipe("a red wall", steps=3)
        with pytest.raises(ValueError, match="prompts .* must be a list of strings"):
            pipe(["a red wall"])  # type: ignore[arg-type]


def test_nothing_of_a_request_is_left_in_the_next(tiny_wan: Tiny) -> None:
    cached = SamplingParams(
        num_inference_steps=6, cache=StepBroadcast(3, (100, 950)), dense_first=1, guidance_batching=GuidanceMode.BATCHED
    )
    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        first = pipe("a red wall", seed=1, params=cached)
        other = pipe("a blue wall", negative_prompt="red", seed=2, params=FEW)
        again = pipe("a red wall", seed=1, params=cached)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)
    assert first.launches == again.launches == first.planned.steps.computed_steps + 1 == 5
    assert again.fallbacks == ()


@pytest.mark.parametrize("guidance", [GuidanceMode.SEQUENTIAL, GuidanceMode.BATCHED])
def test_tea_cache_with_guidance(tiny: Tiny, guidance: GuidanceMode) -> None:
    """Both contexts skip the same steps, which launch nothing; the video is not that of all steps."""
    cache = TeaCache(2.0, IDENTITY)
    guided: dict[str, Any] = {} if tiny.family == "wan" else {"true_cfg_scale": 3.0}
    settings = SamplingParams(num_inference_steps=10, guidance_batching=guidance, **guided)
    with VortaPipeline.from_pretrained(tiny.onnx, strict=True) as pipe:
        computed = pipe.plan(settings.updated(cache=cache)).steps.computed_steps
        video, again = (pipe("a red wall", seed=1, params=settings.updated(cache=cache)) for _ in range(2))
        whole = pipe("a red wall", seed=1, params=settings)
    assert 1 < computed < 10
    assert video.launches == (2 * computed if guidance is GuidanceMode.SEQUENTIAL else computed + 1)
    assert np.array_equal(video.frames, again.frames)
    assert not np.array_equal(video.frames, whole.frames)


def test_guidance_that_is_off_is_not_batched(tiny_wan: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "batched_guidance_fits", lambda engine: pytest.fail("nothing to batch"))
    settings = SamplingParams(num_inference_steps=2, guidance_scale=1.0, guidance_batching=GuidanceMode.BATCHED)
    with VortaPipeline.from_pretrained(tiny_wan.onnx, strict=True) as pipe:
        assert pipe("a red wall", params=settings).launches == 2


def test_seeds_are_told_and_matter(tiny_hunyuan_video: Tiny) -> None:
    with VortaPipeline.from_pretrained(tiny_hunyuan_video.onnx) as pipe:
        one, other = (pipe("a red wall", params=FEW) for _ in range(2))
        assert one.seed != other.seed
        assert not np.array_equal(one.frames, other.frames)
        assert np.array_equal(one.frames, pipe("a red wall", seed=one.seed, params=FEW).frames)


def test_a_routed_model_generates_without_any_engine(tiny: Tiny) -> None:
    with VortaPipeline.from_pretrained(tiny.model()) as pipe:
        in_torch = pipe("a red wall", seed=3, params=FEW)
        with pytest.raises(ValueError, match="executor: .* a routed model run where they are"):
            VortaPipeline.from_pretrained(tiny.model(), executor="onnxruntime")
    with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
        video = pipe("a red wall", seed=3, params=FEW)
    assert np.abs(in_torch.frames.astype(int) - video.frames).max() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        SamplingParams(num_inference_steps=3, scheduler="flow-euler", flow_shift=3.0),
        SamplingParams(num_inference_steps=3, scheduler="unipc"),
        SamplingParams(sigmas=(1.0, 0.757, 0.522)),
        SamplingParams(sigmas=(1.0, 0.757, 0.522), renoise=True),
        SamplingParams(timesteps=(999, 757, 522), scheduler="unipc"),
    ],
    ids=["flow-euler", "unipc", "distilled", "renoise", "given timesteps"],
)
def test_schedules(tiny: Tiny, settings: SamplingParams) -> None:
    with VortaPipeline.from_pretrained(tiny.onnx, strict=True) as pipe:
        one, again = (pipe("a red wall", seed=5, params=settings) for _ in range(2))
    assert np.array_equal(one.frames, again.frames)
    assert one.planned.steps.computed_steps == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_dpm_with_wan(tiny_wan: Tiny) -> None:
    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        video = pipe("a red wall", seed=5, params=SamplingParams(num_inference_steps=3, scheduler="dpm++"))
    assert video.launches == 6


def test_renoising_takes_fresh_noise_after_every_step_but_the_last() -> None:
    from vorta_trt.runtime.schedules import given_schedule

    scheduler = given_schedule(None, sigmas=[1.0, 0.5], renoise=True).instance
    scheduler.generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    latents, velocity = torch.ones(1, 2, 3), torch.full((1, 2, 3), 0.25)
    first, second = scheduler.timesteps
    latents = scheduler.step(velocity, first, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, 0.5 * torch.full((1, 2, 3), 0.75) + 0.5 * noise)
    after = scheduler.step(velocity, second, latents, return_dict=False)[0]
    torch.testing.assert_close(after, latents - 0.5 * velocity)


# -- files -------------------------------------------------------------------------------------------------------------


def test_files(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        video = pipe("a red wall", seed=1, params=FEW)
    video.save(tmp_path / "video.npy")
    assert np.array_equal(np.load(tmp_path / "video.npy"), video.frames)
    video.save(tmp_path / "video.mp4", 12)
    decoded = np.stack(list(read_frames(tmp_path / "video.mp4")))
    assert decoded.shape == video.frames.shape
    assert np.abs(decoded * 255 - video.frames).mean() < 12  # H.264, of noise
    assert frame_rate(tmp_path / "video.mp4") == 12
    assert sorted(file.name for file in tmp_path.iterdir()) == ["video.mp4", "video.npy"]
    with pytest.raises(ValueError, match=r"its suffix must be one of .mkv, .mov, .mp4, .npy; use video.mp4"):
        video.save(tmp_path / "video.gif")
    with pytest.raises(ValueError, match="fps 0.0: must be positive"):
        video.save(tmp_path / "none.mp4", 0)
    with pytest.raises(WriteError, match="its folder does not exist"):
        video.save(tmp_path / "absent" / "video.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(VortaError, match=r"pip install '\.\[video\]'"):
        video.save(tmp_path / "other.mp4")
    assert not (tmp_path / "other.mp4").exists()


# -- many requests -----------------------------------------------------------------------------------------------------


def test_two_pipelines_in_two_threads(tiny_wan: Tiny, tiny_hunyuan_video: Tiny) -> None:
    seeds = (1, 2, 3)
    results: dict[tuple[str, int], Any] = {}

    def work(tiny: Tiny) -> None:
        with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
            for seed in seeds:
                results[tiny.family, seed] = pipe("a red wall", seed=seed, params=FEW).frames

    threads = [threading.Thread(target=work, args=(tiny,)) for tiny in (tiny_wan, tiny_hunyuan_video)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tiny in (tiny_wan, tiny_hunyuan_video):
        with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
            alone = pipe("a red wall", seed=2, params=FEW).frames
        assert np.array_equal(results[tiny.family, 2], alone)


def test_two_threads_take_turns_with_one_pipeline(tiny_hunyuan_video: Tiny) -> None:
    inside, most = 0, 0

    def watch(step: int, planned: PlannedRequest) -> None:
        nonlocal inside, most
        inside += step == 0
        most = max(most, inside)
        inside -= step == 1

    with VortaPipeline.from_pretrained(tiny_hunyuan_video.onnx) as pipe:
        videos: list[Any] = []
        threads = [
            threading.Thread(target=lambda: videos.append(pipe("a red wall", seed=1, params=FEW, on_step=watch)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1
    assert len(videos) == 3
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)


def test_requests_take_no_memory_with_them(tiny: Tiny) -> None:
    """studies/repeated_requests.py measures the memory of the process over 200 requests."""
    settings = SamplingParams(
        num_inference_steps=3, cache=StepBroadcast(2, (100, 999)), guidance_batching=GuidanceMode.BATCHED
    )
    with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
        pipe("a red wall", seed=0, params=settings)
        before = living_tensors()
        for seed in range(5):
            pipe("a red wall", seed=seed, params=settings)
        assert living_tensors() == before


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_an_error_leaves_the_pipeline_ready(tiny_wan: Tiny) -> None:
    def stop(step: int, planned: PlannedRequest) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        expected = pipe("a red wall", seed=1, params=FEW).frames
        with pytest.raises(KeyboardInterrupt):
            pipe("a red wall", seed=1, params=FEW, on_step=stop)
        with pytest.raises(ValueError, match="negative_prompt 'x': has no effect without guidance"):
            pipe("a", negative_prompt="x", params=SamplingParams(num_inference_steps=2, guidance_scale=1.0))
        assert np.array_equal(pipe("a red wall", seed=1, params=FEW).frames, expected)


def test_samples_that_are_not_finite(tiny_wan: Tiny) -> None:
    model = tiny_wan.model()
    with torch.no_grad():
        model.routed_blocks()[1].ffn.net[2].weight[0, 0] = float("nan")
    with (
        VortaPipeline.from_pretrained(model) as pipe,
        pytest.raises(NonFiniteError, match=r"step 0, .*it began in blocks.1.ffn"),
    ):
        pipe("a red wall", params=FEW)


def test_a_vae_that_overflows(tiny_wan: Tiny) -> None:
    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        with torch.no_grad():
            next(vae_of(pipe).decoder.parameters()).fill_(float("inf"))
        with pytest.raises(VortaError, match="the decoded video has values that are not finite"):
            pipe("a red wall", params=FEW)


def test_a_file_without_router(tiny_wan: Tiny, tmp_path: Path) -> None:
    source = Source(tiny_wan.checkpoint, size=VideoSize(*SIZE), precision="fp32")
    dense = export_checkpoint(source, tmp_path / "dense.onnx", lambda *what: None)
    with VortaPipeline.from_pretrained(dense, tiny_wan.checkpoint, strict=True) as pipe:
        video = pipe("a red wall", params=FEW)
    assert video.planned.steps.routes is not None
    assert video.planned.steps.routes.shares()["full"] == 1


def test_strict_wants_to_know_the_routes(tiny_wan: Tiny) -> None:
    planner = RequestPlanner(tiny_wan.onnx)
    planner.experts = tuple(replace(expert, path=None) for expert in planner.experts)  # as of an old bundle
    with VortaPipeline(planner) as pipe:
        video = pipe("a red wall", params=FEW)
        assert video.fallbacks == ("planned routes: 1 times",)
    with VortaPipeline(planner, strict=True) as pipe:
        with pytest.raises(FallbackError, match="planned routes: .* does not hold its timestep path"):
            pipe("a red wall", params=FEW)


def copy_of(tiny: Tiny, folder: Path) -> Path:
    return Path(shutil.copytree(tiny.checkpoint, folder / "copy"))


def test_checkpoints_of_another_model(tiny_wan: Tiny, tiny_hunyuan_video: Tiny, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a HunyuanVideoPipeline; generation needs the WanPipeline folder"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, tiny_hunyuan_video.checkpoint)
    folder = copy_of(tiny_wan, tmp_path)
    config = folder / "vae" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"z_dim": 6, "latents_mean": [0.0] * 6, "latents_std": [1.0] * 6})
    )
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    from diffusers import AutoencoderKLWan

    AutoencoderKLWan.from_config(json.loads(config.read_text())).save_pretrained(folder / "vae")
    with pytest.raises(CheckpointError, match="VAE channels 6, but .*fp32.onnx takes 4"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, folder)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae"])
def test_missing_parts(tiny_wan: Tiny, tmp_path: Path, part: str) -> None:
    folder = copy_of(tiny_wan, tmp_path)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: [None, None]}))
    with pytest.raises(CheckpointError, match=f"has no {part}"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, folder)


def test_folders_that_are_no_pipeline(tiny_wan: Tiny, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="has no model_index.json"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, tmp_path / "folder")
    (tmp_path / "folder" / "model_index.json").write_text("[")
    with pytest.raises(CheckpointError, match="model_index.json: is not valid JSON"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, tmp_path / "folder")


def test_offload_without_a_gpu(tiny_wan: Tiny) -> None:
    with pytest.raises(VortaError, match="cpu_offload: there is no GPU to keep free"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, cpu_offload=True)


def test_tiles(tiny: Tiny) -> None:
    with VortaPipeline.from_pretrained(tiny.onnx) as pipe:
        assert vae_of(pipe).use_tiling == (tiny.family == "hunyuan_video")
    with VortaPipeline.from_pretrained(tiny.onnx, vae_tiling=tiny.family == "wan") as pipe:
        assert vae_of(pipe).use_tiling == (tiny.family == "wan")


def test_precision_of_the_vae(tiny_wan: Tiny) -> None:
    """What was chosen holds on the CPU, too, where all is in float32 otherwise."""
    videos = []
    for precision in (None, "bf16"):
        with VortaPipeline.from_pretrained(tiny_wan.onnx, vae_precision=precision) as pipe:
            assert vae_of(pipe).dtype == (torch.bfloat16 if precision else torch.float32)
            assert all(part.dtype == vae_of(pipe).dtype for part in vae_of(pipe).parameters())
            videos.append(pipe("a red wall", num_inference_steps=2, seed=1).frames.astype(float))
    difference = np.abs(videos[0] - videos[1])
    assert 0 < difference.mean() < 3 and videos[0].std() > 1  # of 255; two of bfloat16's steps are 2


def test_a_precision_that_is_none(tiny_wan: Tiny) -> None:
    with pytest.raises(ValueError, match="vae_precision 'fp8': must be one of fp32, fp16, bf16"):
        VortaPipeline.from_pretrained(tiny_wan.onnx, vae_precision="fp8")


@pytest.mark.gpu
@pytest.mark.parametrize("cpu_offload", [False, True])
def test_on_a_gpu(tiny: Tiny, cpu_offload: bool) -> None:
    with VortaPipeline.from_pretrained(tiny.model(dtype=torch.bfloat16).to("cuda"), cpu_offload=cpu_offload) as pipe:
        one, again = (pipe("a red wall", seed=1, params=FEW) for _ in range(2))
    assert np.abs(one.frames.astype(int) - again.frames).max() <= 1


@pytest.mark.gpu
def test_residencies_of_an_engine_with_calibrated_routes(tiny_wan: Tiny, tmp_path: Path) -> None:
    """Sequential, it gives the videos of resident, and leaves nothing on the GPU. Strict: the engine takes the planned
    routes, in CUDA graphs."""
    geometry = RequestPlanner(tiny_wan.onnx).geometry
    routes_file = save_calibration(tmp_path / "routes.json", geometry, (1000.0, 900.0), (899.0, 0.0))
    source = Source(tiny_wan.checkpoint, precision="fp16", route_override=routes_file)
    bundle = build_here(source, tmp_path / "wan.bundle")
    settings = SamplingParams(num_inference_steps=6, dense_last=1)
    frames: list[list[Any]] = []
    free = []

    def run(mode: str) -> None:
        videos: list[GeneratedVideo] = []
        with VortaPipeline.from_pretrained(bundle, tiny_wan.checkpoint, strict=True, residency=mode) as pipe:
            pipe.generate_each(
                ["a red wall", "a blue wall"], lambda _, video: videos.append(video), params=settings, seed=1
            )
            assert (pipe.residency.residency.value, pipe.executor) == (mode, "tensorrt")
        routes = videos[0].planned.steps.routes
        assert routes is not None
        assert routes.routes.unique().tolist() == [0, 1, 2]
        frames.append([video.frames.astype(int) for video in videos])

    for mode in ("resident", "sequential", "sequential", "sequential"):
        run(mode)
        gc.collect()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    resident, *sequential = frames
    for each in sequential:
        assert all(np.abs(one - other).max() <= 1 for one, other in zip(resident, each, strict=True))
    assert np.abs(resident[0] - resident[1]).max() > 1
    assert free[3] >= free[2]  # the first ones load kernels
