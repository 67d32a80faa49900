# SPDX-License-Identifier: Apache-2.0
"""CUDA errors belong to the call that made them: it reports them, and nobody finds them afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vorta_trt.plugins import LibraryError, Status, load_library

from .kernel_call import Call, make_inputs
from .kernel_cases import TEXT
from .kernel_oracle import Case

pytestmark = pytest.mark.gpu

CASES = [replace(TEXT, head_dim=d) for d in (64, 96, 128)]


def enqueue_on_the_legacy_stream(call: Call) -> None:
    """Fails while a graph is captured: the stream would have to wait for the capture."""
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="global")
        try:
            load_library().enqueue(call.problem, call.tensors, 0)
        finally:
            with pytest.raises(RuntimeError):  # the capture is lost
                graph.capture_end()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("family", ["", "sm80"])
def test_a_failed_call_leaves_no_error_behind(case: Case, family: str, seed: int, force_kernels) -> None:  # type: ignore[no-untyped-def]
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
    torch.cuda.cudart().cudaHostUnregister(64)  # fails, and nobody asks how
    call.poison()
    assert torch.equal(call.enqueue(), wanted)
