# SPDX-License-Identifier: Apache-2.0
"""The timesteps that a pipeline calls its transformer with, as the model takes them.

Most pipelines give one per sample, [B]. One that expands timesteps gives one per token, [B, S]: the step's own, or 0 on
the tokens of the first latent frame where that is the latent of a given image. A model takes [B], or [B, 2]: that of
the first latent frame, and that of all others. Both are picked out of the tokens; that no other token says otherwise is
found out on the device, and looked at on the host without waiting for a GPU.

Letters: B batch, S video tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vorta_trt.model.boxes import Shape
from vorta_trt.runtime.sampling.finite import HostCopy


def of_schedule(timestep: Tensor) -> Tensor:
    """The step's own timestep for each sample, [B] or [], of [B, S], [B] or [].

    The last token is never of the first latent frame, unless that is the only one.
    """
    return timestep[:, -1] if timestep.ndim == 2 else timestep


class Timesteps:
    """Turns the timesteps of every call into the model's.

    Args:
        per_sample: How many the model takes, 1 or 2.
    """

    def __init__(self, per_sample: int) -> None:
        self._per_sample = per_sample
        self._pending: HostCopy | None = None

    def __call__(self, timestep: Tensor, batch: int, grid: Shape) -> Tensor:
        """The model's timesteps, float32 [B] or [B, 2].

        Args:
            timestep: The pipeline's, [], [B] or [B, S].
            batch: B.
            grid: Tokens (frames, height, width).

        Raises:
            ValueError: Another shape; or tokens that differ otherwise than by the first frame, which on a GPU is said
                by the next call or by `finish`.
        """
        self.finish()
        frames, height, width = grid
        if timestep.ndim == 0:
            timestep = timestep.expand(batch)  # [B]
        if tuple(timestep.shape) not in ((batch,), (batch, frames * height * width)):
            raise ValueError(
                f"timestep of shape {tuple(timestep.shape)}: must be [B], {batch} of them, or [B, S], one for each of "
                f"the {frames * height * width} tokens of these latents"
            )
        first, others = timestep, timestep  # [B] each
        if timestep.ndim == 2:
            own = height * width if self._per_sample == 2 else 0  # tokens that may have another one than the rest
            self._check_later(timestep[:, :own], timestep[:, own:])
            first, others = timestep[:, 0], timestep[:, -1]
        return (torch.stack((first, others), dim=1) if self._per_sample == 2 else others).to(torch.float32)

    def _check_later(self, *parts: Tensor) -> None:
        """On the CPU at once: all tokens of a part, [B, *], must have the same timestep."""
        even = torch.stack([(part == part[:, :1]).all() for part in parts]).all()
        self._pending = HostCopy(even)
        if not even.is_cuda:
            self.finish()

    def forget(self) -> None:
        """Lets go of the last call, whose tokens are not looked at any more."""
        self._pending = None

    def finish(self) -> None:
        """Looks at what is known of the last call's tokens; raises as a call does."""
        pending, self._pending = self._pending, None
        if pending is not None and not bool(pending.wait()):
            rule = (
                "the tokens of the first latent frame must have one timestep, and all others one"
                if self._per_sample == 2
                else "this model has one timestep for all of them"
            )
            raise ValueError(f"timestep by token, with other values than a pipeline's: {rule}; give it as [B]")
