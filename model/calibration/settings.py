# SPDX-License-Identifier: Apache-2.0
"""The numbers of a calibration."""

from __future__ import annotations

from pydantic import Field, model_validator

from vorta_trt.model.precision import PrecisionName
from vorta_trt.model.records import Settings

# Of a layer's attention output, all heads together. For scale: fp8 products alone are 4 % off on unit-normal inputs.
# SpargeAttn (arXiv 2502.18137) tunes its heads to a mean absolute error of 6 to 8 % on one model and 2 to 3 % on
# another, where its users still see a difference (thu-ml/SpargeAttn, issues 33 and 65). So a tenth is no promise of
# quality but where looking at samples begins; it rests on no real weights.
DEFAULT_BUDGET = 0.1


class CalibrationSettings(Settings):
    """Numbers of a calibration.

    Attributes:
        budget: Largest relative error of a layer's attention output in a bucket; None is `DEFAULT_BUDGET`.
        target_share: Instead of a budget, the share of dense attention's FLOPs that the routes may take.
        buckets: Number of buckets that the schedule's timesteps are cut into.
        samples: How many samples or prompts are used at most.
        run_steps: Steps of the denoising runs that prompts are measured in.
        guidance_scale: Scale of those runs, and embedded where the model embeds it; 1 is none, None the pipeline's own.
        seed: Seed of everything random.
        dtype: Type of weights and activations; "fp32" on the CPU alone.

    Raises:
        ValueError: A number breaks a rule; the message names it.
    """

    budget: float | None = Field(default=None, gt=0)
    target_share: float | None = Field(default=None, gt=0, le=1)
    buckets: int = Field(default=5, ge=1)
    samples: int = Field(default=4, ge=1)
    run_steps: int = Field(default=10, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    dtype: PrecisionName = "bf16"

    @model_validator(mode="after")
    def _check_goal(self) -> CalibrationSettings:
        if self.budget is not None and self.target_share is not None:
            raise ValueError(
                f"budget {self.budget:g} and target share {self.target_share:g}: one decides the other; give one"
            )
        return self
