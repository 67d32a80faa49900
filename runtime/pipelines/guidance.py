# SPDX-License-Identifier: Apache-2.0
"""`GuidanceBatching`: both contexts of classifier-free guidance in one launch of twice the batch.

diffusers' pipelines call the transformer twice per step, "cond" and then "uncond", with the same latents and timestep.
In the first step both are launched, and the conditions of the second are kept. From then on the call for "cond"
launches both and keeps the other half, which the call for "uncond" takes, if and only if it comes with the very same
tensors (see `Snapshot`): latents, timestep and conditions. So P steps are P + 1 launches instead of 2 P.

Whatever does not come as expected, or does not fit into memory, is launched on its own, counted as a fallback, and ends
the batching of the request: another guess would cost another half launch for nothing.

A launch of twice the batch adds up in another order: samples are equal but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vorta_trt.runtime.device.device_memory import DeviceOutOfMemory
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.pipelines.inputs import STEP_INPUTS
from vorta_trt.runtime.pipelines.snapshot import Snapshot
from vorta_trt.runtime.sampling.step_state import COND, UNCOND

Given = Mapping[str, Tensor | None]  # the pipeline's tensors, by name
Inputs = dict[str, Tensor]  # the model's
Launch = Callable[[Inputs, str], Tensor]  # of some inputs, for the named context: the sample
KIND = "batched guidance"
BOTH = f"{COND} + {UNCOND}"


class GuidanceBatching:
    """Of one request at a time.

    Args:
        convert: from the pipeline's tensors to the model's inputs. launch: runs those.
        fallbacks: counts what does not run batched.
        active: False launches every context on its own.
    """

    def __init__(
        self, convert: Callable[[Given, str], Inputs], launch: Launch, fallbacks: Fallbacks, active: bool
    ) -> None:
        self._convert, self._launch, self._fallbacks, self._allowed = convert, launch, fallbacks, active
        self.reset()

    def reset(self) -> None:
        """A new request: nothing is known of its conditions."""
        self._active = self._allowed
        self._uncond: tuple[Snapshot, Inputs] | None = None
        self._waiting: tuple[Snapshot, Tensor] | None = None

    def sample(self, context: str, given: Given) -> Tensor:
        """The sample of a call of the transformer, from a launch or from the one before."""
        inputs = self._convert(given, context)
        if not self._active or context not in (COND, UNCOND):
            return self._launch(inputs, context)
        return self._cond(given, inputs) if context == COND else self._uncond_sample(given, inputs)

    def _cond(self, given: Given, inputs: Inputs) -> Tensor:
        if self._waiting is not None:
            self._give_up("the unconditional sample of the step before was not asked for")
        if not self._active or self._uncond is None:
            return self._launch(inputs, COND)
        _, other = self._uncond
        if any(other[name].shape != inputs[name].shape for name in other):
            self._give_up("the conditions of both samples differ in shape")
            return self._launch(inputs, COND)
        other = {**inputs, **other}  # latents and timestep are the same
        both = {name: torch.cat((inputs[name], other[name])) for name in inputs}  # [2 B, ...]
        try:
            cond, uncond = self._launch(both, BOTH).chunk(2)  # [B, C, F, H, W] each
        except (DeviceOutOfMemory, torch.OutOfMemoryError) as error:
            self._give_up(str(error))
            return self._launch(inputs, COND)
        self._waiting = Snapshot(_of_step(given)), uncond
        return cond

    def _uncond_sample(self, given: Given, inputs: Inputs) -> Tensor:
        conditions = {name: tensor for name, tensor in given.items() if name not in STEP_INPUTS}
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._uncond is not None:
            if waiting[0].same(_of_step(given)) and self._uncond[0].same(conditions):
                return waiting[1]
            self._give_up("the unconditional sample was asked for with other tensors than expected")
        elif self._uncond is None:
            converted = {name: tensor for name, tensor in inputs.items() if name not in STEP_INPUTS}
            self._uncond = Snapshot(conditions), converted
        return self._launch(inputs, UNCOND)

    def _give_up(self, reason: str) -> None:
        self._active, self._waiting = False, None
        self._fallbacks.record(KIND, reason)


def _of_step(given: Given) -> Given:
    return {name: given[name] for name in STEP_INPUTS}
