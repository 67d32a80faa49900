# SPDX-License-Identifier: Apache-2.0
"""diffusers' own pipelines with only `transformer` replaced sample the same latents."""

from __future__ import annotations

import threading
from pathlib import Path
from statistics import median
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from torch import Tensor

from vorta_trt.engines import Bundle
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.pipeline_folder import LOADING
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import Engine, VortaTransformer
from vorta_trt.runtime.fallbacks import FallbackError, Fallbacks
from vorta_trt.runtime.from_checkpoint import Source
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.schedules import schedule_timesteps

from ...tiny import Tiny, build_here, latents, save_calibration

SAMPLES = 7


def inputs(tiny: Tiny, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a pipeline calls its transformer with, in its type."""
    given = tiny.model().inputs(1, seed)
    del given["tau"], given["route_override"]
    return {name: tensor.to(dtype) for name, tensor in given.items()}


# -- the same latents --------------------------------------------------------------------------------------------------


def test_the_engine_samples_what_the_routed_model_samples(tiny: Tiny, seed: int) -> None:
    expected = latents(tiny.pipeline(VortaTransformer.from_pretrained(tiny.model())), seed=seed)
    with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
        sampled = latents(tiny.pipeline(transformer), seed=seed)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-3)
    assert expected.std() > 0.1
    assert (
        latents(tiny.pipeline(VortaTransformer.from_pretrained(tiny.model(tau=2))), seed=seed) - expected
    ).abs().max() > 0.01


def test_a_model_without_router_samples_what_diffusers_own_samples(tiny: Tiny, seed: int) -> None:
    kind = diffusers.WanTransformer3DModel if tiny.family == "wan" else diffusers.HunyuanVideoTransformer3DModel
    own = kind.from_pretrained(tiny.checkpoint / "transformer")
    expected = latents(tiny.pipeline(own), seed=seed)
    routed = VortaTransformer.from_pretrained(RoutedTransformer.from_model(own))
    torch.testing.assert_close(latents(tiny.pipeline(routed), seed=seed), expected, rtol=0, atol=1e-3)


def test_made_while_another_thread_loads_a_pipeline(tiny_wan: Tiny) -> None:
    """Which makes parameters without memory in the whole process."""
    made: list[VortaTransformer] = []
    with Engine(tiny_wan.onnx) as engine:
        thread = threading.Thread(target=lambda: made.append(VortaTransformer.from_pretrained(engine)))
        with LOADING, accelerate.init_empty_weights():
            thread.start()
            thread.join(0.5)
        thread.join()
        assert made[0].place.device == torch.device("cpu")


def test_passed_to_from_pretrained(tiny_wan: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        pipeline = diffusers.WanPipeline.from_pretrained(tiny_wan.checkpoint, transformer=transformer)
        assert pipeline.transformer is transformer
        assert pipeline.components["transformer"] is transformer


def test_guidance_off_and_several_videos(tiny_wan: Tiny) -> None:
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        pipeline = tiny_wan.pipeline(transformer)
        both = latents(pipeline, 2, prompt=["a red wall", "a blue wall"], guidance_scale=1.0)
    routed = tiny_wan.pipeline(VortaTransformer.from_pretrained(tiny_wan.model()))
    expected = latents(routed, 2, prompt=["a red wall", "a blue wall"], guidance_scale=1.0)
    assert both.shape[0] == 2
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-3)


def test_true_guidance_of_hunyuan_video(tiny_hunyuan_video: Tiny) -> None:
    tiny = tiny_hunyuan_video
    arguments: dict[str, Any] = {"steps": 2, "negative_prompt": "blue", "true_cfg_scale": 4.0}
    with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
        sampled = latents(tiny.pipeline(transformer), **arguments)
    expected = latents(tiny.pipeline(VortaTransformer.from_pretrained(tiny.model())), **arguments)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-3)


def test_calibrated_routes_of_a_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes by the timestep, with and without a plan; the engine alone knows nothing of them."""
    with VortaTransformer.from_pretrained(bundle, executor="onnxruntime") as plain:
        assert plain.calibration is None
        geometry = plain.denoiser.engine.metadata.attention_geometry  # type: ignore[attr-defined]
    save_calibration(tmp_path / "routes.json", geometry, (1000.0, 700.0), (700.0, 0.0))
    monkeypatch.setattr(Bundle, "route_override_path", tmp_path / "routes.json")
    with VortaTransformer.from_pretrained(bundle, executor="onnxruntime") as transformer:
        taken: list[set[int]] = []
        run = transformer.denoiser.run

        def watched(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
            sample, routes = run(*arguments, **options)
            taken.append(set(routes.flatten().tolist()))
            return sample, routes

        monkeypatch.setattr(transformer.denoiser, "run", watched)
        shapes = {spec.name: spec.shape for spec in transformer.denoiser.engine.inputs}  # type: ignore[attr-defined]
        latents, text = (torch.randn(1, *shapes[name][1:]) for name in ("hidden_states", "encoder_hidden_states"))

        def sample() -> None:
            for timestep in (900.0, 400.0):
                transformer(latents, torch.tensor([timestep]), text)

        looked_up: list[int] = []
        overrides = RouteCalibration.overrides
        monkeypatch.setattr(
            RouteCalibration, "overrides", lambda own, given: looked_up.append(len(given)) or overrides(own, given)
        )
        schedule = torch.tensor([900.0, 400.0])
        for timestep in (*schedule, *schedule):  # as a pipeline gives them
            transformer(latents, timestep.expand(1), text)
        schedule.fill_(900.0)
        transformer(latents, schedule[1].expand(1), text)
        assert looked_up == [2, 2]  # not read at every step
        assert taken == [{2}, {1}, {2}, {1}, {2}]
        taken.clear()
        sample()
        with transformer.request(transformer.plan([900.0, 400.0])):
            sample()
        with transformer.request(transformer.plan(iter([900.0, 400.0]), calibrated=None, tau=2.0)):
            sample()
    assert taken == [{2}, {1}, {2}, {1}, {0}, {0}]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_the_routed_model_is_as_exact_as_on_the_cpu(tiny: Tiny, dtype: torch.dtype, seed: int) -> None:
    """Against float32, at most twice the error of the same model in the same type on the CPU."""
    exact = sampled(tiny.pipeline(VortaTransformer.from_pretrained(tiny.model())), seed)
    on_cpu = sampled(tiny.pipeline(VortaTransformer.from_pretrained(tiny.model(dtype=dtype))), seed)
    pipeline = tiny.pipeline(VortaTransformer.from_pretrained(tiny.model(dtype=dtype)))
    on_gpu = sampled(pipeline.to("cuda"), seed)
    assert on_gpu[0].is_cuda
    assert usual_error(on_gpu, exact) <= 2 * usual_error(on_cpu, exact) + 1e-3


@pytest.mark.gpu
def test_on_a_gpu_the_engine_is_as_exact_as_the_routed_model(tiny_wan: Tiny, tmp_path: Path, seed: int) -> None:
    transformer = VortaTransformer.from_pretrained(
        build_here(Source(tiny_wan.checkpoint, tiny_wan.router, precision="fp16"), tmp_path / "wan.bundle")
    )
    exact = sampled(tiny_wan.pipeline(VortaTransformer.from_pretrained(tiny_wan.model())), seed)
    routed = VortaTransformer.from_pretrained(tiny_wan.model(dtype=torch.float16))
    in_torch = sampled(tiny_wan.pipeline(routed).to("cuda"), seed)
    with transformer:
        by_engine = sampled(tiny_wan.pipeline(transformer).to("cuda"), seed)
    assert usual_error(by_engine, exact) <= 2 * usual_error(in_torch, exact) + 1e-3


def sampled(pipeline: Any, seed: int) -> list[Tensor]:
    """Latents of `SAMPLES` seeds."""
    return [latents(pipeline, seed=seed + number) for number in range(SAMPLES)]


def usual_error(samples: list[Tensor], exact: list[Tensor]) -> float:
    """The median over the samples of the mean distance.

    Rounding may choose other tokens of a coreset, which makes the error of some samples up to four times that of the
    others. With full and sliding heads alone, all samples have the same.
    """
    return median(float((one.cpu().float() - other).abs().mean()) for one, other in zip(samples, exact, strict=True))


# -- what a pipeline sees ----------------------------------------------------------------------------------------------


def test_config_dtype_and_device(tiny: Tiny) -> None:
    with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
        config = transformer.config
        assert (config.in_channels, config.num_attention_heads) == (4, 3)
        assert config.patch_size == ([1, 2, 2] if tiny.family == "wan" else 2)
        assert (transformer.dtype, transformer.device) == (torch.float32, torch.device("cpu"))
        assert sum(parameter.numel() for parameter in transformer.parameters()) == 0
        pipeline = tiny.pipeline(transformer)
        assert (pipeline.device, pipeline._execution_device) == (torch.device("cpu"), torch.device("cpu"))


def test_the_pipelines_type_goes_in_and_out(tiny: Tiny, seed: int) -> None:
    given = inputs(tiny, seed, torch.bfloat16)
    with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
        output = transformer(**given)
        (sample,) = transformer(**given, return_dict=False)
    assert isinstance(output, diffusers.models.modeling_outputs.Transformer2DModelOutput)
    assert sample.dtype == torch.bfloat16
    assert torch.equal(output.sample, sample)
    exact = {name: tensor.float() for name, tensor in given.items()}
    expected, _ = tiny.model()(**exact)
    torch.testing.assert_close(sample.float(), expected, rtol=1e-2, atol=1e-3)


def test_positional_arguments_are_those_of_diffusers(tiny_wan: Tiny, tiny_hunyuan_video: Tiny, seed: int) -> None:
    for tiny in (tiny_wan, tiny_hunyuan_video):
        given = inputs(tiny, seed)
        with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
            assert torch.equal(transformer(*given.values()).sample, transformer(**given).sample)


def test_an_engine_is_closed_by_who_opened_it(tiny_wan: Tiny) -> None:
    with Engine(tiny_wan.onnx) as engine:
        with VortaTransformer.from_pretrained(engine) as transformer:
            assert transformer.timestep_path is not None
        assert not engine.closed
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        opened = transformer.denoiser.engine  # type: ignore[attr-defined]
    assert opened.closed


# -- moving and offloading ---------------------------------------------------------------------------------------------


def test_to_moves_no_engine_and_changes_no_precision(tiny_wan: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        assert transformer.to("cpu") is transformer
        assert not caplog.records
        pipeline = tiny_wan.pipeline(transformer)
        pipeline.to("cpu", torch.bfloat16)
        assert "stays in torch.float32" in caplog.text
        assert transformer.dtype == torch.float32
        assert pipeline.text_encoder.dtype == torch.bfloat16
    assert VortaTransformer.from_pretrained(tiny_wan.model()).to("meta").device == torch.device("meta")


@pytest.mark.parametrize("kind", ["engine", "model"])
def test_model_offload(tiny: Tiny, kind: str) -> None:
    transformer = (
        VortaTransformer.from_pretrained(tiny.onnx)
        if kind == "engine"
        else VortaTransformer.from_pretrained(tiny.model())
    )
    with transformer:
        pipeline = tiny.pipeline(transformer)
        expected = latents(pipeline, 2)
        pipeline.enable_model_cpu_offload(device="cpu")
        for _ in range(2):  # the hooks are made anew after every video
            torch.testing.assert_close(latents(pipeline, 2), expected, rtol=0, atol=1e-4)


def test_sequential_offload_leaves_an_engine_and_is_refused_by_a_model(tiny_wan: Tiny, seed: int) -> None:
    given = inputs(tiny_wan, seed)
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        expected = transformer(**given).sample
        accelerate.cpu_offload(transformer, torch.device("cpu"), offload_buffers=True)  # as the pipeline does
        assert torch.equal(transformer(**given).sample, expected)
    routed = VortaTransformer.from_pretrained(tiny_wan.model())
    accelerate.cpu_offload(routed, torch.device("cpu"))
    with pytest.raises(VortaError, match=r"enable_sequential_cpu_offload: .* use pipe.enable_model_cpu_offload\(\)"):
        routed(**given)


@pytest.mark.gpu
def test_offload_on_a_gpu(tiny: Tiny) -> None:
    pipeline = tiny.pipeline(VortaTransformer.from_pretrained(tiny.model(dtype=torch.bfloat16)))
    expected = latents(pipeline.to("cuda"), 2)
    pipeline.to("cpu")
    pipeline.enable_model_cpu_offload()
    torch.testing.assert_close(latents(pipeline, 2).cpu(), expected.cpu(), rtol=0, atol=1e-2)
    assert pipeline.text_encoder.device.type == "cpu"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_another_video_size(tiny: Tiny) -> None:
    with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
        with pytest.raises(
            ValueError,
            match=r"latents of a video of 29x64x128, but this model was made for 9x64x96 .*call the pipeline with "
            r"num_frames=9, height=64, width=96, or make another: vorta-trt build CHECKPOINT --size 29x64x128",
        ):
            latents(tiny.pipeline(transformer), num_frames=29, width=128)


def test_prompt_lengths(tiny_wan: Tiny, tiny_hunyuan_video: Tiny) -> None:
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        with pytest.raises(ValueError, match=r"with 226 rows: this model takes 512; .*max_sequence_length=512"):
            latents(tiny_wan.pipeline(transformer), max_sequence_length=226)
    with VortaTransformer.from_pretrained(tiny_hunyuan_video.onnx) as transformer:
        pipeline = tiny_hunyuan_video.pipeline(transformer)
        short, full = (latents(pipeline, 2, max_sequence_length=length) for length in (100, 256))
        torch.testing.assert_close(short, full, rtol=0, atol=1e-4)  # masked either way
        with pytest.raises(ValueError, match=r"with 300 rows: this model takes at most 256; .*max_sequence_length=256"):
            latents(pipeline, max_sequence_length=300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": torch.ones(1, 4, 3, 8)}, r"must be latents \[B, C, F, H, W\]"),
        ({"hidden_states": torch.ones(1, 16, 3, 8, 12)}, "must have 4 channels; give the pipeline this model's VAE"),
        ({"timestep": torch.ones(1, 432)}, r"timestep of shape .*must be \[B\]"),
        ({"encoder_hidden_states": torch.ones(512, 32)}, r"must be \[B, T, channels\]"),
        ({"attention_kwargs": {"scale": 0.5}}, "attention_kwargs {'scale': 0.5}: must be empty; a LoRA scale"),
        (
            {"encoder_hidden_states_image": torch.ones(1)},
            "_image: this model takes hidden_states, timestep, encoder_hidden_states",
        ),
    ],
)
def test_wrong_calls(tiny_wan: Tiny, changes: dict[str, Any], message: str, seed: int) -> None:
    with (
        VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer,
        pytest.raises((ValueError, VortaError), match=message),
    ):
        transformer(**{**inputs(tiny_wan, seed), **changes})


def test_masks(tiny_hunyuan_video: Tiny, seed: int) -> None:
    given = inputs(tiny_hunyuan_video, seed)
    gap = torch.ones(1, 256)
    gap[:, 3] = 0
    with VortaTransformer.from_pretrained(tiny_hunyuan_video.onnx) as transformer:
        with pytest.raises(ValueError, match="a valid token follows one that is not"):
            transformer(**{**given, "encoder_attention_mask": gap})
        with pytest.raises(ValueError, match=r"encoder_attention_mask of shape \(1, 9\): must be \(1, 256\)"):
            transformer(**{**given, "encoder_attention_mask": gap[:, :9]})
        with pytest.raises(ValueError, match="guidance None: the model needs it"):
            transformer(**{**given, "guidance": None})


def test_what_has_no_meaning_for_built_in_weights(tiny_wan: Tiny, tmp_path: Path) -> None:
    with VortaTransformer.from_pretrained(tiny_wan.onnx) as transformer:
        pipeline = tiny_wan.pipeline(transformer)
        with pytest.raises(VortaError, match="fuse_lora: not for VortaTransformer"):
            pipeline.fuse_lora()
        with pytest.raises(VortaError, match="load_lora_adapter: .* then build from that checkpoint"):
            pipeline.load_lora_into_transformer({}, transformer=transformer)
        with pytest.raises(VortaError, match="save_pretrained: .* the bundle or ONNX file is what it is saved as"):
            transformer.save_pretrained(tmp_path / "saved")
        with pytest.raises(VortaError, match=r"enable_group_offload: .*exclude_modules=\['transformer'\]"):
            transformer.enable_group_offload(torch.device("cpu"))
        with pytest.raises(ValueError, match="cache"):
            transformer.enable_cache(diffusers.FirstBlockCacheConfig())
        with pytest.raises(ValueError, match="seed: not of enable_cache.*dense_first"):
            transformer.enable_cache("broadcast", seed=1)
        with pytest.raises(VortaError, match="set_attention_backend: .*its attention is the routed one"):
            transformer.set_attention_backend("flash")
    with pytest.raises(ValueError, match="executor: an open engine and a routed model run where they are"):
        VortaTransformer.from_pretrained(tiny_wan.model(), executor="onnxruntime")


def test_files_and_models_that_cannot_be_used(tiny_wan: Tiny, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(tiny_wan.onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(VortaError, match="`vorta-trt export` did not write it"):
        VortaTransformer.from_pretrained(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="outputs 'reuse': pipelines keep the sample of one call over the next"):
        VortaTransformer.from_pretrained(tiny_wan.onnx, outputs="reuse")
    with pytest.raises(ValueError, match="materialize=False"):
        VortaTransformer.from_pretrained(tiny_wan.model(materialize=False))


# -- planned by the transformer itself ---------------------------------------------------------------------------------


def test_a_cache_in_a_stock_pipeline(tiny: Tiny) -> None:
    """`enable_cache` samples what a request with the same plan samples, whatever the number of steps."""
    transformer = VortaTransformer.from_pretrained(tiny.model())
    pipeline = tiny.pipeline(transformer)
    plain = latents(pipeline, 6)
    transformer.enable_cache(StepBroadcast(3, (100, 990)), dense_first=1)
    assert transformer.is_cache_enabled
    cached, again = (latents(pipeline, 6) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        latents(pipeline, 6, callback_on_step_end=interrupt)
    after, other = latents(pipeline, 6), latents(pipeline, 4)
    assert torch.equal(cached, again) and torch.equal(cached, after) and not torch.equal(cached, plain)
    assert not transformer.fallbacks.counts
    transformer.disable_cache()
    assert torch.equal(latents(pipeline, 6), plain)
    for steps, expected in ((6, cached), (4, other)):
        schedule = schedule_timesteps(tiny.checkpoint, steps)
        guards = RouteGuards(dense_first=1)
        plan = transformer.plan(schedule.timesteps, cache=StepBroadcast(3, (100, 990)), guards=guards)
        assert plan.computed_steps < steps
        with transformer.request(plan, fallbacks=Fallbacks(strict=True)):
            assert torch.equal(latents(pipeline, steps), expected)


def interrupt(pipeline: Any, step: int, timestep: Tensor, tensors: Any) -> dict[str, Any]:
    if step == 2:
        raise KeyboardInterrupt
    return {}


def test_a_pipeline_that_is_interrupted_on_purpose(tiny_wan: Tiny) -> None:
    transformer = VortaTransformer.from_pretrained(tiny_wan.model())
    pipeline = tiny_wan.pipeline(transformer)

    def stop(pipe: Any, step: int, timestep: Tensor, tensors: Any) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    pipeline.scheduler.set_timesteps(3)
    plan = transformer.plan(pipeline.scheduler.timesteps)
    strict = Fallbacks(strict=True)
    with transformer.request(plan, fallbacks=strict, pipeline=pipeline):
        latents(pipeline, callback_on_step_end=stop)
    with pytest.raises(FallbackError, match="unfinished plan: 2 of 3 steps"):
        with transformer.request(plan, fallbacks=strict):
            latents(pipeline, callback_on_step_end=stop)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch, importing its compiler
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_torch_compile_leaves_it_alone(tiny_wan: Tiny, how: str) -> None:
    transformer = VortaTransformer.from_pretrained(tiny_wan.onnx)
    with transformer:
        pipeline = tiny_wan.pipeline(transformer)
        expected = latents(pipeline, 2)
        if how == "in place":
            pipeline.transformer.compile()
        else:
            pipeline.transformer = torch.compile(pipeline.transformer)
        assert torch.equal(latents(pipeline, 2), expected)
