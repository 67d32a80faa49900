# SPDX-License-Identifier: Apache-2.0
"""Latents and videos that are not finite are an error of the request, with its own class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vorta_trt.runtime.pipelines import decoding
from vorta_trt.runtime.sampling.finite import NonFiniteVideoError


@pytest.mark.parametrize(
    ("latent", "decoded", "told"),
    [(float("inf"), 0.0, "guidance or schedule overflow"), (0.0, float("nan"), "the VAE overflows")],
)
def test_values_that_are_not_finite(latent: float, decoded: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.full((1, 3, 5, 16, 16), decoded)
    monkeypatch.setattr(decoding, "get_family", lambda name: SimpleNamespace(decode=lambda *_: video))
    vae = SimpleNamespace(dtype=torch.float32)
    processor = SimpleNamespace(postprocess_video=lambda each, output_type: each.movedim(2, 1))

    class Parts:
        planner = SimpleNamespace(family="", size=(5, 16, 16), config=None)
        on_stage = staticmethod(lambda *_: None)
        ranks = None
        decodes_chunks = False

        def decodes_whole(self, vae: Any) -> bool:
            return False

        @contextmanager
        def decoding(self) -> Iterator[Any]:
            yield SimpleNamespace(vae=vae, video_processor=processor), torch.device("cpu")

    parts: Any = Parts()
    with pytest.raises(NonFiniteVideoError, match=told):
        list(decoding.decode([torch.full((1, 4, 2, 2, 2), latent)], parts))
