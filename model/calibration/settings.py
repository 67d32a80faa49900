# SPDX-License-Identifier: Apache-2.0
"""The numbers of a calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vorta_trt.model.precision import PRECISIONS

# Of a layer's attention output, all heads together. For scale: fp8 products alone are 4 % off on unit-normal inputs.
# SpargeAttn (arXiv 2502.18137) tunes its heads to a mean absolute error of 6 to 8 % on CogVideoX and 2 to 3 % on Wan,
# where its users still see a difference (thu-ml/SpargeAttn, issues 33 and 65). So a tenth is no promise of quality but
# where looking at samples begins; it rests on no real weights.
DEFAULT_BUDGET = 0.1


@dataclass(frozen=True)
class CalibrationSettings:
    """Numbers of a calibration; ValueError names the one that breaks a rule.

    Attributes:
        budget: largest relative error of a layer's attention output in a bucket; None is `DEFAULT_BUDGET`.
        target_share: instead of a budget, the share of dense attention's FLOPs that the routes may take.
        buckets: of the schedule's timesteps. samples: how many samples or prompts are used at most.
        run_steps: of the denoising runs that prompts are measured in.
        guidance_scale: of those runs, and embedded where the model embeds it; None is the pipeline's default.
        seed: of everything random. dtype: "bf16", "fp16" or, on the CPU, "fp32".
    """

    budget: float | None = None
    target_share: float | None = None
    buckets: int = 5
    samples: int = 4
    run_steps: int = 10
    guidance_scale: float | None = None
    seed: int = 0
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.budget is not None and self.target_share is not None:
            raise ValueError(
                f"budget {self.budget:g} and target share {self.target_share:g}: one decides the other; give one"
            )
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ValueError(f"budget {self.budget}: must be a positive relative error; use {DEFAULT_BUDGET}")
        if self.target_share is not None and not 0 < self.target_share <= 1:
            raise ValueError(
                f"target share {self.target_share}: must be a share of dense attention's FLOPs, at most 1; use 0.3"
            )
        for name in ("buckets", "samples", "run_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance scale {self.guidance_scale}: must be finite and not negative; use 1 for none")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}: must be 0 or more")
        if self.dtype not in PRECISIONS:
            raise ValueError(f"dtype {self.dtype!r}: must be one of {', '.join(PRECISIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)
