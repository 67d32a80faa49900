# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for components of a pipeline that are not loaded while it denoises.

diffusers' pipelines encode images in the call that samples. Here a separate stage encodes them, so that VAE and image
encoder can be freed before the transformer is loaded. In that stage `Recorded` runs a component and keeps its results.
When the pipeline samples later, the same calls get the kept results. So the pipeline's own code runs unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vorta_trt.plugins.errors import VortaError


class StandIn:
    """Has all that a pipeline reads from a component: config, type, device, and plain attributes such as ratios.

    Args:
        part: The component, or one of the same class and config without weights.
        dtype: Type that the component has where it runs.
        device: Device that the pipeline runs on.
    """

    def __init__(self, part: Any, dtype: torch.dtype, device: torch.device) -> None:
        plain = {name: value for name, value in vars(part).items() if isinstance(value, bool | int | float | str)}
        self.__dict__.update(plain)
        self.config, self.dtype, self.device = part.config, dtype, device

    def modules(self) -> Iterator[nn.Module]:
        """No modules. diffusers looks through them for offloading hooks."""
        return iter(())

    def parameters(self) -> Iterator[Tensor]:
        """One parameter without elements, from which callers read type and device."""
        return iter((torch.empty(0, dtype=self.dtype, device=self.device),))


class Recorded(StandIn):
    """A VAE or an image encoder that records the results of its calls, and replays them after `release`.

    Replayed calls get the results in the recorded order; after the last one it begins with the first again.

    Args:
        part: The component.
        device: Device that the pipeline runs on.
    """

    def __init__(self, part: Any, device: torch.device) -> None:
        super().__init__(part, part.dtype, device)
        self._name, self._part = type(part).__name__, part
        self._kept: list[tuple[tuple[int, ...], Any]] = []  # shape of the input, result
        self._next = 0

    def encode(self, pixels: Tensor, *arguments: Any, **options: Any) -> Any:
        """Encodes as a VAE does; the mode of the latent distribution is recorded."""

        def run() -> Tensor:
            latents: Tensor = self._part.encode(pixels, *arguments, **options).latent_dist.mode()
            return latents

        latents = self._run(run, pixels)  # [B, C, F, H, W]
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Encodes as an image encoder does."""
        given = next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
        return self._run(lambda: self._part(*arguments, **named), given)

    def _run(self, run: Any, given: Tensor) -> Any:
        shape = tuple(given.shape)
        if self._part is not None:
            made = run()
            self._kept.append((shape, made))
            return made
        if not self._kept:
            raise VortaError(f"{self._name}: the pipeline calls it, and no image was encoded by it before")
        expected, made = self._kept[self._next % len(self._kept)]
        self._next += 1
        if shape != expected:
            raise VortaError(
                f"{self._name}: the pipeline encodes {shape} while it samples, and {expected} was encoded before; the "
                f"condition of its family does not do what this version of diffusers does"
            )
        return tree_map_only(Tensor, lambda tensor: tensor.to(given.device), made)

    def release(self, waiting: torch.device | None) -> None:
        """Drops the component. Recorded results move to the device `waiting`; None leaves them where they are."""
        self._part = None
        if waiting is not None:
            self._kept = [
                (shape, tree_map_only(Tensor, lambda tensor: tensor.to(waiting), made)) for shape, made in self._kept
            ]
