# SPDX-License-Identifier: Apache-2.0
"""From what a diffusers pipeline calls its transformer with to what an engine or a routed model takes.

The model's types inside, whatever the pipeline's are, as a diffusers model would do; and the rules of length and size,
each with an error that says what to do.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.families import get_family
from vorta_trt.model.inputs import check_per_sample, check_valid_first
from vorta_trt.runtime.pipelines.denoiser import Denoiser
from vorta_trt.runtime.pipelines.snapshot import Snapshot

STEP_INPUTS = ("hidden_states", "timestep")  # they change with every step; the others are conditions


class ModelInputs:
    """Converts the tensors of every call; conditions only when they are new."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._converted: dict[str, tuple[Snapshot, dict[str, Tensor]]] = {}

    def __call__(self, given: Mapping[str, Tensor | None], context: str) -> dict[str, Tensor]:
        """The model's inputs by name.

        Args:
            given: the pipeline's tensors by name. context: "cond" or "uncond"; conditions are remembered for each.
        Raises: ValueError, for a size, length or shape that the model does not take.
        """
        latents, timestep = given["hidden_states"], given["timestep"]
        assert latents is not None and timestep is not None
        self._check_latents(latents)
        timestep = timestep.expand(latents.shape[0]) if timestep.ndim == 0 else timestep
        check_per_sample(timestep=timestep)
        conditions = {name: tensor for name, tensor in given.items() if name not in STEP_INPUTS}
        known = self._converted.get(context)
        if known is None or not known[0].same(conditions):
            known = Snapshot(conditions), self._convert(conditions)
            self._converted[context] = known
        return {
            "hidden_states": latents.to(self._denoiser.dtype),  # [B, C, F, H, W]
            "timestep": timestep.to(torch.float32),  # [B]
            **known[1],
        }

    def forget(self) -> None:
        """Lets go of remembered conditions."""
        self._converted.clear()

    def _check_latents(self, latents: Tensor) -> None:
        expected, shape = self._denoiser.latent_shape, tuple(latents.shape)
        if len(shape) != 5:
            raise ValueError(f"hidden_states of shape {shape}: must be latents [B, C, F, H, W]")
        if expected is None or shape[1:] == expected:
            return
        if shape[1] != expected[0]:
            raise ValueError(
                f"hidden_states of shape {shape}: must have {expected[0]} channels; give the pipeline this model's VAE"
            )
        family = get_family(self._denoiser.family)
        asked, built = ("x".join(map(str, family.video_size(*sizes))) for sizes in (shape[2:], expected[1:]))
        frames, height, width = family.video_size(*expected[1:])
        raise ValueError(
            f"hidden_states of shape {shape}: latents of a video of {asked}, but this model was made for {built} "
            f"(frames x height x width); call the pipeline with num_frames={frames}, height={height}, width={width}, "
            f"or make another: vorta-trt build CHECKPOINT --size {asked}"
        )

    def _convert(self, conditions: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        tokens, dtype = self._denoiser.text_tokens, self._denoiser.dtype
        taken = {name: tensor for name, tensor in conditions.items() if name in self._denoiser.input_names}
        if missing := [name for name in self._denoiser.input_names if name in conditions and taken[name] is None]:
            raise ValueError(f"{missing[0]} None: the model needs it; call it as diffusers' pipeline does")
        inputs = {name: tensor for name, tensor in taken.items() if tensor is not None}
        text = inputs["encoder_hidden_states"]
        if text.ndim != 3:
            raise ValueError(f"encoder_hidden_states of shape {tuple(text.shape)}: must be [B, T, channels]")
        rows = text.shape[1]
        padding = 0 if tokens is None else tokens - rows
        padded = get_family(self._denoiser.family).joint_attention  # a mask tells padding from text
        if padding < 0 or (padding and not padded):
            raise ValueError(
                f"encoder_hidden_states with {rows} rows: this model takes {'at most ' if padded else ''}{tokens}; "
                f"call the pipeline with max_sequence_length={tokens}"
            )
        inputs["encoder_hidden_states"] = functional.pad(text.to(dtype), (0, 0, 0, padding))  # [B, T, channels]
        if "encoder_attention_mask" in inputs:
            mask = inputs["encoder_attention_mask"] != 0  # [B, *]
            if mask.shape != text.shape[:2]:
                raise ValueError(
                    f"encoder_attention_mask of shape {tuple(mask.shape)}: must be {tuple(text.shape[:2])}, one entry "
                    f"per row of encoder_hidden_states"
                )
            check_valid_first("encoder_attention_mask", mask)
            inputs["encoder_attention_mask"] = functional.pad(mask, (0, padding)).to(torch.int32)  # [B, T]
        if "pooled_projections" in inputs:
            inputs["pooled_projections"] = inputs["pooled_projections"].to(dtype)  # [B, channels]
        if "guidance" in inputs:
            inputs["guidance"] = inputs["guidance"].to(torch.float32)  # [B]
        return inputs
