# SPDX-License-Identifier: Apache-2.0
"""What the families make of `SamplingParams`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vorta_trt.runtime.sampling.params import SamplingParams


@dataclass(frozen=True)
class FamilySampling:
    """What differs between the families.

    Args:
        default_scale: of guidance. embedded: the scale is an input of the model, if the config says so.
        gives_sigmas: the pipeline gives its scheduler the sigmas, and rounds timesteps to the type of the latents.
        encoder_dtype, vae_dtype: of torch, on a GPU; everything is float32 on the CPU.
    """

    default_scale: float
    embedded: bool
    gives_sigmas: bool
    encoder_dtype: str
    vae_dtype: str


FAMILY_SAMPLING = {
    "wan": FamilySampling(5.0, False, False, "bfloat16", "float32"),
    "hunyuan_video": FamilySampling(6.0, True, True, "float16", "float16"),
}


def guidance_arguments(family: str, params: SamplingParams, *, takes_guidance: bool) -> tuple[dict[str, Any], int]:
    """What the family's pipeline is called with, and how many samples a step takes: 2 with classifier-free guidance.

    Args:
        takes_guidance: the config has `guidance_embeds`.

    Raises:
        ValueError: A parameter would have no effect.
    """
    sampling, scale, negative = FAMILY_SAMPLING[family], params.guidance_scale, params.negative_prompt
    if params.guidance_scale_2 is not None:
        raise ValueError(
            f"guidance_scale_2 {params.guidance_scale_2:g}: is for models with two experts, and this one has one; "
            f"leave it out"
        )
    if sampling.embedded:
        if scale is not None and not takes_guidance:
            raise ValueError(
                f"guidance_scale {scale:g}: this model has no guidance embedding, so it would have no effect; leave it "
                f"out, or give true_cfg_scale"
            )
        guided = params.true_cfg_scale > 1
        arguments: dict[str, Any] = {"guidance_scale": sampling.default_scale if scale is None else scale}
        arguments["true_cfg_scale"] = params.true_cfg_scale
        remedy = "give a true_cfg_scale above 1"
    else:
        if params.true_cfg_scale != 1:
            raise ValueError(
                f"true_cfg_scale {params.true_cfg_scale:g}: is for models whose guidance_scale is an input; the "
                f"guidance_scale of this one is the true one, give that"
            )
        distilled = params.gives_steps and params.scheduler is None
        scale = (1.0 if distilled else sampling.default_scale) if scale is None else scale
        guided, arguments = scale > 1, {"guidance_scale": scale}
        remedy = "give a guidance_scale above 1"
    if negative is not None and not guided:
        raise ValueError(f"negative_prompt {negative!r}: has no effect without guidance; {remedy}, or leave it out")
    if guided:
        arguments["negative_prompt"] = negative or ""
    return arguments, 2 if guided else 1
