# SPDX-License-Identifier: Apache-2.0
"""`FiniteCheck`: stops a run at a sample that is not finite. The error names the step and, if it is found, the layer.

The check is one reduction per sample. On a GPU nothing waits for it: the count is copied to the host while the GPU
works on, and is read when the next sample comes, or in `finish`. So on a GPU the run stops one step late, but the error
names the step that went wrong.
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
"""Runs the transformer on a step's inputs again, and says where the values became non-finite.

See `locate_non_finite`.
"""

UNLOCATED = (
    "to find the layer, run it in ONNX Runtime or torch: build the bundle with --keep-onnx, or give the .onnx file; "
    f"with --tau {DENSE_TAU:g} every head is dense, which tells whether a sparse branch is to blame; in fp16, large "
    "activations overflow: use bf16"
)


class NonFiniteError(VortaError):
    """A sample with values that are not finite.

    Attributes:
        step: Index of the step.
        timestep: Timestep of the step.
        context: Name of the pass, such as "cond" or "uncond".
        share: Share of the sample's values that are not finite, from 0 to 1.
        place: In words, where the values became non-finite, or how to find out.
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
    """An asynchronous copy of a small tensor to the host; nothing waits for it until `wait` is called."""

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
    """Checks the samples of one request, one after the other; `finish` checks the last one.

    Args:
        locate: Finds the layer; with None, the error says how to find it.
    """

    def __init__(self, locate: Locate | None = None) -> None:
        self._locate = locate
        self._pending: tuple[HostCopy, Callable[[int], NonFiniteError]] | None = None

    def __call__(
        self, sample: Tensor, step: int, timestep: float, context: str = "cond", inputs: Inputs | None = None
    ) -> None:
        """Checks this sample, or on a GPU the previous one.

        Args:
            sample: The sample, of any shape.
            step: Index of the step.
            timestep: Timestep of the step.
            context: Name of the pass, such as "cond" or "uncond".
            inputs: The transformer's inputs at this step, by name, for `locate`. They are kept until the next call, not
                copied.

        Raises:
            NonFiniteError: The checked sample has values that are not finite.
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
