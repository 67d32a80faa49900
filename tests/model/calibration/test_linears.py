# SPDX-License-Identifier: Apache-2.0
"""What a calibration finds of linear layers: errors in fp8, sensitive layers, static scales; and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.calibration.linears import ERROR_LIMIT, LinearCalibration, LinearMeasure, LinearProbe
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.records import JsonFileError

SIZES = {"layers": 2, "heads": 2, "head_dim": 16, "text_dim": 32, "channels": 4, "ffn_dim": 64, "freq_dim": 32}
HARMED = "blocks.1.attn1.to_v"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RoutedTransformer:
    folder = make_checkpoint(tmp_path_factory.mktemp("linears") / "model", "wan", **SIZES)
    model = RoutedTransformer.from_pretrained(folder, geometry=AttentionGeometry.for_video(9, 64, 96, "wan"))
    with torch.no_grad():
        # Rows of small numbers that one large number leaves few steps, where the inputs have no such channel.
        layer = model.get_submodule(HARMED)
        layer.weight[:, 0] = layer.weight.abs().amax() * 3e4  # type: ignore[index, union-attr, operator]
    return model


def test_errors_and_largest_inputs(model: RoutedTransformer, tmp_path: Path) -> None:
    probe, seen = LinearProbe(), []
    layer = model.get_submodule("blocks.0.ffn.net.2")
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].abs().max()))
    with torch.inference_mode(), probe.watching(model):
        for seed in (1, 2):
            inputs = model.inputs(seed=seed)
            model(**inputs)
    handle.remove()
    with torch.inference_mode():
        model(**model.inputs(seed=3))  # is not watched any more
    found = probe.result(model, None)
    assert found.family == "wan" and {HARMED, "proj_out", "blocks.0.ffn.net.2"} < set(found.layers)
    usual = found.layers["blocks.0.ffn.net.2"]
    assert 0.01 < usual.relative_l2 < 0.06 and abs(usual.norm_ratio - 1) < 0.02
    assert usual.input_largest == pytest.approx(float(max(seen)))
    assert found.input_scales()["blocks.0.ffn.net.2"] == pytest.approx(float(max(seen)) / 448)
    found.save(tmp_path / "linears.json")
    assert LinearCalibration.load(tmp_path / "linears.json") == found


def test_sensitive_layers_are_those_above_the_limit() -> None:
    measures = {
        name: LinearMeasure(relative_l2=error, norm_ratio=1.0, input_largest=0.0)
        for name, error in (("one", ERROR_LIMIT / 2), ("two", ERROR_LIMIT * 2))
    }
    calibration = LinearCalibration(family="wan", checkpoint="Wan", layers=measures)
    assert calibration.sensitive() == ("two",) and calibration.input_scales() == {}
    assert calibration.sensitive(ERROR_LIMIT / 4) == ("one", "two") and calibration.sensitive(ERROR_LIMIT * 4) == ()
    with pytest.raises(ValueError, match="linear_error_limit 0: must be above 0"):
        calibration.sensitive(0)


def test_files_of_other_models_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    calibration = LinearCalibration(family="wan", checkpoint="Wan", component="transformer_2", layers={})
    with pytest.raises(ValueError, match="is for family 'wan', expert transformer_2, and the model is of 'wan'"):
        calibration.check("wan", "transformer")
    (tmp_path / "linears.json").write_text('{"format": 1}')
    with pytest.raises(JsonFileError, match="family: is missing"):
        LinearCalibration.load(tmp_path / "linears.json")
