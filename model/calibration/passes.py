# SPDX-License-Identifier: Apache-2.0
"""The passes of a calibration over its samples: what is measured, and what is held back for the check.

Letters: C latent channels, F, H, W latent frames, height, width, K buckets, L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vorta_trt.model.calibration.buckets import Bucket, bucket_of
from vorta_trt.model.calibration.measure import CalibrationError, measure_branches, measure_routes, routed
from vorta_trt.model.calibration.report import Check
from vorta_trt.model.calibration.samples import CalibrationSamples, Inputs
from vorta_trt.model.geometry import Branch
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.training.data import Progress
from vorta_trt.model.transformer import RoutedTransformer


class CalibrationPasses:
    """The passes: all samples but the last quarter are measured, that quarter is held back for the check.

    A single sample is both measured and held back: the check then uses other noise, and other steps of the buckets.

    Args:
        model: The routed transformer, without routers.
        samples: Samples that the model is run on.
        buckets: Buckets of the schedule's timesteps.
        progress: Called with (what, done, total).
        stepped: The part of a prediction that counts, see `TrainingFamily.stepped`.
    """

    def __init__(
        self,
        model: RoutedTransformer,
        samples: CalibrationSamples,
        buckets: Sequence[Bucket],
        progress: Progress,
        stepped: Callable[[Tensor], Tensor] = lambda prediction: prediction,
    ) -> None:
        self.stepped = stepped
        self.model, self.samples, self.buckets, self.progress = model, samples, buckets, progress
        count = len(samples.names)
        held_back = max(1, count // 4)
        self.measured = range(max(1, count - held_back))
        self.held_back = range(count - held_back, count)
        self.done = 0
        self.total = samples.visits * (len(self.measured) + len(self.held_back))

    def measure(self) -> Tensor:
        """Measures every branch; returns mean squared relative errors, float64 [K, L, N, 3]."""
        shape = (len(self.buckets), self.model.num_layers, self.model.num_heads, len(Branch))
        mean = _Means(shape)

        def visit(index: int, timestep: float, inputs: Inputs) -> Tensor:
            sample, squares = measure_branches(self.model, inputs)
            mean.add(self._bucket(timestep), self._finite(squares, index, timestep))
            return sample

        for number, index in enumerate(self.measured):
            self._walk("measuring the branches", index, (number + 0.5) / len(self.measured), index, visit)
        return mean()

    def check(self, calibration: RouteCalibration) -> Check:
        """Runs the chosen routes on the samples that were held back."""
        layers, samples = _Means((len(self.buckets), self.model.num_layers)), _Means((len(self.buckets),))

        def visit(index: int, timestep: float, inputs: Inputs) -> Tensor:
            routes = calibration.overrides([timestep])[0]  # [L, N]
            sample, squares = measure_routes(self.model, inputs, routes)
            difference = self.stepped(routed(self.model, inputs, routes) - sample)  # [1, C, F, H, W]
            relative = difference.double().square().sum() / self.stepped(sample).double().square().sum()
            layers.add(self._bucket(timestep), self._finite(squares, index, timestep))
            samples.add(self._bucket(timestep), self._finite(relative.cpu(), index, timestep))
            return sample

        for number, index in enumerate(self.held_back):
            part = len(self.samples.names) + index  # other noise than in the measurement
            self._walk("checking the routes", index, (number + 0.25) / len(self.held_back), part, visit)
        return Check(layers().sqrt(), samples().sqrt())

    def _walk(
        self, what: str, index: int, position: float, part: int, visit: Callable[[int, float, Inputs], Tensor]
    ) -> None:
        def at(timestep: float, inputs: Inputs) -> Tensor:
            self.progress(what, self.done, self.total)
            sample = visit(index, timestep, inputs)
            self.done += 1
            return sample

        self.samples.walk(index, position, part, at, lambda inputs: routed(self.model, inputs))

    def _bucket(self, timestep: float) -> int:
        return int(bucket_of([timestep], self.buckets))

    def _finite(self, squares: Tensor, index: int, timestep: float) -> Tensor:
        if not bool(squares.isfinite().all()):
            raise CalibrationError(
                f"sample {self.samples.names[index]!r} at timestep {timestep:g}: attention or its error is not finite "
                f"({int((~squares.isfinite()).sum())} of {squares.numel()} numbers); leave the sample out, or try "
                f"--dtype bf16 or, on the CPU, fp32"
            )
        return squares


class _Means:
    """Means over the visits of each bucket, float64 of a shape [K, ..]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sums = torch.zeros(shape, dtype=torch.float64)
        self._visits = torch.zeros(shape[0], *[1] * (len(shape) - 1))

    def add(self, bucket: int, values: Tensor) -> None:
        self._sums[bucket] += values
        self._visits[bucket] += 1

    def __call__(self) -> Tensor:
        return self._sums / self._visits
