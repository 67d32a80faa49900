# SPDX-License-Identifier: Apache-2.0
"""CUDA errors belong to the call that made them: it reports them, and nobody finds them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vorta_trt.plugins import LibraryError, Status, load_library

from .kernel_call import Call, make_inputs
from .kernel_cases import TEXT
from .kernel_oracle import Case

pytestmark = pytest.mark.gpu

CASES = [replace(TEXT, head_dim=d) for d in (64, 96, 128)]


def enqueue_on_the_legacy_stream(call: Call) -> None:
    """Fails while a stream that waits for it is captured."""
    from cuda.bindings import runtime

    def value(result: tuple[Any, ...]) -> Any:
        assert result[0] == runtime.cudaError_t.cudaSuccess, result
        return result[-1]

    stream = value(runtime.cudaStreamCreate())
    value(runtime.cudaStreamBeginCapture(stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal))
    try:
        load_library().enqueue(call.problem, call.tensors, 0)
    finally:
        assert runtime.cudaStreamEndCapture(stream)[0] != runtime.cudaError_t.cudaSuccess  # the capture is lost
        value(runtime.cudaStreamDestroy(stream))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("family", ["", "sm80"])
def test_a_failed_call_leaves_no_error_behind(
    case: Case, family: str, seed: int, force_kernels: Callable[[str], None]
) -> None:
    force_kernels(family)
    call = Call(case, make_inputs(case, seed))
    wanted = call.enqueue().clone()
    for _ in range(2):
        torch.cuda.synchronize()
        with pytest.raises(LibraryError, match="captured") as caught:
            enqueue_on_the_legacy_stream(call)
        assert caught.value.status is Status.CUDA_ERROR
        call.poison()
        assert torch.equal(call.enqueue(), wanted)  # neither this call nor torch's own find the error
        torch.cuda.synchronize()


def test_an_error_of_somebody_else_is_not_reported_as_ours(seed: int) -> None:
    call = Call(TEXT, make_inputs(TEXT, seed))
    wanted = call.enqueue().clone()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    call.poison()
    assert torch.equal(call.enqueue(), wanted)
