# SPDX-License-Identifier: Apache-2.0
"""Whole calibrations of tiny models: what the file holds, that the check measures what it says, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vorta_trt.model import Branch, RoutedTransformer
from vorta_trt.model.calibration import CalibrationError, CalibrationReport, CalibrationSettings, calibrate_routes
from vorta_trt.model.calibration import calibrate as module
from vorta_trt.model.calibration.buckets import bucket_of
from vorta_trt.model.calibration.measure import measure_branches
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.training.data import DataError
from vorta_trt.model.write_errors import WriteError

from ..training.samples import CHANNELS, GEOMETRY, HEAD_DIM, HEADS, LAYERS, SIZE, TEXT_DIM, write_data
from .schedulers import scheduler_of

SCHEDULE = 8  # steps
PROMPTS = ["a red wall", "a blue wall", "a wall, a wall"]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM, "channels": CHANNELS, "text_dim": TEXT_DIM}
    root = tmp_path_factory.mktemp("pipeline") / "a wan"
    return complete_pipeline(make_wan_checkpoint(root, ffn_dim=32, freq_dim=32, seed=3, **sizes), seed=4)


@pytest.fixture(scope="module")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"layers": 1, "single_layers": 1, "heads": 2, "head_dim": 16, "refiner_layers": 1, "channels": CHANNELS}
    root = tmp_path_factory.mktemp("pipeline") / "hunyuan video"
    return complete_pipeline(make_hunyuan_video_checkpoint(root, text_dim=16, pooled_dim=12, **sizes), seed=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), ["cat", "dog", "fish", "bird", "the sea"])


def run(checkpoint: Path, output: Path, *, source: dict[str, Any], **options: Any) -> CalibrationReport:
    settings = {"dtype": "fp32", "buckets": 2, "run_steps": 3, "budget": 0.2}
    settings |= {name: options.pop(name) for name in list(options) if hasattr(CalibrationSettings(), name)}
    options = {"steps": SCHEDULE, "device": "cpu", **source, **options}
    return calibrate_routes(checkpoint, output, scheduler_of(checkpoint), CalibrationSettings(**settings), **options)


# -- what comes out ----------------------------------------------------------------------------------------------------


def check_choice(report: CalibrationReport, budget: float) -> None:
    """In every bucket and layer the errors keep the budget, and no cheaper choice would."""
    calibration = report.calibration
    costs = torch.tensor([calibration.geometry.attention_flops(branch, report.table.head_dim) for branch in Branch])
    squares = calibration.errors.double().square()
    assert bool((calibration.layer_errors <= budget * (1 + 1e-6)).all())
    heads = calibration.routes.shape[2]
    every = torch.tensor(list(itertools.product(range(3), repeat=heads)))  # [3^N, N]
    for bucket, layer in itertools.product(*map(range, calibration.routes.shape[:2])):
        allowed = squares[bucket, layer].gather(1, every.T).sum(dim=0) <= budget**2 * (1 - 1e-6)
        assert costs[calibration.routes[bucket, layer].long()].sum() <= costs[every[allowed]].sum(dim=1).min()


def test_from_data(wan: Path, data: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    output = tmp_path / "c.json"
    report = run(wan, output, source={"data": data}, progress=lambda *event: seen.append(event))
    calibration = RouteCalibration.load(output)
    assert (calibration.family, calibration.checkpoint, calibration.budget) == ("wan", "a wan", 0.2)
    assert calibration.geometry == GEOMETRY and calibration.routes.shape == (2, LAYERS, HEADS)
    assert torch.equal(calibration.routes, report.calibration.routes)
    calibration.check("wan", LAYERS, HEADS, GEOMETRY)
    timesteps = [float(step) for step in scheduler_of(wan)(SCHEDULE).timesteps]
    assert bucket_of(timesteps, calibration.buckets).tolist() == [0] * 4 + [1] * 4
    check_choice(report, 0.2)
    assert len(set(calibration.routes.flatten().tolist())) > 1  # something was chosen
    assert len(report.measured) == 3 and len(report.held_back) == 1  # of 4, of the 5 there are
    assert len({*report.measured, *report.held_back}) == 4
    assert torch.equal(report.table.routes, calibration.overrides(timesteps).to(torch.int8))
    assert 0 < report.table.saved < 1 and report.table.total_saved is not None
    settings = calibration.settings
    assert settings["video_size"] == list(SIZE) and settings["measured"] == list(report.measured)
    assert settings["check"] == report.check.to_dict()
    content = json.loads(report.to_json())
    assert [row["steps"] for row in content["buckets"]] == [4, 4]
    assert content["attention_flops_saved"] == pytest.approx(report.table.saved)
    assert "measured on 3 samples, checked on 1; budget of a layer 0.2" in report.summary()
    assert ("measuring the branches", 0, 8) in seen and ("checking the routes", 7, 8) in seen
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


def test_the_same_seed_gives_the_same_file(wan: Path, data: Path, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    variant = Path(shutil.copytree(wan, tmp_path / "variant" / wan.name))
    weights = variant / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    for checkpoint, output, options in (
        (wan, first, {"seed": 5}),
        (variant, second, {"seed": 5, "variant": "fp16"}),
        (wan, other, {"seed": 6}),
    ):
        run(checkpoint, output, source={"data": data}, **options)
    assert first.read_bytes() == second.read_bytes()
    assert not torch.equal(RouteCalibration.load(first).errors, RouteCalibration.load(other).errors)


def test_errors_are_means_over_the_measured_samples(
    wan: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.model.calibration import passes

    found: list[tuple[float, Tensor]] = []

    def note(model: RoutedTransformer, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        sample, squares = measure_branches(model, inputs)
        found.append((float(inputs["timestep"]), squares))
        return sample, squares

    monkeypatch.setattr(passes, "measure_branches", note)
    calibration = run(wan, tmp_path / "c.json", source={"data": data}).calibration
    assert len({timestep for timestep, _ in found}) == 6  # 3 samples, 2 buckets: every time another step
    for bucket in range(2):
        inside = [squares for timestep, squares in found if bucket_of([timestep], calibration.buckets) == bucket]
        assert len(inside) == 3
        torch.testing.assert_close(calibration.errors[bucket], torch.stack(inside).mean(dim=0).sqrt().float())


def test_the_check_runs_the_routes(wan: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample and layer errors, against the model called by hand on what was held back."""
    from vorta_trt.model.calibration import passes

    measure = passes.measure_routes
    calls: list[tuple[RoutedTransformer, dict[str, Any]]] = []

    def note(model: RoutedTransformer, inputs: dict[str, Any], routes: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((model, inputs))
        return measure(model, inputs, routes)

    monkeypatch.setattr(passes, "measure_routes", note)
    report = run(wan, tmp_path / "c.json", source={"data": data}, budget=0.5)
    assert len(calls) == 2
    for bucket, (model, inputs) in enumerate(calls):
        routes = report.calibration.overrides([float(inputs["timestep"])])[0]
        with torch.no_grad():
            taken, chosen = model(**inputs, route_override=routes)
            dense, _ = model(**inputs)
        assert torch.equal(chosen[:, 0], routes)
        expected = (taken - dense).norm() / dense.norm()
        assert float(report.check.sample_errors[bucket]) == pytest.approx(float(expected), rel=1e-4)
        assert 0 < float(report.check.layer_errors[bucket].max()) < 1
    dense_report = run(wan, tmp_path / "dense.json", source={"data": data}, budget=1e-6)
    assert not dense_report.calibration.routes.any()
    assert not dense_report.check.layer_errors.any() and not dense_report.check.sample_errors.any()


def test_a_target_in_place_of_a_budget(wan: Path, data: Path, tmp_path: Path) -> None:
    report = run(wan, tmp_path / "c.json", source={"data": data}, budget=None, target_share=0.6)
    assert 0.25 < 1 - report.table.saved <= 0.6
    assert report.calibration.budget == pytest.approx(float(report.calibration.layer_errors.max()), rel=1e-5)
    tighter = run(wan, tmp_path / "c.json", source={"data": data}, budget=None, target_share=0.4)
    assert tighter.table.saved > report.table.saved and tighter.calibration.budget > report.calibration.budget


def test_one_sample_is_checked_with_other_noise(wan: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["cat"])
    report = run(wan, tmp_path / "c.json", source={"data": data})
    assert report.measured == report.held_back == ("cat",)
    assert "checked on 1, with other noise at other steps" in report.summary()


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_from_prompts(wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense run is that of the pipeline: same scheduler, same guidance."""
    from diffusers import WanPipeline

    from vorta_trt.model.calibration import samples

    latents: list[Tensor] = []
    draw = samples.draw_noise

    def note(*arguments: Any) -> Tensor:
        latents.append(draw(*arguments))
        return latents[-1]

    monkeypatch.setattr(samples, "draw_noise", note)
    last: list[Tensor] = []
    scheduler = scheduler_of(wan)

    def make(steps: int) -> Any:
        made = scheduler(steps)
        step = made.step

        def keep(*arguments: Any, **options: Any) -> Any:
            result = step(*arguments, **options)
            last.append(result[0])
            return result

        made.step = keep
        return made

    settings = CalibrationSettings(dtype="fp32", buckets=2, run_steps=3)
    report = calibrate_routes(
        wan, tmp_path / "c.json", make, settings, prompts=PROMPTS, video_size=SIZE, steps=SCHEDULE, device="cpu"
    )
    assert report.measured == ("a red wall", "a blue wall") and report.held_back == ("a wall, a wall",)
    assert report.calibration.settings["source"] == "prompts"
    check_choice(report, 0.1)
    assert len(last) == 9 and len(latents) == 3  # 3 runs of 3 steps

    pipeline = WanPipeline.from_pretrained(wan)
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = SIZE
    expected = pipeline(
        "a red wall", num_frames=frames, height=height, width=width, num_inference_steps=3, guidance_scale=5.0,
        latents=latents[0], output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(last[2], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_hunyuan_video(hunyuan_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.model.calibration import passes

    guidance: list[float] = []

    def note(model: RoutedTransformer, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        guidance.append(float(inputs["guidance"]))
        assert 0 < int(inputs["encoder_attention_mask"].sum()) < 256
        return measure_branches(model, inputs)

    monkeypatch.setattr(passes, "measure_branches", note)
    output = tmp_path / "c.json"
    report = run(hunyuan_video, output, source={"prompts": PROMPTS}, video_size=SIZE, samples=2, budget=0.3)
    assert guidance == [6000.0] * 3  # embedded; no second pass
    calibration = RouteCalibration.load(output)
    assert calibration.family == "hunyuan_video" and calibration.routes.shape == (2, 2, 2)
    assert calibration.geometry.text_tokens == 256
    check_choice(report, 0.3)
    assert (len(report.measured), len(report.held_back)) == (1, 1)
    run(hunyuan_video, output, source={"prompts": PROMPTS}, video_size=SIZE, samples=1, guidance_scale=3.0)
    assert guidance[3:] == [3000.0] * 3


def test_hunyuan_video_from_data(hunyuan_video: Path, tmp_path: Path) -> None:
    """Text of another length in every sample; latents and text in float32 as they are prepared."""
    data = write_data(tmp_path / "data", ["cat", "dog"], family="hunyuan_video")
    for name, length in (("cat", 3), ("dog", 7)):
        text = {
            "prompt_embeds": torch.randn(9, TEXT_DIM),
            "prompt_attention_mask": (torch.arange(9) < length).long(),
            "pooled_prompt_embeds": torch.randn(12),
        }
        save_file(text, data / f"prompts/{name}.safetensors")
    report = run(hunyuan_video, tmp_path / "c.json", source={"data": data}, budget=0.3)
    check_choice(report, 0.3)
    assert {*report.measured, *report.held_back} == {"cat", "dog"}
    assert bool((report.calibration.errors[..., 1:] > 0).all())


# -- what is refused, before anything slow -----------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(module.RoutedTransformer, "from_pretrained", load)
    monkeypatch.setattr(module, "encode_prompts", load)


@pytest.mark.usefixtures("no_model")
def test_what_cannot_be_calibrated(wan: Path, data: Path, tmp_path: Path) -> None:
    output, source = tmp_path / "c.json", {"data": data}

    def refused(message: str, error: type[Exception] = ValueError, checkpoint: Path = wan, **options: Any) -> None:
        options = {"source": source, "output": output, **options}
        with pytest.raises(error, match=message):
            run(checkpoint, options.pop("output"), **options)
        assert not output.exists()

    both = {"data": data, "prompts": PROMPTS}
    refused("exactly one of both must be given", source=both, video_size=SIZE)
    refused("exactly one of both must be given", source={})
    refused("video size: prompts do not say it", source={"prompts": PROMPTS})
    refused("target share 0.01: the cheapest branch everywhere takes 0.25", budget=None, target_share=0.01)
    refused("buckets 9: must be between 1 and the 8 different timesteps", buckets=9)
    refused("run steps 3: none falls into the bucket", source={"prompts": PROMPTS}, video_size=SIZE, buckets=4)
    refused("c.json: its folder does not exist", WriteError, output=tmp_path / "absent/c.json")
    refused("is a folder; give a file name", WriteError, output=tmp_path)
    refused("device 'tpu': must be one of", device="tpu")
    refused("data .*absent: does not exist", FileNotFoundError, source={"data": tmp_path / "absent"})
    refused("prompts: there are none", source={"prompts": []}, video_size=SIZE)
    bad = write_data(tmp_path / "bad", ["cat", "dog"])
    (bad / "latents/dog.safetensors").unlink()
    refused("(?s)sample 'dog': its latents .* do not exist.*--skip-bad", DataError, source={"data": bad})
    refused("has no usable sample", DataError, source={"data": write_data(tmp_path / "none", [])})


def test_a_checkpoint_without_text_encoder(pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no text_encoder, tokenizer, vae"):
        run(pipeline.checkpoint, tmp_path / "c.json", source={"prompts": PROMPTS}, video_size=SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0.1, "target_share": 0.5}, "budget 0.1 and target share 0.5: one decides the other"),
        ({"budget": 0.0}, "budget 0.0: must be greater than 0"),
        ({"budget": float("nan")}, "budget nan"),
        ({"target_share": 1.5}, "target_share 1.5: must be less than or equal to 1"),
        ({"buckets": 0}, "buckets 0: must be greater than or equal to 1"),
        ({"guidance_scale": -1.0}, "guidance_scale -1.0"),
        ({"seed": -1}, "seed -1: must be greater than or equal to 0"),
        ({"dtype": "int8"}, "dtype 'int8': must be 'fp32', 'fp16' or 'bf16'"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CalibrationSettings(**changes)


def test_bad_samples_can_be_skipped(wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = write_data(tmp_path / "bad", ["cat", "dog", "sea"])
    (bad / "latents/dog.safetensors").unlink()
    report = run(wan, tmp_path / "c.json", source={"data": bad}, skip_bad=True)
    assert {*report.measured, *report.held_back} == {"cat", "sea"}
    assert "1 of 3 samples cannot be used and are skipped" in caplog.text


def test_numbers_that_are_not_finite_name_the_sample(
    wan: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.model.calibration import passes

    def overflow(model: RoutedTransformer, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        sample, squares = measure_branches(model, inputs)
        squares[1, 2, 1] = torch.nan
        return sample, squares

    monkeypatch.setattr(passes, "measure_branches", overflow)
    with pytest.raises(CalibrationError, match=r"sample '.*' at timestep \d+: .* not finite \(1 of 18 numbers\)"):
        run(wan, tmp_path / "c.json", source={"data": data})


@pytest.mark.parametrize("when", ["measuring the branches", "checking the routes"])
def test_an_interruption_leaves_what_was_there(wan: Path, data: Path, tmp_path: Path, when: str) -> None:
    output = tmp_path / "c.json"
    keys = ("format", "family", "geometry", "budget", "buckets", "routes", "errors")
    before = json.dumps(dict.fromkeys(keys, "before"))
    output.write_text(before)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wan, output, source={"data": data}, progress=interrupt)
    assert output.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_types(wan: Path, data: Path, tmp_path: Path, dtype: str) -> None:
    exact = run(wan, tmp_path / "exact.json", source={"data": data}).calibration
    half = run(wan, tmp_path / "half.json", source={"data": data}, dtype=dtype).calibration
    torch.testing.assert_close(half.errors, exact.errors, rtol=0.2, atol=2e-2)
