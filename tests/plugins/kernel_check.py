# SPDX-License-Identifier: Apache-2.0
"""A call against the oracle: at most twice the error that torch's attention makes in the same dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernel_call import Call, make_inputs
from .kernel_oracle import CORESET, FULL, SLIDING, Case, Selection, check_selection, expected

BRANCHES = {FULL: "full", CORESET: "coreset", SLIDING: "sliding"}


def check_coreset(call: Call, sample: int, head: int) -> tuple[Selection, int]:
    """The kernels' coreset of a head, once it is shown to be right; and how many near ties it has."""
    selection = call.selection(sample, head)
    query, key = (tensor[sample, : call.case.video, head] for tensor in call.inputs[:2])
    return selection, check_selection(call.case, selection, query, key)


def measure(call: Call) -> dict[str, dict[str, float]]:
    """Per branch: largest and root-mean-square error, and torch's. Asserts what holds for every output."""
    case, output = call.case, call.output
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    ties = dict.fromkeys(BRANCHES.values(), 0)
    nothing = torch.empty(0, dtype=torch.long, device="cuda")
    for sample in range(case.batch):
        valid = case.valid(sample)
        assert output[sample, :valid].isfinite().all(), f"{case}: output of sample {sample} is not finite"
        assert (output[sample, valid:] == 0).all(), f"{case}: padded text of sample {sample} is not 0"
        for head, route in enumerate(case.routes[sample]):
            branch = BRANCHES.get(route, "full")
            selection = Selection(nothing, nothing, nothing)
            if route == CORESET:
                selection, tied = check_coreset(call, sample, head)
                ties[branch] += tied
            exact, by_torch = expected(case, sample, head, call.inputs, selection)
            found.setdefault(branch, []).append((exact, by_torch, output[sample, :, head]))
    report = {}
    for branch, heads in found.items():
        exact, by_torch, ours = (torch.stack([head[i] for head in heads]).double() for i in range(3))
        errors, torch_errors = ours - exact, by_torch - exact
        report[branch] = {
            "max_error": errors.abs().max().item(),
            "torch_max_error": torch_errors.abs().max().item(),
            "rms_error": errors.square().mean().sqrt().item(),
            "torch_rms_error": torch_errors.square().mean().sqrt().item(),
            "near_ties": ties[branch],
        }
    return report


def check(case: Case, seed: int, record: Callable[[str, Any], None]) -> Call:
    call = Call(case, make_inputs(case, seed))
    call.enqueue()
    torch.cuda.synchronize()
    for branch, errors in measure(call).items():
        record(f"{case}-{branch}", errors)
        assert errors["rms_error"] <= 2 * errors["torch_rms_error"], f"{case} {branch}: {errors}"
        assert errors["max_error"] <= 2 * errors["torch_max_error"], f"{case} {branch}: {errors}"
    return call
