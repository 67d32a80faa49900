# SPDX-License-Identifier: Apache-2.0
"""Every field of a request is a setting of SamplingParams or of OpenAI's API, and what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.sampling.tea_cache import TeaCache
from vorta_trt.serving import Catalogue
from vorta_trt.serving.accepted import Accepted
from vorta_trt.serving.video_request import RequestError, VideoRequest, as_fields, parse_request

# SERVING.md's list.
FIELDS = (
    "prompt negative_prompt model seconds size width height num_frames fps seed num_inference_steps guidance_scale "
    "guidance_scale_2 true_cfg_scale flow_shift n input_reference reference_url tau cache dense_first dense_last "
    "dense_layers lora"
).split()


def refusal(values: dict[str, Any], catalogue: Catalogue | None = None, form: bool = False) -> RequestError:
    with pytest.raises(RequestError) as raised:
        request = parse_request(values, form=form)
        assert catalogue is not None
        catalogue.accept(request)
    return raised.value


def test_all_fields_of_the_convention_and_of_sampling_are_there() -> None:
    assert set(FIELDS) | set(SamplingParams.model_fields) <= set(VideoRequest.model_fields)


def test_sampling_settings_are_those_of_python() -> None:
    given = {"num_inference_steps": 7, "cache": "tea", "dense_layers": [1], "seed": 5, "tau": 0.4, "guidance_scale": 3}
    assert parse_request({"prompt": "a", "n": 2, **given}).params() == SamplingParams(**given)


def test_a_form_says_the_same_as_json() -> None:
    form = {
        "prompt": "a",
        "num_inference_steps": "7",
        "dense_layers": "[1, 0]",
        "cache": '{"method": "tea"}',
        "seed": "5",
    }
    params = parse_request(form, form=True).params()
    assert params == SamplingParams(num_inference_steps=7, dense_layers=(1, 0), cache=TeaCache(), seed=5)
    assert parse_request({"prompt": "[a cat", "lora": "a"}, form=True).lora == ("a",)


def test_settings_of_a_model_are_defaults() -> None:
    defaults = {"num_inference_steps": 4, "guidance_scale": 1.0}
    assert parse_request({"prompt": "a"}).params(defaults) == SamplingParams(**defaults)
    assert parse_request({"prompt": "a", "num_inference_steps": 9}).params(defaults).num_inference_steps == 9


@pytest.mark.parametrize(
    ("values", "field", "code", "told"),
    [
        ({"prompt": "a", "bogus": 1}, "bogus", "unknown_field", "bogus: is no field"),
        ({}, "prompt", "missing_field", "prompt: is missing"),
        ({"prompt": ""}, "prompt", "invalid_value", "at least 1"),
        ({"prompt": " \n"}, "prompt", "invalid_value", "no blank"),
        (
            {"prompt": "a", "num_inference_steps": 3, "sigmas": [1, 0.5]},
            "num_inference_steps",
            "invalid_value",
            "sigmas",
        ),
        ({"prompt": "a" * 20_001}, "prompt", "invalid_value", "at most 20000"),
        ({"prompt": "\ud800"}, "prompt", "invalid_value", "unable to parse raw data"),
        ({"prompt": "a", "size": "9x64x96"}, "size", "invalid_value", "pattern"),
        (
            {"prompt": "a", "num_inference_steps": 0},
            "num_inference_steps",
            "invalid_value",
            "greater than or equal to 1",
        ),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale", "invalid_value", "finite"),
        ({"prompt": "a", "seed": 2**64}, "seed", "invalid_value", "less than or equal"),
        ({"prompt": "a", "n": 65}, "n", "invalid_value", "less than or equal to 64"),
        ({"prompt": "a", "fps": 0}, "fps", "invalid_value", "greater than or equal to 0.1"),
        ({"prompt": "a", "guidance_scale": 1e308}, "guidance_scale", "invalid_value", "less than or equal to 1000"),
        ({"prompt": "a", "scheduler": "none"}, "scheduler", "invalid_value", "must be one of"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], field: str | None, code: str, told: str) -> None:
    error = refusal(values)
    assert (error.field, error.code) == (field, code) and told in str(error)


@pytest.mark.parametrize(
    ("values", "field", "told"),
    [
        ({"model": "other"}, "model", "ask for one of text, image"),
        ({"size": "1280x720"}, "size", "makes videos of 96x64 of 9 frames"),
        ({"width": 95}, "size", "96x64 of 9 frames"),
        ({"num_frames": 81}, "num_frames", "96x64 of 9 frames"),
        ({"seconds": 8}, "seconds", "96x64 of 9 frames, at 16 frames per second"),
        ({"size": "96x64", "height": 32}, "size", "give one"),
        ({"lora": ["fast.safetensors"]}, "lora", "was built with LoRA none"),
        ({"dense_layers": [7]}, "dense_layers", "dense_layers"),
        ({"model": "image"}, "input_reference", "is missing; this model begins a video with one"),
    ],
)
def test_what_a_model_has_not_is_refused_with_what_it_has(
    catalogue: Catalogue, values: dict[str, Any], field: str, told: str
) -> None:
    error = refusal({"prompt": "a", **values}, catalogue)
    assert error.field == field and told in str(error)


def test_flags_of_the_command_line_are_told_as_fields() -> None:
    told = as_fields("cache tea: give the distance as it is (--cache-coefficients none), --flow-shift, --checkpoint")
    assert parse_request({"prompt": "a", "cache": {"method": "tea", "coefficients": [1, 0], "threshold": 0.1}}).cache
    assert told.startswith("cache tea: give the distance as it is (cache.coefficients [1, 0] with cache.threshold), ")
    assert told.endswith("flow_shift, --checkpoint")


def test_what_is_accepted_comes_back_from_json(catalogue: Catalogue) -> None:
    given = {"prompt": "a", "cache": "broadcast", "num_inference_steps": 5, "seed": 1, "size": "96x64", "seconds": 0.5}
    accepted = catalogue.accept(parse_request(given))
    assert (accepted.model, accepted.size, accepted.fps) == ("text", "9x64x96", 16.0)
    again = Accepted.from_dict(accepted.to_dict())
    assert again.params == accepted.params and again.to_dict() == accepted.to_dict()
    steps = catalogue.accept(parse_request({"prompt": "a", "timesteps": [900, 500]}))
    assert Accepted.from_dict(steps.to_dict()).params == steps.params


def test_letters_that_are_not_printable_stay_out_of_messages() -> None:
    message = str(refusal({"prompt": "a", "x\nlevel: fake\x1b[31m": 1}))
    assert message.isprintable() and r"x\nlevel" in message
