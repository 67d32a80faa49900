# SPDX-License-Identifier: Apache-2.0
"""`FiniteCheck`: samples that are not finite stop the run, with the step and, where it can be found, the layer.

One reduction per sample. On a GPU nothing waits for it: the count goes to the host while the GPU works on, and is
looked at when the next sample comes, or in `finish`. So the run stops one step late there; the error names the step
that went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from vorta_trt.model.constants import DENSE_TAU
from vorta_trt.plugins.errors import VortaError

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, Any]
Locate = Callable[[Inputs], str]
"""Runs the transformer's inputs of the step again and says where it began; see `locate_non_finite`."""

UNLOCATED = (
    "to find the layer, run it in ONNX Runtime or torch: build the bundle with --keep-onnx, or give the .onnx file; "
    f"with --tau {DENSE_TAU:g} every head is dense, which tells whether a sparse branch is to blame; in fp16, large "
    "activations overflow: use bf16"
)


class NonFiniteError(VortaError):
    """A sample with values that are not finite.

    Attributes:
        step: Its index.
        timestep: Of the step.
        context: Of the step.
        share: Of the sample's values.
        place: Where it began, in words.
    """

    def __init__(self, step: int, timestep: float, context: str, share: float, place: str) -> None:
        super().__init__(
            f"step {step}, timestep {timestep:g}, context {context!r}: {100 * share:.3g} % of the sample's values are "
            f"not finite, so the run was stopped; {place}"
        )
        self.step, self.timestep, self.context, self.share, self.place = step, timestep, context, share, place


class NonFiniteVideoError(VortaError):
    """A video, or the latents that it is decoded from, with values that are not finite."""


class HostCopy:
    """A small tensor on its way to the host; the GPU works on, and nobody waits before the values are asked for."""

    def __init__(self, tensor: Tensor) -> None:
        import torch

        self._arrived: Any = None  # a CUDA event
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))
        else:
            self._tensor = tensor.detach().clone()

    def wait(self) -> Tensor:
        """The tensor on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


class FiniteCheck:
    """Checks the samples of one request, in turn; `finish` checks the last one.

    Args:
        locate: Finds the layer; None says how to find it.
    """

    def __init__(self, locate: Locate | None = None) -> None:
        self._locate = locate
        self._pending: tuple[HostCopy, Callable[[int], NonFiniteError]] | None = None

    def __call__(
        self, sample: Tensor, step: int, timestep: float, context: str = "cond", inputs: Inputs | None = None
    ) -> None:
        """Checks a sample, or on a GPU the one before.

        Args:
            sample: Any shape.
            step: Its number.
            timestep: Of the step.
            context: Of the step.
            inputs: Of the transformer at this step, by name, for `locate`; kept, not copied, until the next call.

        Raises:
            NonFiniteError: The sample has values that are not finite.
        """
        import torch

        self.finish()
        values, locate = sample.numel(), self._locate
        if locate is None or inputs is None:
            place: Callable[[], str] = lambda: UNLOCATED  # noqa: E731
        else:
            place = partial(locate, inputs)
        self._pending = (
            HostCopy((~torch.isfinite(sample)).sum()),
            lambda found: NonFiniteError(step, timestep, context, found / values, place()),
        )
        if not sample.is_cuda:
            self.finish()

    def finish(self) -> None:
        """Checks the sample that is still on its way, if there is one."""
        pending, self._pending = self._pending, None
        if pending is not None and (found := int(pending[0].wait())):
            raise pending[1](found)
