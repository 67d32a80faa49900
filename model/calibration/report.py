# SPDX-License-Identifier: Apache-2.0
"""The result of a calibration, as a table for people and as JSON for scripts.

Letters: K buckets, L layers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.calibration.buckets import bucket_of
from vorta_trt.model.geometry import Branch
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.route_table import RouteTable
from vorta_trt.model.tables import percent, table_lines


@dataclass(frozen=True, eq=False)
class Check:
    """Errors of the chosen routes against dense attention: root mean squares over the samples that were held back.

    Attributes:
        layer_errors: Errors of the layers' attention outputs, all heads together, in dense passes: float64 [K, L].
        sample_errors: Errors of the model's output, in which those of all layers combine: float64 [K].
    """

    layer_errors: Tensor
    sample_errors: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Returns the part that the calibration file holds, in plain JSON types."""
        return {
            "sample_errors": [round(error, 6) for error in self.sample_errors.tolist()],
            "worst_layer_errors": [round(error, 6) for error in self.layer_errors.amax(dim=1).tolist()],
        }


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """The calibration, its file, and how it was checked.

    Attributes:
        output: File of the calibration.
        calibration: The calibration in that file.
        table: The routes of the whole schedule.
        check: Errors of the routes on the samples that were held back.
        measured: Names of the samples that were measured.
        held_back: Names of the samples that were held back. A single sample is measured and held back, with other noise
            at other steps.
        seconds: Duration of the whole calibration.
        peak_memory_gib: Peak memory of the GPU; None on the CPU.
    """

    output: Path
    calibration: RouteCalibration
    table: RouteTable
    check: Check
    measured: tuple[str, ...]
    held_back: tuple[str, ...]
    seconds: float
    peak_memory_gib: float | None

    def buckets(self) -> list[dict[str, Any]]:
        """Returns a row per bucket."""
        calibration, table = self.calibration, self.table
        members = bucket_of(table.timesteps, calibration.buckets)  # [P]
        saved = table.saved_per_step()  # [P]
        rows = []
        for bucket, (upper, lower) in enumerate(calibration.buckets):
            routes = calibration.routes[bucket]
            rows.append(
                {
                    "upper": upper,
                    "lower": lower,
                    "steps": int((members == bucket).sum()),
                    **{branch.name.lower(): float((routes == int(branch)).double().mean()) for branch in Branch},
                    "attention_flops_saved": float(saved[members == bucket].mean()),
                    "predicted_worst_layer_error": float(calibration.layer_errors[bucket].max()),
                    "found_worst_layer_error": float(self.check.layer_errors[bucket].max()),
                    "found_median_layer_error": float(torch.median(self.check.layer_errors[bucket])),
                    "sample_error": float(self.check.sample_errors[bucket]),
                }
            )
        return rows

    def to_json(self) -> str:
        """Returns one JSON object."""
        return json.dumps(
            {
                "output": str(self.output),
                "budget": self.calibration.budget,
                "shares": self.table.shares(),
                "attention_flops_saved": self.table.saved,
                "total_flops_saved": self.table.total_saved,
                "buckets": self.buckets(),
                "measured": list(self.measured),
                "held_back": list(self.held_back),
                "settings": self.calibration.settings,
                "seconds": round(self.seconds, 3),
                "peak_memory_gib": self.peak_memory_gib,
            }
        )

    def summary(self) -> str:
        """Returns a table of the buckets, and what to make of it."""
        branches = [branch.name.lower() for branch in Branch]
        names = ("predicted_worst_layer_error", "found_worst_layer_error", "sample_error")
        rows = [
            (
                f"{row['upper']:.1f} - {row['lower']:.1f}",
                str(row["steps"]),
                *(percent(row[name]) for name in (*branches, "attention_flops_saved")),
                *(f"{row[name]:.4f}" for name in names),
            )
            for row in self.buckets()
        ]
        errors = ("layer error: predicted", "found", "sample error")
        lines = table_lines(("timesteps", "steps", *branches, "saved", *errors), rows)
        other = "" if set(self.measured).isdisjoint(self.held_back) else ", with other noise at other steps"
        lines += [
            "errors are relative, of the worst layer; found ones on what was held back",
            f"measured on {len(self.measured)} samples, checked on {len(self.held_back)}{other}; "
            f"budget of a layer {self.calibration.budget:.4g}",
            f"attention FLOPs saved: {100 * self.table.saved:.1f} %",
        ]
        if self.table.total_saved is not None:
            lines.append(f"end-to-end FLOPs saved: {100 * self.table.total_saved:.1f} %")
        memory = "" if self.peak_memory_gib is None else f", {self.peak_memory_gib:.1f} GiB of GPU memory at most"
        lines.append(f"{self.seconds:.0f} s{memory}")
        return "\n".join(lines)
