# SPDX-License-Identifier: Apache-2.0
"""`PartsLoader`: text encoders and VAE of a pipeline folder, all of them or those of one stage."""

from __future__ import annotations

from typing import Any

import torch

from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.model_index import ModelIndex
from vorta_trt.model.pipeline_folder import check_pipeline, component_class, load_part, load_pipeline, vae_config
from vorta_trt.model.precision import torch_dtype
from vorta_trt.runtime.pipelines.planner import RequestPlanner

PURPOSE = "generation"  # what needs the pipeline folder, in errors


class PartsLoader:
    """Of the folder that a planner has found; looks at it, and loads nothing yet.

    Args:
        vae_tiling: decode in tiles; None does for the families that need it.
    Raises: CheckpointError, FileNotFoundError: a folder that is not the model's pipeline, or none.
    """

    def __init__(self, planner: RequestPlanner, vae_tiling: bool | None) -> None:
        self._planner = planner
        self._folder = planner.require_checkpoint()
        self._tiled = planner.tiled_vae if vae_tiling is None else vae_tiling
        self._check(check_pipeline(self._folder, get_family(planner.family), purpose=PURPOSE))

    def load(self, device: torch.device, transformer: Any = None, *, encoders: bool = True, vae: bool = True) -> Any:
        """diffusers' pipeline, on the CPU.

        Args:
            device: where the parts will run, which decides their precision. transformer: takes the transformer's place.
            encoders, vae: whether text encoders with their tokenizers, and the VAE, are loaded; else they are None.
        """
        family = get_family(self._planner.family)
        encoder_dtype, vae_dtype = (
            torch_dtype(dtype) if device.type == "cuda" else torch.float32
            for dtype in (family.encoder_dtype, family.vae_dtype)
        )
        wanted = {part: vae if part == "vae" else encoders for part in family.components}
        without = [part for part, loaded in wanted.items() if not loaded]
        pipeline = load_pipeline(self._folder, family, encoder_dtype, purpose=PURPOSE, without=without)
        if vae:
            # diffusers' `to` warns of modules to keep, even if there are none
            torch.nn.Module.to(pipeline.vae, vae_dtype)
            if self._tiled:
                pipeline.vae.enable_tiling()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.transformer = transformer
        return pipeline

    def _check(self, index: ModelIndex) -> None:
        """Text encoders and VAE must give what the transformer takes."""
        config, family = self._planner.config, get_family(self._planner.family)
        encoder = load_part(
            component_class(index, "text_encoder", self._folder).config_class, self._folder / "text_encoder", {}
        )
        found = {
            "VAE channels": family.vae_channels(vae_config(index, family, self._folder)),
            "text encoder's width": encoder.hidden_size,
        }
        wanted = {"VAE channels": config["in_channels"], "text encoder's width": config[family.text_width]}
        for what, value in wanted.items():
            if found[what] not in (value, None):
                raise CheckpointError(
                    f"checkpoint {self._folder}: {what} {found[what]}, but {self._planner.name} takes {value}; give "
                    f"the pipeline folder that it was made from"
                )
