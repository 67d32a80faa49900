# SPDX-License-Identifier: Apache-2.0
"""The optimization profiles of a plan: the shapes that each takes, and the choice of a profile for a call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vorta_trt.runtime.tensors import TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class OptimizationProfile:
    """One profile of a plan.

    Attributes:
        ranges: Smallest, optimal and largest shape of every input with a free axis, by name.
    """

    index: int
    ranges: Mapping[str, tuple[Shape, Shape, Shape]]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether the profile takes inputs of these shapes."""
        return all(
            low <= size <= high
            for name, (smallest, _, largest) in self.ranges.items()
            for low, size, high in zip(smallest, shapes[name], largest, strict=True)
        )

    def distance(self, shapes: Mapping[str, Shape]) -> float:
        """How far the shapes are from those that the profile was tuned for; 0 if they are equal."""
        return sum(
            abs(math.log(max(size, 1) / max(usual, 1)))
            for name, (_, tuned, _) in self.ranges.items()
            for size, usual in zip(shapes[name], tuned, strict=True)
        )

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {list(low)} to {list(high)}" for name, (low, _, high) in self.ranges.items())
        return f"profile {self.index}: {listed}"


def read_profiles(engine: Any, inputs: Sequence[TensorSpec]) -> tuple[OptimizationProfile, ...]:
    """The profiles of a deserialised engine. Where all shapes are fixed, its profile has no ranges."""
    free = [spec.name for spec in inputs if -1 in tuple(engine.get_tensor_shape(spec.name))]
    profiles = []
    for index in range(engine.num_optimization_profiles):
        ranges = {}
        for name in free:
            smallest, usual, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, index))
            ranges[name] = (smallest, usual, largest)
        profiles.append(OptimizationProfile(index, ranges))
    return tuple(profiles)


def choose_profile(profiles: Sequence[OptimizationProfile], shapes: Mapping[str, Shape]) -> OptimizationProfile:
    """The profile that takes the shapes, or of several the one tuned for the nearest; raises ValueError without any."""
    fitting = [profile for profile in profiles if profile.fits(shapes)]
    if not fitting:
        given = ", ".join(f"{name} {list(shapes[name])}" for name in profiles[0].ranges)
        listed = "".join(f"\n  {profile}" for profile in profiles)
        raise ValueError(
            f"{given}: fits none of the engine's optimization profiles; split the batch, or build an engine with a "
            f"wider range (vorta-trt build --batch min:opt:max):{listed}"
        )
    return min(fitting, key=lambda profile: profile.distance(shapes))


def widest(spec: TensorSpec, profiles: Sequence[OptimizationProfile]) -> TensorSpec:
    """A copy of `spec` whose range of sizes covers all profiles."""
    ranges = [profile.ranges[spec.name] for profile in profiles if spec.name in profile.ranges]
    if not ranges:
        return spec
    minimum = tuple(min(sizes) for sizes in zip(*(low for low, _, _ in ranges), strict=True))
    maximum = tuple(max(sizes) for sizes in zip(*(high for _, _, high in ranges), strict=True))
    return replace(spec, minimum=minimum, maximum=maximum)
