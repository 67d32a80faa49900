# SPDX-License-Identifier: Apache-2.0
"""From latents to frames, as the end of diffusers' pipelines does it.

Letters: C latent channels, F, H, W frames, height, width, of latents or of the video.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vorta_trt.model.families import get_family
from vorta_trt.plugins.errors import VortaError


@torch.no_grad()
def decode_latents(pipeline: Any, family: str, latents: Tensor) -> Tensor:
    """[1, C, F, H, W] -> [1, F, 3, H, W] in [0, 1], bit for bit what the pipeline makes of them with output_type="pt".

    Args:
        pipeline: with its VAE, on the device where that runs; `encode_prompt` and the transformer are not used.
    """
    vae = pipeline.vae
    latents = latents.to(vae.device, vae.dtype)
    latents = get_family(family).denormalise(vae, latents)
    video: Tensor = pipeline.video_processor.postprocess_video(
        vae.decode(latents, return_dict=False)[0], output_type="pt"
    )
    return video


def to_bytes(video: Tensor) -> npt.NDArray[np.uint8]:
    """[F, 3, H, W] in [0, 1] -> uint8 [F, H, W, 3]"""
    if not bool(video.isfinite().all()):
        raise VortaError(
            "the decoded video has values that are not finite, though the latents were: the VAE overflows in its "
            "precision; decode with another one"
        )
    return (video.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
