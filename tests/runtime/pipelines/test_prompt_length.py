# SPDX-License-Identifier: Apache-2.0
"""Prompts of more tokens than a model takes: told once a request, before anything is encoded, or refused if strict."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from vorta_trt.runtime import SamplingParams, VortaPipeline
from vorta_trt.runtime.fallbacks import FallbackError
from vorta_trt.runtime.pipelines import pipeline as pipelines
from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo

from ...kept import Kept
from ...tiny import Tiny, make_tiny

FEW = SamplingParams(num_inference_steps=1, guidance_scale=3.0)


def words(count: int) -> str:
    return " ".join(["red"] * count)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "prompt length" in record.getMessage()]


@contextmanager
def encoding_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(pipelines, "encode", lambda *arguments: pytest.fail("a prompt was encoded"))
        yield


@pytest.mark.parametrize("residency", ["resident", "sequential"])
def test_it_is_told_once_a_request(tiny_wan: Tiny, residency: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is cut makes no difference to the video, which is that of the text that is left."""
    prompts = [words(511), words(512), "a red wall", words(900)]  # the mark of their end is a token, too
    videos: list[GeneratedVideo] = []
    with caplog.at_level(logging.WARNING), VortaPipeline.from_pretrained(tiny_wan.onnx, residency=residency) as pipe:
        pipe.generate_each(prompts, lambda number, video: videos.append(video), FEW, seed=1)
        said = "prompt length: prompt 2 of 4 has 513 tokens, and the model takes 512 (the first of 2 such texts)"
        assert told(caplog) == [f"{said}; the end of the text is cut off"]
        assert pipe.fallbacks.counts["prompt length"] == 1
        alone = pipe(words(700), FEW, seed=1)
        assert len(told(caplog)) == 2 and "the prompt has 701 tokens" in told(caplog)[1]
        assert pipe("a red wall", FEW, seed=1).fallbacks == ()
    assert [len(video.fallbacks) for video in videos] == [0, 1, 0, 1]
    assert videos[3].to_dict()["fallbacks"] == ["prompt length: prompt 4 of 4 has 901 tokens, and the model takes 512"]
    assert np.array_equal(alone.frames, videos[0].frames)


def test_a_negative_prompt_counts(tiny_wan: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with VortaPipeline.from_pretrained(tiny_wan.onnx) as pipe:
        video = pipe("a red wall", FEW, seed=1, negative_prompt=words(600))
    assert video.fallbacks == ("prompt length: the negative prompt has 601 tokens, and the model takes 512",)
    assert len(told(caplog)) == 1


def test_strict_refuses_it_before_anything_is_encoded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = 512 if tiny.family == "wan" else 256
    with VortaPipeline.from_pretrained(tiny.onnx, strict=True) as pipe, encoding_nothing(monkeypatch):
        with pytest.raises(FallbackError, match=rf"the prompt has \d+ tokens, and the model takes {takes}; strict"):
            pipe(words(600), FEW)
        with pytest.raises(FallbackError, match=r"prompt 2 of 2 has \d+ tokens"):
            pipe.generate_each(["a red wall", words(600)], print, FEW)


def test_quoted_text_is_refused_by_itself(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """HunyuanVideo 1.5 takes 256 tokens of what a prompt quotes, and 1000 of all of it."""
    sign = f'a sign: "{"w" * 300}"'
    model = make_tiny(kept, "hunyuan_video_15")
    with VortaPipeline.from_pretrained(model.onnx, strict=True) as pipe, encoding_nothing(monkeypatch):
        with pytest.raises(FallbackError, match=r"the prompt has 3\d\d tokens of quoted text, and the model takes 256"):
            pipe(sign, FEW)
        both = r"the prompt has \d+ tokens, and the model takes 1000; the prompt has 3\d\d tokens of quoted text"
        with pytest.raises(FallbackError, match=both):
            pipe(f"{words(1000)} {sign}", FEW)
