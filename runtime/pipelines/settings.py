# SPDX-License-Identifier: Apache-2.0
"""`SamplingSettings`: how a request is sampled, whatever its prompt; and what the families make of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vorta_trt.runtime.pipelines.guidance import GuidanceMode
from vorta_trt.runtime.sampling.cost import StepProfile
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_cache import StepCache

DEFAULT_STEPS = 50


@dataclass(frozen=True)
class SamplingSettings:
    """Everything has the defaults of diffusers' pipelines, or is off.

    Args:
        steps: of the schedule. scheduler, shift: as for `schedule_timesteps`.
        sigmas: steps at exactly these, instead of the three above; for distilled models, so guidance is off unless a
            scale is given. renoise: see `fixed_schedule`.
        guidance_scale: of Wan's classifier-free guidance, 1 is off; or the one that HunyuanVideo takes as an input.
        true_guidance_scale: of classifier-free guidance of HunyuanVideo, 1 is off.
        guidance: whether both samples of classifier-free guidance share a launch.
        cache, guards, tau: see `plan_steps`. profile: measured times, for the predicted cost.
    """

    steps: int = DEFAULT_STEPS
    scheduler: str | None = None
    shift: float | None = None
    sigmas: tuple[float, ...] | None = None
    renoise: bool = False
    guidance_scale: float | None = None
    true_guidance_scale: float = 1.0
    guidance: GuidanceMode = GuidanceMode.AUTO
    cache: StepCache | None = None
    guards: RouteGuards = field(default_factory=RouteGuards)
    tau: float | None = None
    profile: StepProfile | None = None

    def __post_init__(self) -> None:
        if self.sigmas is not None and (self.scheduler not in (None, "flow-euler") or self.shift is not None):
            raise ValueError(
                "scheduler and shift: given steps are sampled with flow-euler and not shifted; leave both out"
            )
        if self.sigmas is None and self.renoise:
            raise ValueError("renoise: needs given steps; give sigmas, or --timesteps or --sigmas")


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


def guidance_arguments(
    family: str, settings: SamplingSettings, negative_prompt: str | None, *, takes_guidance: bool
) -> tuple[dict[str, Any], int]:
    """What the family's pipeline is called with, and how many samples a step takes: 2 with classifier-free guidance.

    Args:
        takes_guidance: HunyuanVideo's config has `guidance_embeds`.
    Raises: ValueError, for what would have no effect.
    """
    sampling, scale = FAMILY_SAMPLING[family], settings.guidance_scale
    if sampling.embedded:
        if scale is not None and not takes_guidance:
            raise ValueError(
                f"guidance scale {scale:g}: this HunyuanVideo has no guidance embedding, so it would have no effect; "
                f"leave it out, or give a true guidance scale"
            )
        guided = settings.true_guidance_scale > 1
        arguments: dict[str, Any] = {"guidance_scale": sampling.default_scale if scale is None else scale}
        arguments["true_cfg_scale"] = settings.true_guidance_scale
        remedy = "give a true guidance scale above 1"
    else:
        if settings.true_guidance_scale != 1:
            raise ValueError("true guidance scale: is HunyuanVideo's; Wan's guidance scale is the true one")
        scale = (sampling.default_scale if settings.sigmas is None else 1.0) if scale is None else scale
        guided, arguments = scale > 1, {"guidance_scale": scale}
        remedy = "give a guidance scale above 1"
    if negative_prompt is not None and not guided:
        raise ValueError(
            f"negative prompt {negative_prompt!r}: has no effect without guidance; {remedy}, or leave it out"
        )
    if guided:
        arguments["negative_prompt"] = negative_prompt or ""
    return arguments, 2 if guided else 1
