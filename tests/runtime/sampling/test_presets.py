# SPDX-License-Identifier: Apache-2.0
"""The published settings, the models that they are for, and what is refused."""

from __future__ import annotations

import pytest

from vorta_trt.model.families import families
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.sampling.presets import PRESETS, get_preset


@pytest.mark.parametrize("name", PRESETS)
def test_the_settings_are_parameters(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name and (preset.one or preset.two)
    for settings in filter(None, (preset.one, preset.two)):
        params = SamplingParams(**settings)
        assert params.model_fields_set >= settings.keys()
    assert any(name in family.presets for family in families())


def test_published_numbers() -> None:
    benchmark = PRESETS["mlperf"].settings("the model", 0.875)
    assert benchmark.pop("negative_prompt").startswith("vivid colors, overexposed")
    assert benchmark == {"num_inference_steps": 20, "guidance_scale": 4.0, "guidance_scale_2": 3.0, "seed": 42}
    assert PRESETS["mlperf"].size == VideoSize(81, 720, 1280)
    for name, ratio in (("lightx2v-4step", None), ("lightx2v-4step", 0.9), ("lightning", 0.875)):
        settings = PRESETS[name].settings("the model", ratio)
        assert settings["timesteps"] == pytest.approx((1000, 937.5, 2500 / 3, 625), abs=1e-9)
        assert settings.get("renoise", False) == (ratio is None) and settings["guidance_scale"] == 1
    assert PRESETS["fastwan-3step"].settings("the model", None) == {
        "timesteps": (1000, 757, 522),
        "renoise": True,
        "guidance_scale": 1,
    }


def test_another_number_of_experts_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'mlperf': is for models with two experts, and m has one .* use one of light"
    ):
        PRESETS["mlperf"].settings("m", None)
    with pytest.raises(ValueError, match=r"'fastwan-3step': is for models with one, and m has two experts; use one of"):
        PRESETS["fastwan-3step"].settings("m", 0.875)
    with pytest.raises(ValueError, match=r"takes over at boundary_ratio 0.875, and that of m at 0.9"):
        PRESETS["mlperf"].settings("m", 0.9)


def test_size_and_switch() -> None:
    PRESETS["mlperf"].check_size("m", VideoSize(81, 720, 1280))
    PRESETS["lightning"].check_size("m", VideoSize(9, 64, 96))
    with pytest.raises(ValueError, match="is for videos of 81x720x1280, and those of m have 81x480x832; build it with"):
        PRESETS["mlperf"].check_size("m", VideoSize(81, 480, 832))
    PRESETS["lightning"].check_switch("m", 2)
    PRESETS["mlperf"].check_switch("m", 7)
    with pytest.raises(ValueError, match="second expert takes over after step 2, and that of m after step 1"):
        PRESETS["lightning"].check_switch("m", 1)


def test_names() -> None:
    assert get_preset("lightning", ("lightning",)) is PRESETS["lightning"]
    with pytest.raises(
        ValueError, match="preset 'fast': must be one of mlperf, lightx2v-4step, lightning, fastwan-3step"
    ):
        get_preset("fast", ())
    with pytest.raises(ValueError, match="'mlperf': is for models of another family; use lightning"):
        get_preset("mlperf", ("lightning",))
    with pytest.raises(ValueError, match="'mlperf': is for models of another family; leave it out"):
        get_preset("mlperf", ())
