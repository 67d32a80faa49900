# SPDX-License-Identifier: Apache-2.0
"""Prompts as the transformer takes them, by the pipeline's own text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.pipeline_folder import load_pipeline
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.training.data import Progress


@torch.no_grad()
def encode_prompts(
    checkpoint: Path,
    family: TrainingFamily,
    prompts: Sequence[str],
    dtype: str,
    device: torch.device,
    progress: Progress,
) -> list[dict[str, Tensor]]:
    """The family's conditions of every prompt, [1, ...] each, on the CPU; the text encoder is gone afterwards.

    Args:
        dtype: of the transformer; the text encoder's is "fp32" if this is, else "bf16", for it overflows in fp16.
        device: where the text encoder runs.
    """
    progress("loading the text encoder", 0, 0)
    width = torch_dtype("fp32" if dtype == "fp32" else "bf16")
    pipeline = load_pipeline(checkpoint, family.facts.pipeline_class, width, purpose="calibrating with prompts")
    encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    for encoder in encoders:
        encoder.to(device)
    encoded = []
    for index, prompt in enumerate(prompts):
        progress("encoding prompts", index, len(prompts))
        try:
            conditions = family.conditions(family.encode_caption(pipeline, prompt, device))
        except ValueError as error:
            raise ValueError(f"prompt {prompt!r}: {error}") from error
        encoded.append({name: tensor.unsqueeze(0).cpu() for name, tensor in conditions.items()})
    for encoder in encoders:
        encoder.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return encoded
