# SPDX-License-Identifier: Apache-2.0
"""Two settings of one model: what they sample, and how alike it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.constants import DENSE_TAU
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.comparison.settings import Setting, compare_settings
from vorta_trt.runtime.from_checkpoint import Source
from vorta_trt.runtime.pipelines.experts import BUNDLED
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
from vorta_trt.runtime.sampling.params import SamplingParams

from ...tiny import SIZE, Tiny

PROMPTS = ["a red wall", "a blue wall"]
PARAMS = SamplingParams(num_inference_steps=2, seed=5)


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def source(tiny_wan: Tiny) -> Source:
    return Source(tiny_wan.checkpoint, tiny_wan.router, VideoSize(*SIZE), "fp32")


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    RouteCalibration(
        family="wan",
        geometry=AttentionGeometry.for_video(*SIZE),
        buckets=((1000.0, 0.0),),
        routes=torch.ones(1, 2, 3, dtype=torch.int8),
        errors=torch.zeros(1, 2, 3, 3),
        budget=0.1,
    ).save(path)
    return path


def test_settings_as_text() -> None:
    assert Setting.parse("routed") == Setting("routed", {}, BUNDLED)
    assert Setting.parse("dense") == Setting("dense", {"tau": DENSE_TAU}, None)
    text = "tau=0.4, override=a b/c.json,dense-first=2,dense-last=1"
    assert Setting.parse(text) == Setting(text, {"tau": 0.4, "dense_first": 2, "dense_last": 1}, Path("a b/c.json"))
    assert Setting.parse("override=none").route_override is None
    assert Setting.parse("dense,compile").compiled and not Setting.parse("dense").compiled
    assert (
        Setting.parse("kernels=sm80").kernels == "sm80" and Setting.parse("executor=reference").executor == "reference"
    )


@pytest.mark.parametrize(
    "text",
    ["", "sparse", "tau", "tau=", "tau=a", "dense-first=1.5", "dense-first=-1", "step=3", "kernels=", "compile=1"],
)
def test_texts_that_are_no_setting(text: str) -> None:
    with pytest.raises(ValueError, match=rf"setting '{text}': '{text}' is none.*tau=0.4"):
        Setting.parse(text)


def compare(source: Source, folder: Path, first: str, second: str, onnx: Path | None = None) -> Any:
    """Of the checkpoint in torch, or of the ONNX file that was made from it."""
    settings = Setting.parse(first), Setting.parse(second)
    options: dict[str, Any] = {"source": (source,)} if onnx is None else {"checkpoint": source.checkpoint}
    options |= {"params": PARAMS, "lpips": False}
    return compare_settings(onnx or source.checkpoint, *settings, PROMPTS, folder, silent, **options)


def test_a_checkpoint_in_torch(source: Source, tmp_path: Path) -> None:
    report = compare(source, tmp_path, "dense", "routed")
    assert (report.first, report.second) == ("dense", "routed")
    assert [pair.name for pair in report.pairs] == ["000", "001"]
    assert 10 < report.psnr < 80 and 0 < report.ssim < 1
    assert report.pairs[0].frames == SIZE[0] and report.pairs[0].psnr != report.pairs[1].psnr
    with VortaPipeline.from_pretrained(source.model(materialize=True), source.checkpoint) as pipe:
        request = SamplingParams(num_inference_steps=2, dense_first=2)
        expected = pipe(PROMPTS[1], request, seed=5).frames
    np.testing.assert_array_equal(np.load(tmp_path / "first/001.npy"), expected)
    equal = compare(source, tmp_path / "equal", "routed", "tau=0.0")
    assert all(pair.mean_squared_error == 0 for pair in equal.pairs)  # tau 0 and 0.3 are the same routes


def test_an_onnx_file_with_calibrated_routes(source: Source, calibrated: Path, tiny_wan: Tiny, tmp_path: Path) -> None:
    """The same as the checkpoint in torch, but for rounding to 8 bits."""
    override = f"override={calibrated}"
    report = compare(source, tmp_path / "onnx", "dense", override, tiny_wan.onnx)
    assert report.second == override and report.psnr < 80
    compare(source, tmp_path / "torch", "dense", override)
    for name in ("first/000.npy", "second/001.npy"):
        one, other = (np.load(tmp_path / where / name).astype(int) for where in ("onnx", "torch"))
        assert np.abs(one - other).max() <= 1
    first, second = (np.load(tmp_path / f"onnx/{name}/000.npy") for name in ("first", "second"))
    assert (first != second).any()


def test_what_does_not_fit_is_refused_before_sampling(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.runtime.comparison import settings as module

    monkeypatch.setattr(module, "VortaPipeline", lambda *arguments, **options: pytest.fail("it was loaded"))
    with pytest.raises(FileNotFoundError, match="absent.json: no such file.*`vorta-trt calibrate`"):
        compare(source, tmp_path, "dense", f"override={tmp_path}/absent.json")
    (tmp_path / "second").mkdir()
    (tmp_path / "second/002.npy").touch()
    with pytest.raises(FileExistsError, match="second: holds 002.npy, which is not of these 2 prompts"):
        compare(source, tmp_path, "dense", "routed")


def test_a_noise_floor(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third set is sampled compiled, which the others are not."""
    compiled = []

    def compile_model(model: RoutedTransformer) -> None:
        compiled.append(sorted(path.parent.name for path in tmp_path.rglob("*.npy")))
        torch.nn.Module.compile(model, backend="eager")

    monkeypatch.setattr(RoutedTransformer, "compile", compile_model)
    settings = [Setting.parse(text) for text in ("dense", "routed", "dense,compile")]
    report = compare_settings(
        source.checkpoint,
        *settings[:2],
        PROMPTS[:1],
        tmp_path,
        silent,
        floor=settings[2],
        source=(source,),
        params=SamplingParams(num_inference_steps=1, guidance_scale=1.0),
        lpips=False,
    )
    assert compiled == [["first", "second"]]
    assert report.floor is not None and (report.floor.first, report.floor.second) == ("dense", "dense,compile")
    assert report.pairs[0].prompt == report.floor.pairs[0].prompt == PROMPTS[0]
    assert report.psnr < report.floor.psnr


@pytest.mark.parametrize(
    ("text", "is_torch", "message"),
    [
        ("dense,compile", False, "compile is for a checkpoint in torch; use executor=NAME"),
        ("dense,executor=reference", True, "an executor runs a bundle or an ONNX file; use compile"),
        ("dense,executor=cuda", False, "executor 'cuda' must be one of tensorrt, onnxruntime, reference"),
    ],
)
def test_parts_without_effect(text: str, is_torch: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting.parse(text).check(is_torch)


def test_kernels_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="kernels belong to a GPU, and there is none"):
        Setting.parse("dense,kernels=sm80").check(True)
