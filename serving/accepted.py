# SPDX-License-Identifier: Apache-2.0
"""`Accepted`: a checked request that its model can run, in the form in which a job stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.sampling.params import SamplingParams


@dataclass(frozen=True)
class Accepted:
    """A request that its model can run.

    Attributes:
        model: Name of the model.
        prompt: What the video shows.
        params: How to sample.
        size: Frames, height and width of the video, as "81x480x832".
        fps: Frames per second at which the video is written.
        n: Number of videos.
        images: File names of the images in the job's folder, by the pipeline's argument.
    """

    model: str
    prompt: str
    params: SamplingParams
    size: str
    fps: float
    n: int = 1
    images: Mapping[str, str] | None = None

    @property
    def video(self) -> VideoSize:
        """Frames, height and width."""
        return VideoSize.parse(self.size)

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON values, which `from_dict` reads."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "params": self.params.model_dump(mode="json", exclude_unset=True),
            "size": self.size,
            "fps": self.fps,
            "n": self.n,
            "images": dict(self.images or {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Accepted:
        """The request that `to_dict` wrote."""
        params = dict(values["params"])
        if params.get("sigmas") or params.get("timesteps"):
            params.pop("num_inference_steps", None)
        return cls(**{**values, "params": SamplingParams(**params)})
