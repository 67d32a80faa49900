# SPDX-License-Identifier: Apache-2.0
"""Components of a pipeline that are not loaded while it denoises, and what stands in their places.

diffusers' pipelines encode images in the call that samples. Here that happens in a stage of its own, so that VAE and
image encoder can go before the transformer is loaded: `Recorded` runs a component there and keeps what it gave; when
the pipeline samples later, the same calls get that. So the pipeline's own code stays what is run.
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
    """What a pipeline reads off a component: its config, type, place, and plain attributes such as compression ratios.

    Args:
        part: the component, or one of its class and config without weights.
        dtype: of the component where it runs.
        device: where the pipeline runs.
    """

    def __init__(self, part: Any, dtype: torch.dtype, device: torch.device) -> None:
        plain = {name: value for name, value in vars(part).items() if isinstance(value, bool | int | float | str)}
        self.__dict__.update(plain)
        self.config, self.dtype, self.device = part.config, dtype, device

    def modules(self) -> Iterator[nn.Module]:
        """None: diffusers looks for hooks of offloading."""
        return iter(())

    def parameters(self) -> Iterator[Tensor]:
        """One without elements, which tells type and device."""
        return iter((torch.empty(0, dtype=self.dtype, device=self.device),))


class Recorded(StandIn):
    """A VAE or an image encoder whose calls are kept, and after `release` repeated, in order and from the start again.

    Args:
        part: the component.
        device: where the pipeline runs.
    """

    def __init__(self, part: Any, device: torch.device) -> None:
        super().__init__(part, part.dtype, device)
        self._name, self._part = type(part).__name__, part
        self._kept: list[tuple[tuple[int, ...], Any]] = []  # shape of what was given, what was made
        self._next = 0

    def encode(self, pixels: Tensor, *arguments: Any, **options: Any) -> Any:
        """A VAE's, of which the most likely latents are kept."""

        def run() -> Tensor:
            latents: Tensor = self._part.encode(pixels, *arguments, **options).latent_dist.mode()
            return latents

        latents = self._run(run, pixels)  # [B, C, F, H, W]
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """An image encoder's."""
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
        """Lets go of the component; what was kept waits on that device, None: where it is."""
        self._part = None
        if waiting is not None:
            self._kept = [
                (shape, tree_map_only(Tensor, lambda tensor: tensor.to(waiting), made)) for shape, made in self._kept
            ]
