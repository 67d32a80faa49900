# SPDX-License-Identifier: Apache-2.0
"""The numbers of a calibration."""

from __future__ import annotations

from pydantic import Field, model_validator

from vorta_trt.model.precision import PrecisionName
from vorta_trt.model.records import Settings

# Relative error of a layer's attention output, all heads together. For comparison: fp8 products alone are 4 % off on
# unit-normal inputs. SpargeAttn (arXiv 2502.18137) tunes its heads to a mean absolute error of 6 to 8 % on one model
# and 2 to 3 % on another, where its users still see a difference (thu-ml/SpargeAttn, issues 33 and 65). So a tenth is
# no promise of quality: it is where to begin to look at samples, and it rests on no real weights.
DEFAULT_BUDGET = 0.1


class CalibrationSettings(Settings):
    """Numbers of a calibration.

    Raises:
        ValueError: A number breaks a rule; the message names it.
    """

    budget: float | None = Field(
        default=None,
        gt=0,
        description="The largest relative error that a layer's attention output may have [default: 0.1].",
    )
    target_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Instead, find the least error at this share of dense attention's FLOPs, e.g. 0.3.",
    )
    buckets: int = Field(
        default=5, ge=1, description="Into how many buckets timesteps are cut; each bucket has its own routes."
    )
    samples: int = Field(
        default=4, ge=1, description="How many prompts or samples are used at most; a quarter checks the routes."
    )
    run_steps: int = Field(default=10, ge=1, description="How many steps the denoising runs of --prompts have.")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        description="Guidance scale of those runs, embedded where the model embeds it; None is the pipeline's.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of everything random.")
    dtype: PrecisionName = Field(
        default="bf16", description="The type of weights and activations; fp32 runs on the CPU alone."
    )

    @model_validator(mode="after")
    def _check_goal(self) -> CalibrationSettings:
        if self.budget is not None and self.target_share is not None:
            raise ValueError(
                f"budget {self.budget:g} and target share {self.target_share:g}: one decides the other; give one"
            )
        return self
