# SPDX-License-Identifier: Apache-2.0
"""The measurement through the kernels, against the one through the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.calibration import CalibrationSettings, calibrate_routes
from vorta_trt.model.calibration.measure import measure_branches, measure_routes, routed
from vorta_trt.model.families import family_names
from vorta_trt.model.route_calibration import RouteCalibration

pytestmark = pytest.mark.gpu


@pytest.fixture(params=family_names())
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from vorta_trt.model.random_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path / "model", request.param, layers=2, heads=4, head_dim=64)


def test_errors_are_those_of_the_reference(checkpoint: Path, seed: int) -> None:
    family = RoutedTransformer.from_pretrained(checkpoint, materialize=False).family
    geometry = AttentionGeometry.for_video(29, 192, 256, family)
    on_cpu = RoutedTransformer.from_pretrained(checkpoint, geometry=geometry, dtype=torch.bfloat16)
    on_gpu = RoutedTransformer.from_pretrained(checkpoint, geometry=geometry, dtype=torch.bfloat16).cuda()
    inputs = on_cpu.inputs(1, seed)
    del inputs["tau"], inputs["route_override"]
    there = {name: tensor.cuda() for name, tensor in inputs.items()}
    generator = torch.Generator().manual_seed(seed)
    routes = torch.randint(0, 3, (on_cpu.num_layers, 4), generator=generator, dtype=torch.int32)

    sample, squares = measure_branches(on_gpu, there)
    expected_sample, expected = measure_branches(on_cpu, inputs)
    torch.testing.assert_close(squares.sqrt(), expected.sqrt(), rtol=0.1, atol=1e-2)
    assert float((sample.cpu() - expected_sample).norm() / expected_sample.norm()) < 5e-2
    _, layers = measure_routes(on_gpu, there, routes)
    torch.testing.assert_close(layers.sqrt(), measure_routes(on_cpu, inputs, routes)[1].sqrt(), rtol=0.1, atol=1e-2)
    taken = routed(on_cpu, inputs, routes)
    assert float((routed(on_gpu, there, routes).cpu() - taken).norm() / taken.norm()) < 5e-2


def test_a_whole_calibration(tmp_path: Path) -> None:
    from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint

    from ..training.samples import CHANNELS, SIZE, TEXT_DIM, write_data
    from .schedulers import scheduler_of

    checkpoint = make_wan_checkpoint(
        tmp_path / "wan", layers=2, heads=4, head_dim=64, ffn_dim=64, text_dim=TEXT_DIM, channels=CHANNELS
    )
    data = write_data(tmp_path / "data", ["cat", "dog"])
    settings = CalibrationSettings(buckets=2, target_share=0.5)
    report = calibrate_routes(checkpoint, tmp_path / "c.json", scheduler_of(checkpoint), settings, data=data, steps=8)
    assert report.peak_memory_gib is not None and report.peak_memory_gib > 0
    assert RouteCalibration.load(tmp_path / "c.json").settings["video_size"] == list(SIZE)
    with pytest.raises(ValueError, match="dtype 'fp32' on a GPU: the kernels take bf16 and fp16"):
        calibrate_routes(
            checkpoint, tmp_path / "c.json", scheduler_of(checkpoint), CalibrationSettings(dtype="fp32"), data=data
        )
