# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo through verification, the ONNX Runtime engine and the build, on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vorta_trt.engines import Bundle
from vorta_trt.export import read_metadata
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime import Engine
from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint
from vorta_trt.runtime.target import read_target
from vorta_trt.runtime.verification.cases import make_cases
from vorta_trt.runtime.verification.verify import verify

LAYERS, HEADS, TEXT = 3, 3, 256


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def fp32(hunyuan_video: Any) -> Path:
    path: Path = hunyuan_video.export("fp32")
    return path


# -- verification ------------------------------------------------------------------------------------------------------


def test_an_fp32_file_passes_every_case(hunyuan_video: Any, fp32: Path) -> None:
    report = verify(fp32, hunyuan_video.checkpoint, hunyuan_video.router, batch=2)
    assert report.passed, report
    assert len(report.cases) == 7


def test_a_bf16_file_passes_beside_torch_bf16(hunyuan_video: Any) -> None:
    path = hunyuan_video.export("bf16")
    report = verify(path, hunyuan_video.checkpoint, hunyuan_video.router, cases=["mixed override"])
    assert report.passed and report.executor == "reference", report


@pytest.mark.parametrize(
    ("initializer", "module"),
    [
        ("transformer_blocks.1.ff_context.net.0.proj.weight", "transformer_blocks.1.ff_context"),
        ("transformer_blocks.0.attn.add_k_proj.weight", "transformer_blocks.0.attn.add_k_proj"),
        (
            "context_embedder.token_refiner.refiner_blocks.0.attn.to_v.weight",
            "context_embedder.token_refiner.refiner_blocks.0",
        ),
        ("single_transformer_blocks.0.proj_mlp.weight", "single_transformer_blocks.0.proj_out"),
    ],
)
def test_a_changed_weight_is_found(
    hunyuan_video: Any, fp32: Path, tmp_path: Path, initializer: str, module: str
) -> None:
    model = onnx.load(fp32)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name.removesuffix(".transposed") == initializer)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 7] += 2.0  # of an input channel, for every output: one alone is lost in a sample of few text tokens
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    report = verify(tmp_path / "changed.onnx", hunyuan_video.checkpoint, hunyuan_video.router, cases=["all full"])
    assert not report.passed
    assert report.layers is not None and report.layers.first_departure == module


def test_every_compared_module_is_in_the_graph(hunyuan_video: Any, fp32: Path) -> None:
    report = verify(fp32, hunyuan_video.checkpoint, hunyuan_video.router, cases=["mixed override"], layers=True)
    assert report.layers is not None and report.layers.note == "no module departs"
    assert [error.name for error in report.layers.modules] == read_metadata(fp32).compared_modules()


def test_inputs_of_the_cases(fp32: Path, seed: int) -> None:
    lengths = set()
    target = read_target(fp32)
    for case in make_cases(
        target.inputs, target.metadata.model_inputs(), default_tau=0.3, has_router=True, batch=5, seed=seed
    ):
        mask, guidance = case.feeds["encoder_attention_mask"], case.feeds["guidance"]
        assert mask.shape == (5, TEXT) and mask.dtype == np.int32 and set(np.unique(mask)) <= {0, 1}
        assert (np.diff(mask, axis=1) <= 0).all() and (mask[:, 0] == 1).all()  # valid tokens come first
        lengths.update(mask.sum(axis=1).tolist())
        assert guidance.shape == (5,) and (guidance >= 1000).all() and (guidance <= 10000).all()
    assert len(lengths) > 5


# -- engines -----------------------------------------------------------------------------------------------------------


def test_an_engine_takes_the_tokenizers_mask(hunyuan_video: Any, fp32: Path, seed: int) -> None:
    model = RoutedTransformer.from_pretrained(hunyuan_video.checkpoint, hunyuan_video.router)
    inputs = model.inputs(2, seed)
    with torch.no_grad():
        expected, expected_routes = model(**inputs)
    del inputs["tau"], inputs["route_override"]
    with Engine(fp32) as engine:
        for dtype in (torch.int32, torch.int64, torch.bool):
            inputs["encoder_attention_mask"] = inputs["encoder_attention_mask"].to(dtype)
            outputs = engine(**inputs)
            assert torch.equal(outputs["routes"], expected_routes)
            torch.testing.assert_close(outputs["sample"], expected, rtol=0, atol=1e-4)
        with pytest.raises(ValueError, match=r"encoder_hidden_states of shape \(2, 77, 32\): axis 1 must be 256"):
            engine(**inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :77]})
        with pytest.raises(TypeError, match="input 'guidance' is missing"):
            engine(**{name: value for name, value in inputs.items() if name != "guidance"})


def test_a_bundle_in_one_go(hunyuan_video: Any, tmp_path: Path) -> None:
    source = Source(hunyuan_video.checkpoint, hunyuan_video.router)
    bundle = build_checkpoint(source, tmp_path / "hunyuan video.bundle", silent)
    manifest = Bundle.open(bundle.path).manifest
    assert (manifest.family, manifest.precision) == ("hunyuan_video", "bf16")
    assert manifest.plugin is not None and manifest.plugin.layers == LAYERS
    assert manifest.geometry is not None
    assert (manifest.geometry["coreset_keys"], manifest.geometry["text_tokens"]) == ("key", TEXT)
    assert [spec.name for spec in manifest.inputs] == [
        *("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"),
        *("guidance", "tau", "route_override"),
    ]
    assert "timestep_path.safetensors" in manifest.files


def test_another_size_than_the_routers(hunyuan_video: Any) -> None:
    model = Source(hunyuan_video.checkpoint, hunyuan_video.router, VideoSize(29, 96, 128)).model()
    assert model.geometry == AttentionGeometry.for_video(29, 96, 128, "hunyuan_video")
