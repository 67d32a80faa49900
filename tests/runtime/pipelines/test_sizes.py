# SPDX-License-Identifier: Apache-2.0
"""Bundles of several video sizes: requests that switch between them, and sizes that there are not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.engines import SelectionError
from vorta_trt.runtime import SamplingParams, VortaPipeline
from vorta_trt.runtime.pipelines import pipeline as pipeline_module
from vorta_trt.runtime.pipelines.planner import RequestPlanner

from ...tiny import SIZE, SMALL, Tiny

FEW = SamplingParams(num_inference_steps=2)
FIRST, SECOND = "9x64x96", "5x32x64"


def open_pipeline(tiny_wan: Tiny, **options: Any) -> VortaPipeline:
    return VortaPipeline.from_pretrained(tiny_wan.several, tiny_wan.checkpoint, executor="onnxruntime", **options)


@pytest.mark.parametrize("room", [False, True])
def test_sizes_switch_between_requests(tiny_wan: Tiny, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    """Each video is that of an engine of its size alone; text encoder and VAE stay, and engines where there is room."""
    monkeypatch.setattr(pipeline_module, "fits_beside", lambda *asked: room)
    opened: list[str] = []
    real = VortaPipeline._open

    def note(self: VortaPipeline, component: str) -> Any:
        opened.append(str(self._size))
        return real(self, component)

    monkeypatch.setattr(VortaPipeline, "_open", note)
    with open_pipeline(tiny_wan) as pipe:
        assert pipe.planner.sizes == (FIRST, SECOND)
        with pipe.parts.decoding() as (pipeline, _):
            vae = pipeline.vae
        videos = [pipe("a red wall", size=size, seed=3, params=FEW) for size in (SECOND, None, FIRST, SECOND)]
        with pipe.parts.decoding() as (pipeline, _):
            assert pipeline.vae is vae
        with pytest.raises(SelectionError, match=f"size 5x64x96: .* was built for {FIRST}, {SECOND}; use one of these"):
            pipe("a red wall", size="5x64x96")
        with pytest.raises(ValueError, match="must be FRAMESxHEIGHTxWIDTH"):
            pipe("a red wall", size="large")
    assert [video.frames.shape[:3] for video in videos] == [SMALL, SIZE, SIZE, SMALL]
    assert opened == ([FIRST, SECOND] if room else [FIRST, SECOND, FIRST, SECOND])
    assert np.array_equal(videos[1].frames, videos[2].frames) and np.array_equal(videos[0].frames, videos[3].frames)
    alone = tiny_wan.folder / "fp16 small.onnx"
    with VortaPipeline.from_pretrained(alone, tiny_wan.checkpoint) as pipe:
        assert np.array_equal(videos[0].frames, pipe("a red wall", seed=3, params=FEW).frames)


def test_a_sequential_pipeline_of_another_size(tiny_wan: Tiny) -> None:
    with open_pipeline(tiny_wan, size=SECOND, residency="sequential") as pipe:
        videos = [pipe("a red wall", size=size, seed=3, params=FEW) for size in (None, FIRST)]
    assert [video.frames.shape[:3] for video in videos] == [SMALL, SIZE]


def test_planners_of_every_size(tiny_wan: Tiny) -> None:
    planner = RequestPlanner(tiny_wan.several, tiny_wan.checkpoint)
    small = planner.at(SECOND)
    assert (planner.size, small.size) == (SIZE, SMALL)
    assert small.at(FIRST) is planner and planner.at(None) is planner and small.sizes == (FIRST, SECOND)
    assert planner.plan(FEW).steps.timesteps == small.plan(FEW).steps.timesteps
    alone = RequestPlanner(tiny_wan.onnx, tiny_wan.checkpoint)
    assert alone.sizes == (FIRST,) and alone.at(FIRST) is alone
    with pytest.raises(SelectionError, match=f"was exported for {FIRST}; .*export it again with --size {SECOND}$"):
        RequestPlanner(tiny_wan.onnx, tiny_wan.checkpoint, size=SECOND)
    model = RequestPlanner(tiny_wan.model(), tiny_wan.checkpoint, size=FIRST)
    with pytest.raises(SelectionError, match=f"was built for {FIRST}"):
        model.at(SECOND)


@pytest.mark.parametrize(("width", "height", "size"), [(192, 128, FIRST), (192, 96, SECOND), (64, 64, FIRST)])
def test_an_images_aspect_chooses_the_size(tiny_wan: Tiny, width: int, height: int, size: str) -> None:
    planner = RequestPlanner(tiny_wan.several, tiny_wan.checkpoint)
    image = Image.new("RGB", (width, height))
    for start in (planner, planner.at(SECOND)):
        assert start.for_images({"image": image}) is planner.at(size)
        assert start.for_images({}) is start


def test_the_command(tiny_wan: Tiny) -> None:
    arguments = ["generate", str(tiny_wan.several), "--checkpoint", str(tiny_wan.checkpoint), "--dry-run", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--size", SECOND])
    assert done.exit_code == 0 and "plan" in json.loads(done.output)
    refused = CliRunner().invoke(app, [*arguments, "--size", "81x480x832"])
    assert refused.exit_code != 0
