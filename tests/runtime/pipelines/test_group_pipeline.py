# SPDX-License-Identifier: Apache-2.0
"""A pipeline that leads another process makes the videos of one, stops at a step, and says when the other is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import numpy as np
import pytest

from vorta_trt.runtime.parallel.errors import ParallelError, RankError
from vorta_trt.runtime.pipelines.group_pipeline import GroupPipeline
from vorta_trt.runtime.pipelines.making import MakeVideos
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline

from ...tiny import Tiny

ALIKE: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}


class Stopped(Exception):  # noqa: N818
    """What a server raises to cancel."""


def test_one_of_two_processes(tiny_wan: Tiny) -> None:
    requests: list[dict[str, Any]] = [{"negative_prompt": "blue"}, {"guidance_scale": 1.0}]
    options = {"vae_tiling": True}  # each rank decodes all of it: no rounding
    with VortaPipeline.from_pretrained(tiny_wan.onnx, **options) as alone:
        expected = [alone("a red wall", **ALIKE, **request) for request in requests]
    lost: list[RankError] = []

    def stop(step: int, planned: object) -> None:
        if step == 1:
            raise Stopped

    with GroupPipeline(MakeVideos(tiny_wan.onnx, pipeline=options), 2, on_failure=lost.append) as pipe:
        with pytest.raises(ValueError, match="negative_prompt 'blue'"):
            pipe("a red wall", **ALIKE, guidance_scale=1.0, negative_prompt="blue")
        with pytest.raises(Stopped):
            pipe("a red wall", **ALIKE, on_step=stop)
        for callback in ("on_stage", "on_frames"):
            with pytest.raises(Stopped):
                pipe("a red wall", **ALIKE, **{callback: lambda *_: stop(1, None)})
        for request, of_one in zip(requests, expected, strict=True):
            video = pipe("a red wall", **ALIKE, **request)
            assert np.array_equal(video.frames, of_one.frames)
            assert video.launches == 2
        assert "RANK" not in os.environ
        (other,) = multiprocessing.active_children()

        def kill(step: int, planned: object) -> None:
            if step == 1:
                os.kill(other.pid or 0, signal.SIGKILL)

        # Not the end of the exchange, which this process sees a second before.
        with pytest.raises(RankError, match="rank 1 of 2: was ended by SIGKILL"):
            pipe("a red wall", **ALIKE, on_step=kill)
        assert [str(error) for error in lost] == ["rank 1 of 2: was ended by SIGKILL; all ranks were ended"]
        assert pipe.is_over
        with pytest.raises(ParallelError, match="load the model again"):
            pipe("a red wall", **ALIKE)
    assert multiprocessing.active_children() == []
