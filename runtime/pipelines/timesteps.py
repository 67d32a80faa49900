# SPDX-License-Identifier: Apache-2.0
"""Converts the timesteps that a pipeline calls its transformer with to those that the model takes.

Most pipelines give one timestep per sample, [B]. A pipeline that expands timesteps gives one per token, [B, S]: the
timestep of the step, or 0 for the tokens of the first latent frame where that frame is the latent of a given image. A
model takes [B], or [B, 2]: the timestep of the first latent frame, and that of all other frames. Both are taken from
the first and the last token. A check that all other tokens agree runs on the device; the host reads its result later,
without waiting for a GPU.

Letters: B batch, S video tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vorta_trt.model.boxes import Shape
from vorta_trt.runtime.sampling.finite import HostCopy


def of_schedule(timestep: Tensor) -> Tensor:
    """The timestep of the step for each sample, [B] or [], from timesteps [B, S], [B] or [].

    From [B, S] it takes the last token, which is in the first latent frame only if there is no other frame.
    """
    return timestep[:, -1] if timestep.ndim == 2 else timestep


class Timesteps:
    """Converts the timesteps of every call to the model's.

    Args:
        per_sample: Number of timesteps per sample that the model takes, 1 or 2.
    """

    def __init__(self, per_sample: int) -> None:
        self._per_sample = per_sample
        self._pending: HostCopy | None = None

    def __call__(self, timestep: Tensor, batch: int, grid: Shape) -> Tensor:
        """The model's timesteps, float32 [B] or [B, 2].

        Args:
            timestep: The pipeline's timesteps, [], [B] or [B, S].
            batch: Number of samples B.
            grid: Number of tokens along (frames, height, width).

        Raises:
            ValueError: The shape is another one, or tokens other than those of the first frame differ. On a GPU, the
                next call or `finish` raises the latter.
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
            own = height * width if self._per_sample == 2 else 0  # tokens whose timestep may differ from the rest
            self._check_later(timestep[:, :own], timestep[:, own:])
            first, others = timestep[:, 0], timestep[:, -1]
        return (torch.stack((first, others), dim=1) if self._per_sample == 2 else others).to(torch.float32)

    def _check_later(self, *parts: Tensor) -> None:
        """Checks that all tokens of each part, [B, *], have the same timestep: on the CPU at once, on a GPU later."""
        even = torch.stack([(part == part[:, :1]).all() for part in parts]).all()
        self._pending = HostCopy(even)
        if not even.is_cuda:
            self.finish()

    def forget(self) -> None:
        """Drops the pending check of the last call."""
        self._pending = None

    def finish(self) -> None:
        """Reads the result of the last call's check; raises as a call does."""
        pending, self._pending = self._pending, None
        if pending is not None and not bool(pending.wait()):
            rule = (
                "the tokens of the first latent frame must have one timestep, and all others one"
                if self._per_sample == 2
                else "this model has one timestep for all of them"
            )
            raise ValueError(f"timestep by token, with other values than a pipeline's: {rule}; give it as [B]")
