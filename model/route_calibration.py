# SPDX-License-Identifier: Apache-2.0
"""`RouteCalibration`: routes that `vorta-trt calibrate` chose, a branch per bucket of timesteps, layer and head.

A JSON file; as a `route_override` it takes the place of a router, or goes before one.

    calibration = RouteCalibration.load("calibration.json")
    calibration.check(model.family, layers=40, heads=40, geometry=geometry)
    override = calibration.overrides(scheduler.timesteps)  # int32 [P, L, N]

Letters: P denoising steps, K buckets, L layers, N heads.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from vorta_trt.model.calibration.buckets import Bucket, bucket_of
from vorta_trt.model.experts import in_words
from vorta_trt.model.families import family_names
from vorta_trt.model.files import json_kind, write_text
from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.records import Record, load_record

logger = logging.getLogger(__name__)

FORMAT: Literal[1] = 1
KIND = json_kind("file of calibrated routes", "format", "family", "geometry", "budget", "buckets", "routes", "errors")
DIGITS = 6  # significant ones, of the errors in the file


@dataclass(frozen=True, eq=False)
class RouteCalibration:
    """Routes, and what they were chosen from.

    Attributes:
        family: Name of the model family.
        geometry: Geometry of the attention that was measured.
        buckets: K pairs (upper, lower) of timesteps, both included, from much noise to little.
        routes: int8 [K, L, N], ids of `Branch`.
        errors: float32 [K, L, N, 3], root mean square error of each branch after the output projection, relative
            to the layer's full attention (see `calibration.measure`).
        budget: Largest error that a layer may have in a bucket; the squared errors of its heads are added up.
        checkpoint: Name of the checkpoint.
        component: Which of two experts was measured; None for a model alone.
        settings: Numbers of the calibration, and what its check found; plain JSON types.
    """

    family: str
    geometry: AttentionGeometry
    buckets: tuple[Bucket, ...]
    routes: Tensor
    errors: Tensor
    budget: float
    checkpoint: str = ""
    component: Literal["transformer", "transformer_2"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in family_names():
            raise ValueError(f"family {self.family!r}: must be one of {', '.join(map(repr, family_names()))}")
        if not self.buckets:
            raise ValueError("buckets: there are none, but routes belong to one")
        ends = [end for bucket in self.buckets for end in bucket]
        if not all(map(math.isfinite, ends)) or ends != sorted(ends, reverse=True):
            raise ValueError(f"buckets {self.buckets}: must be pairs (upper, lower) of timesteps that descend")
        shape = tuple(self.routes.shape)
        if self.routes.dtype != torch.int8 or len(shape) != 3 or shape[0] != len(self.buckets) or 0 in shape:
            raise ValueError(
                f"routes of shape {shape}, {self.routes.dtype}: must be int8 [{len(self.buckets)}, "
                f"L, N], a branch per bucket, layer and head"
            )
        if not 0 <= int(self.routes.min()) <= int(self.routes.max()) < len(Branch):
            raise ValueError("routes: must be 0 (full), 1 (coreset) or 2 (sliding)")
        expected = (*shape, len(Branch))
        if self.errors.dtype != torch.float32 or tuple(self.errors.shape) != expected:
            raise ValueError(
                f"errors of shape {tuple(self.errors.shape)}, {self.errors.dtype}: must be float32 {expected}, one per "
                f"branch"
            )
        if not bool((self.errors.isfinite() & (self.errors >= 0)).all()):
            raise ValueError("errors: must be finite and not negative")
        if not 0 <= self.budget < math.inf:
            raise ValueError(f"budget {self.budget}: must be finite and not negative")

    # -- use -----------------------------------------------------------------------------------------------------------

    def overrides(self, timesteps: Sequence[float] | Tensor) -> Tensor:
        """The routes of a schedule: each step has those of its bucket, or of the nearest one.

        Args:
            timesteps: P timesteps of any schedule, as the scheduler gives them.

        Returns:
            int32 [P, L, N].
        """
        return self.routes[bucket_of(timesteps, self.buckets)].to(torch.int32)

    def check(
        self,
        family: str,
        layers: int,
        heads: int,
        geometry: AttentionGeometry | None = None,
        component: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        """Raises ValueError, naming the mismatch, unless the routes are for such a model.

        Another geometry is a warning: branches were compared on other tokens, but every route can be taken. `component`
        is which of two experts the model is, None for a model alone. Another `checkpoint` (its name, None if it is not
        known) is a warning, too.
        """
        for what, own, given in (
            ("family", self.family, family),
            ("layers", self.routes.shape[1], layers),
            ("heads", self.routes.shape[2], heads),
        ):
            if own != given:
                raise ValueError(
                    f"calibrated routes of {self.checkpoint or 'a checkpoint'}: are for {what} {own}, the model has "
                    f"{given}; calibrate the model itself with `vorta-trt calibrate`"
                )
        if component is not None and self.component not in (None, component):
            raise ValueError(
                f"calibrated routes of {self.checkpoint or 'a checkpoint'}: are for {in_words([self.component])}, the "
                f"model is {in_words([component])}; give each expert its own, e.g. --route-override high=FILE "
                f"--route-override low=FILE"
            )
        measured = self.checkpoint.split(" + ")[0]  # without the LoRA files that were fused
        if checkpoint and measured and measured != checkpoint:
            logger.warning(
                "calibrated routes of %s: are used with the weights of %s; calibrate the model itself",
                measured,
                checkpoint,
            )
        if geometry is not None and geometry != self.geometry:
            logger.warning(
                "calibrated routes of %s: were measured with %s and are used with %s; calibrate for this size",
                self.checkpoint or "a checkpoint",
                self.geometry,
                geometry,
            )

    @property
    def layer_errors(self) -> Tensor:
        """The predicted error of each layer: the root of the sum of its heads' squared errors, float64 [K, L]."""
        chosen = self.errors.double().gather(3, self.routes.long().unsqueeze(3)).squeeze(3)  # [K, L, N]
        return chosen.square().sum(dim=2).sqrt()

    def shares(self) -> dict[str, float]:
        """Share of heads per branch, over all buckets and layers."""
        return {branch.name.lower(): float((self.routes == int(branch)).double().mean()) for branch in Branch}

    def describe(self) -> str:
        """Describes the calibration in one line."""
        shares = ", ".join(f"{100 * share:.1f}% {name}" for name, share in self.shares().items())
        layers, heads = self.routes.shape[1:]
        return (
            f"{len(self.buckets)} buckets, {layers} layers, {heads} heads: {shares}; error of a layer at most "
            f"{self.budget:.3g}; measured on {self.checkpoint or 'a checkpoint'}"
        )

    # -- out and in ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the routes as JSON; the file is replaced once the new one is complete."""
        content = _CalibrationFile(
            format=FORMAT,
            family=self.family,
            checkpoint=self.checkpoint,
            component=self.component,
            geometry=self.geometry.to_dict(),
            budget=self.budget,
            buckets=self.buckets,
            shares=self.shares(),
            settings=self.settings,
            routes=self.routes.tolist(),
            errors=_rounded(self.errors.tolist()),
        )
        write_text(path, json.dumps(content.model_dump(mode="json")) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RouteCalibration:
        """Inverse of `save`, errors to 6 digits.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that `save` did not write, or that is damaged; the message names what.
        """
        content = load_record(_CalibrationFile, path, "calibrated routes", _REMEDY)
        try:
            return cls(
                family=content.family,
                geometry=AttentionGeometry.from_dict(content.geometry),
                buckets=content.buckets,
                routes=torch.tensor(content.routes, dtype=torch.int8),
                errors=torch.tensor(content.errors, dtype=torch.float32),
                budget=content.budget,
                checkpoint=content.checkpoint,
                component=content.component,
                settings=content.settings,
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"calibrated routes {path}: {error}; {_REMEDY}") from error


class _CalibrationFile(Record, extra="forbid"):
    """The file of calibrated routes; shares are for people."""

    format: Literal[1]
    family: str
    checkpoint: str
    component: Literal["transformer", "transformer_2"] | None = None  # absent from files of older versions
    geometry: dict[str, JsonValue]
    budget: float
    buckets: tuple[tuple[float, float], ...]
    shares: dict[str, float]
    settings: dict[str, JsonValue]
    routes: list[list[list[Annotated[int, Field(ge=-128, le=127)]]]]
    errors: list[list[list[list[float]]]]


_REMEDY = "make it with `vorta-trt calibrate`"


def _rounded(values: Any) -> Any:
    """Rounds the numbers of nested lists to `DIGITS` digits: further digits of float32 mean nothing."""
    return [_rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.{DIGITS}g}")
