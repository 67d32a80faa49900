# SPDX-License-Identifier: Apache-2.0
"""`routes` and `text_length` that change under a call: the output is undefined, but the call ends and stays inside."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

#: Of a process: a call that hangs would keep its own for ever.
TIMEOUT_S = 120
SCRIPT = """
    import sys, threading, types
    from dataclasses import replace
    package = types.ModuleType("here")
    package.__path__ = [{folder!r}]
    sys.modules["here"] = package
    import torch
    from here.kernel_call import POISON, Call, make_inputs
    from here.kernel_check import measure
    from here.kernel_oracle import Case
    from vorta_trt.plugins import load_library

    head_dim, family, precision, seed = {head_dim}, {family!r}, {precision!r}, {seed}
    load_library().force_kernels(family)
    routes = tuple(tuple((sample + head) % 3 for head in range(5)) for sample in range(3))
    case = Case(
        "moving", {grid}, (4, 8, 8), (1, 3, 3), (2, 3, 2), 6, routes, (100, 300, 0), 300, "key",
        head_dim=head_dim, precision=precision,
    )
    call = Call(case, make_inputs(case, seed))
    inputs = [tensor.clone() for tensor in call.inputs]
    room = 1 << 16  # elements before and behind the output
    whole = torch.full((call.output.numel() + 2 * room,), 7.0, dtype=call.output.dtype, device="cuda")
    call.output = whole[room:-room].view(call.output.shape)
    call.tensors.output = call.output.data_ptr()
    call.enqueue()
    torch.cuda.synchronize()

    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape, low, high: torch.randint(low, high, shape, generator=generator, dtype=torch.int32).pin_memory()
    others = [draw((3, 5), -1, 4) for _ in range(61)] + [torch.full((3, 5), r).int().pin_memory() for r in range(3)]
    lengths = [draw((3,), -5, 400) for _ in range(64)]
    stop = threading.Event()

    def move():  # the copy engine needs no processor, all of which the kernels have
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for turn in range(10**9):
                if stop.is_set():
                    break
                call.routes.copy_(others[turn % 64], non_blocking=True)
                call.lengths.copy_(lengths[turn * 7 % 64], non_blocking=True)
                if turn % 16 == 0:
                    side.synchronize()

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for turn in range({calls}):
            if turn % 4 == 0:
                call.workspace.fill_(POISON if turn % 8 else 0x7f)  # lists that nobody writes are no token ids
            call.enqueue()
            if turn % 8 == 0:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
    finally:
        stop.set()
        thread.join()
    assert (whole[:room] == 7).all() and (whole[-room:] == 7).all(), "written outside the output"
    assert (call.guard == POISON).all(), "written behind the workspace"
    for tensor, before in zip(call.inputs, inputs):
        assert torch.equal(tensor.nan_to_num(), before.nan_to_num()), "an input was written"
    # And the next call is right again.
    call.routes.copy_(torch.tensor(case.routes))
    call.lengths.copy_(torch.tensor(case.lengths))
    call.poison()
    call.enqueue()
    torch.cuda.synchronize()
    if precision == "same":
        for branch, errors in measure(call).items():
            assert errors["rms_error"] <= 2 * errors["torch_rms_error"], (branch, errors)
    print("ended")
"""


@pytest.mark.parametrize("grid", [(8, 24, 32), (9, 22, 31)], ids=["whole", "ragged"])
@pytest.mark.parametrize(
    ("head_dim", "family", "precision"),
    [
        *((128, "", "same"), (64, "", "same"), (128, "sm80", "same"), (80, "", "same")),
        *((128, "", "fp8"), (64, "", "fp8"), (128, "sm89_fp8", "fp8"), (64, "sm89_fp8", "fp8")),
    ],
)
def test_calls_end_and_stay_inside(
    head_dim: int, family: str, precision: str, grid: tuple[int, int, int], seed: int
) -> None:
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 attention needs a GPU of compute capability 8.9 or newer")
    values = {"head_dim": head_dim, "family": family, "precision": precision, "seed": seed, "calls": 200, "grid": grid}
    script = textwrap.dedent(SCRIPT).format(folder=str(Path(__file__).parent), **values)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert result.stdout.strip() == "ended", result.stderr[-3000:]
