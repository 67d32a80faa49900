# SPDX-License-Identifier: Apache-2.0
"""Presets: settings under which a published model is sampled, by name. `vorta-trt generate --preset NAME`.

A preset is a set of defaults for `SamplingParams`; parameters that are given explicitly win. It does not choose
weights: the weights of a distilled model are a separate checkpoint, or LoRA files that are fused at export.

This module imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vorta_trt.model.experts import BOUNDARY
from vorta_trt.model.video_size import VideoSize


@dataclass(frozen=True)
class Preset:
    """Settings under which a published model is sampled.

    Attributes:
        name: Name by which the preset is chosen.
        about: Short description, for help texts.
        one: Fields of `SamplingParams` for a model with one transformer; None if the preset is not for such models.
        two: Fields of `SamplingParams` for a model with two experts; None if the preset is not for such models.
        size: The required size of the videos; None allows any.
        boundary_ratio: The required `boundary_ratio` of a pipeline with two experts; None allows any.
        boundary_step: How many steps the first of two experts must take; None allows any number.
    """

    name: str
    about: str
    one: Mapping[str, Any] | None = None
    two: Mapping[str, Any] | None = None
    size: VideoSize | None = None
    boundary_ratio: float | None = None
    boundary_step: int | None = None

    def settings(self, model: str, boundary_ratio: float | None) -> dict[str, Any]:
        """The fields of `SamplingParams` for a model.

        Args:
            model: Name of the model, for error messages.
            boundary_ratio: The model's `boundary_ratio` if it has two experts; None if it has one transformer.

        Raises:
            ValueError: The preset is not for such models.
        """
        found = self.one if boundary_ratio is None else self.two
        if found is None:
            ours, theirs = ("one transformer", "two experts") if boundary_ratio is None else ("two experts", "one")
            raise ValueError(
                f"preset {self.name!r}: is for models with {theirs}, and {model} has {ours}; use one of "
                f"{', '.join(other.name for other in PRESETS.values() if other.fits(boundary_ratio))}"
            )
        if boundary_ratio is not None and self.boundary_ratio not in (None, boundary_ratio):
            raise ValueError(
                f"preset {self.name!r}: its second expert takes over at {BOUNDARY} {self.boundary_ratio:g}, and that "
                f"of {model} at {boundary_ratio:g}; use the published pipeline, or leave the preset out"
            )
        return dict(found)

    def fits(self, boundary_ratio: float | None) -> bool:
        """Whether the preset is for models with that many experts."""
        return (self.one if boundary_ratio is None else self.two) is not None

    def check_size(self, model: str, size: VideoSize) -> None:
        """Raises ValueError unless the videos have the preset's size."""
        if self.size not in (None, size):
            raise ValueError(
                f"preset {self.name!r}: is for videos of {self.size}, and those of {model} have {size}; build it with "
                f"--size {self.size}, or leave the preset out"
            )

    def check_switch(self, model: str, steps: int) -> None:
        """Raises ValueError unless the first of two experts takes as many steps as it was distilled for."""
        if self.boundary_step not in (None, steps):
            raise ValueError(
                f"preset {self.name!r}: its second expert takes over after step {self.boundary_step}, and that of "
                f"{model} after step {steps}; use the published {BOUNDARY}, or leave the preset out"
            )


# Four steps with evenly spaced s = 1, 0.75, 0.5, 0.25 and flow shift 5: timesteps 1000 * 5 s / (1 + 4 s).
_FOUR_STEPS = tuple(1000 * 5 * s / (1 + 4 * s) for s in (1.0, 0.75, 0.5, 0.25))
_FOUR_OF_TWO_EXPERTS = {"timesteps": _FOUR_STEPS, "guidance_scale": 1.0, "guidance_scale_2": 1.0}
_MLPERF_NEGATIVE = (
    "vivid colors, overexposed, static, blurry details, subtitles, style,\n"
    "work of art, painting, picture, still, overall grayish, worst quality,\n"
    "low quality, JPEG artifacts, ugly, deformed, extra fingers, poorly drawn hands,\n"
    "poorly drawn face, deformed, disfigured, deformed limbs, fused fingers,\n"
    "static image, cluttered background, three legs, many people in the background,\n"
    "walking backwards"
)

PRESETS = {
    preset.name: preset
    for preset in (
        # From inference_config.yaml of the text-to-video benchmark in mlcommons/inference. That benchmark starts from a
        # latent in a file, this preset from the noise of its seed.
        Preset(
            "mlperf",
            "text to video of MLPerf Inference v6.0: 20 steps, guidance 4 and 3, seed 42, 81x720x1280",
            two={
                "num_inference_steps": 20,
                "guidance_scale": 4.0,
                "guidance_scale_2": 3.0,
                "negative_prompt": _MLPERF_NEGATIVE,
                "seed": 42,
            },
            size=VideoSize(81, 720, 1280),
            boundary_ratio=0.875,
        ),
        # The step-distilled models of ModelTC/LightX2V. With a single transformer its scheduler adds fresh noise after
        # every step; with two experts it takes plain Euler steps.
        Preset(
            "lightx2v-4step",
            "models that lightx2v distilled to 4 steps: shift 5, without guidance",
            one={"timesteps": _FOUR_STEPS, "renoise": True, "guidance_scale": 1.0},
            two=_FOUR_OF_TWO_EXPERTS,
            boundary_step=2,
        ),
        # ModelTC's Lightning: Euler, shift 5, guidance (1, 1).
        Preset(
            "lightning",
            "two experts with the Lightning LoRAs: 4 steps, 2 of each expert, shift 5, without guidance",
            two=_FOUR_OF_TWO_EXPERTS,
            boundary_step=2,
        ),
        # hao-ai-lab/FastVideo: distribution matching distillation, fresh noise after every step.
        Preset(
            "fastwan-3step",
            "models that were distilled as fastwan: 3 steps with fresh noise, without guidance",
            one={"timesteps": (1000.0, 757.0, 522.0), "renoise": True, "guidance_scale": 1.0},
        ),
    )
}


def combined(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset, overridden by the given ones; given steps replace the preset's steps."""
    steps = ("timesteps", "sigmas")
    kept = {name: value for name, value in preset.items() if name not in steps or not any(map(given.get, steps))}
    return {**kept, **given}


def get_preset(name: str, known: tuple[str, ...]) -> Preset:
    """Finds a preset by its name.

    Args:
        name: Name of the preset.
        known: Names of the presets for the model's family, see `ModelFamily.presets`.

    Raises:
        ValueError: There is no preset of that name, or it is not for the family.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    if name not in known:
        suitable = f"use {' or '.join(known)}" if known else "leave it out"
        raise ValueError(f"preset {name!r}: is for models of another family; {suitable}")
    return PRESETS[name]
