# SPDX-License-Identifier: Apache-2.0
"""Runs a random problem through the C API and judges the output: a float64 oracle, torch's own error, guards.

Everything stays on the GPU: `Judge.run` gives one row of numbers, which `faults` reads on the host later.

Letters: B batch, S video tokens, T padded text tokens, L = S + T, N heads, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vorta_trt.plugins import LibraryError, Problem, Status, Tensors, load_library

from . import mask_oracle
from .random_problems import GUARD, RandomProblem, make_values, place

WORKSPACE_GUARD = 4096
BRANCHES = ("full", "coreset", "sliding")
#: Two similarities closer than this may be ranked either way: they are rounded to float32.
NEAR_TIE = 1e-6
COUNTS = ("not finite", "padding not 0", "output guard", "workspace guard", "coreset lists")
FIGURES = ("rows", "rms", "max", "torch_rms", "torch_max", "rounding_rms", "rounding_max", "relative")
#: Forced family of kernels, "" for the GPU's own, and precision.
RUNS = (("", "same"), ("sm80", "same"), ("", "fp8"), ("sm89_fp8", "fp8"))
#: Relative error of a head in 8 bits where the inputs are mild.
FP8_LIMIT = 0.06
#: Queries this many times as large make logits of thousands, which float32 has to 1e-4 or worse. The kernels sum
#: weights before they round them, so the largest weight, 1 but for that error, can be a step of float16 off its sum,
#: where torch, which subtracts the maximum first, has exactly 1. Half a step more is rounding, there.
HUGE = 1000.0
#: A kernel may err this many times as much as torch does, or as rounding the exact result to its type does.
FACTOR = 2.0
#: All limits are this many times as high where the error is that of a few different rows: ours and torch's then
#: compare two single draws. Of 10,000 problems 3 were up to 1.35 times above the usual limits, all of this kind.
FEW_ROWS = 1.5


def runs_of(problem: RandomProblem) -> list[tuple[str, str]]:
    """Families and precisions to run: forced families only where there is a choice, 8 bits where they can be right."""
    fast = problem.head_dim in (64, 128)
    return [
        (family, precision)
        for family, precision in RUNS
        if (fast or not family) and (precision == "same" or (fast and (problem.mild or problem.poison)))
    ]


class Judge:
    """One problem in device memory, with its expected output."""

    def __init__(self, problem: RandomProblem, given: RandomProblem | None = None) -> None:
        """`given` is a mutated problem that the kernels get in place of `problem`; the judge has to find it."""
        self.problem = problem
        self.given = given or problem
        self.placed = {name: place(problem, name) for name in ("query", "key", "value", "output")}
        for name, values in zip(("query", "key", "value"), make_values(problem), strict=True):
            tensor = self.placed[name].tensor
            for axis in problem.layouts[name].repeated:  # where one entry stands for all
                tensor, values = tensor.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
            tensor.copy_(values)
        self.inputs = tuple(self.placed[name].tensor.transpose(1, 2) for name in ("query", "key", "value"))
        self.routes = torch.tensor(problem.routes, device="cuda")  # [B, N]
        self.branch = torch.where((self.routes == 1) | (self.routes == 2), self.routes, 0)
        self.clamped = torch.tensor(problem.lengths, device="cuda").clamp(0, problem.pattern.text)  # [B]
        self.expected: tuple[Tensor, ...] | None = None

    def call(self, precision: str) -> tuple[dict[str, Any], dict[str, Any], Tensor, list[Tensor]]:
        """Arguments of the C API, the workspace with its guard, and what must stay alive."""
        given, pattern = self.given, self.given.pattern
        problem = {
            "dtype": given.dtype, "batch": given.batch, "heads": given.heads, "head_dim": given.head_dim,
            "grid": pattern.grid, "tile": pattern.tile, "window": pattern.window, "bucket": pattern.bucket,
            "keep": pattern.keep, "coreset_keys": given.coreset_keys, "text_tokens": pattern.text,
            "scale": given.scale, "attention_precision": precision,
        }  # fmt: skip
        size = load_library().workspace_size(Problem(**problem))
        workspace = torch.full((size + WORKSPACE_GUARD,), 0xFF, dtype=torch.uint8, device="cuda")
        routes = torch.tensor(given.routes, dtype=torch.int32, device="cuda")
        lengths = torch.tensor(given.lengths, dtype=torch.int32, device="cuda")
        tensors = {
            **{name: placed.tensor.data_ptr() for name, placed in self.placed.items()},
            **{f"{name}_stride": placed.tensor.stride()[:3] for name, placed in self.placed.items()},
            "routes": routes.data_ptr(),
            "text_length": lengths.data_ptr() if pattern.text else None,
            "workspace": workspace.data_ptr(),
            "workspace_bytes": size,
        }
        return problem, tensors, workspace, [routes, lengths]

    def run(self, family: str, precision: str) -> Tensor | None:
        """A row of COUNTS and, branch by branch, FIGURES; None if this GPU has no such kernels."""
        library = load_library()
        library.force_kernels(family)
        problem, tensors, workspace, _ = self.call(precision)
        try:
            library.enqueue(Problem(**problem), Tensors(**tensors), torch.cuda.current_stream().cuda_stream)
        except LibraryError as error:
            if error.status is Status.UNSUPPORTED:
                return None
            raise
        finally:
            library.force_kernels("")
        lists = self.lists(workspace)
        if self.expected is None:
            self.expected = self.expect(*lists[:2])
        output = self.placed["output"]
        row = self.judge(output.tensor.transpose(1, 2))  # [B, N, L, D]
        row[2] = ~output.untouched()
        row[3] = (workspace[-WORKSPACE_GUARD:] != 0xFF).sum()
        row[4] = lists[2]
        return row

    def lists(self, workspace: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kept queries and keys of all heads, bool [B, N, S], and in how many buckets they are wrong."""
        problem, pattern = self.problem, self.problem.pattern
        coreset = mask_oracle.coreset_of(pattern, "cuda")
        token = torch.arange(pattern.video, device="cuda")
        centres = token == coreset.centre  # [S]
        kept = int(coreset.keep[centres].sum())
        heads = problem.batch * problem.heads
        masks, offset = [], 0
        counts = (kept, pattern.video - kept) + ((kept,) if problem.coreset_keys == "key" else ())
        on_coreset = self.branch.flatten() == 1  # [B N]
        for count in counts:
            bytes_ = 4 * heads * count
            if offset + bytes_ > len(workspace):  # a mutation laid out less, and has to be found
                workspace = functional.pad(workspace, (0, offset + bytes_ - len(workspace)))
            entries = workspace[offset : offset + bytes_].view(torch.int32).view(heads, count)
            offset += (bytes_ + 255) // 256 * 256
            entries = torch.where(on_coreset[:, None], entries, 0).long().clamp(0, pattern.video - 1)
            mask = torch.zeros(heads, pattern.video, dtype=torch.bool, device="cuda")
            masks.append(mask.scatter_(1, entries, True))
        keys = masks[2] if len(masks) == 3 else masks[0]
        wrong = (masks[0] == masks[1])[on_coreset].sum()  # kept and dropped make up everything
        for mask, tensor in ((masks[0], self.inputs[0]), (keys, self.inputs[1 if len(masks) == 3 else 0])):
            tokens = tensor.flatten(0, 1)[on_coreset, : pattern.video]  # [n, S, D]
            ours, theirs = mask[on_coreset], mask_oracle.kept_tokens(pattern, tokens)
            similarity = mask_oracle.similarities(pattern, tokens)
            buckets = (len(tokens), int(coreset.bucket.max()) + 1)
            index = coreset.bucket.expand(len(tokens), -1)
            high = torch.full(buckets, -math.inf, dtype=torch.float64, device="cuda")
            low = torch.full(buckets, math.inf, dtype=torch.float64, device="cuda")
            high.scatter_reduce_(1, index, torch.where(ours & ~theirs, similarity, -math.inf), "amax")
            low.scatter_reduce_(1, index, torch.where(theirs & ~ours, similarity, math.inf), "amin")
            kept_of_bucket = torch.zeros(buckets, dtype=torch.long, device="cuda").scatter_add_(1, index, ours.long())
            wrong = wrong + (high - low > NEAR_TIE).sum() + (kept_of_bucket != coreset.keep[centres][None]).sum()
        shape = problem.batch, problem.heads, pattern.video
        return masks[0].view(shape), keys.view(shape), wrong

    def expect(self, kept_queries: Tensor, kept_keys: Tensor) -> tuple[Tensor, ...]:
        """The exact output, and what a verdict needs besides.

        This is: rows of padding, rows that NaN and infinity may reach, heads of each branch, rows to judge, entries of
        each branch, norm of each head, and a verdict whose figures of torch and of rounding are filled in.
        """
        problem, pattern, video = self.problem, self.problem.pattern, self.problem.pattern.video
        place = torch.arange(problem.length, device="cuda")
        valid = place < video + self.clamped[:, None]  # [B, L]
        mask = torch.ones(problem.batch, problem.heads, problem.length, problem.length, dtype=torch.bool, device="cuda")
        mask[..., :video, :video] &= (self.branch != 2)[..., None, None] | mask_oracle.sliding_mask(pattern, "cuda")
        mask[..., :video] &= (self.branch != 1)[..., None, None] | kept_keys[:, :, None, :]
        mask &= valid[:, None, None, :]
        mask |= ~valid[:, None, :, None]  # rows of padding see anything: they count for nothing
        bad = [~tensor.isfinite().all(-1) for tensor in self.inputs]  # [B, N, L]
        touched = bad[0] | (mask & (bad[1] | bad[2])[:, :, None, :]).any(-1)
        query, key, value = (tensor.nan_to_num(0.0, 0.0, 0.0).contiguous() for tensor in self.inputs)
        exact = mask_oracle.attend(query, key, value, mask, problem.used_scale)
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            by_torch = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=problem.used_scale
            ).double()
        centre = mask_oracle.coreset_of(pattern, "cuda").centre
        copied = (self.branch == 1)[..., None] & ~kept_queries  # [B, N, S]
        for tensor in (exact, by_torch):
            tensor[:, :, :video] = torch.where(copied[..., None], tensor[:, :, centre], tensor[:, :, :video])
        touched[:, :, :video] = torch.where(copied, touched[:, :, centre], touched[:, :, :video])
        padding = (~valid)[:, None, :].expand_as(touched)
        judged = ~padding & ~touched  # [B, N, L]
        heads = torch.stack([self.branch == branch for branch in range(3)])  # [3, B, N]
        count = (judged.sum(-1) * heads).sum((1, 2))  # [3], rows of each branch
        rows = (count * exact.shape[-1]).clamp(min=1)  # entries
        base = torch.zeros(len(COUNTS) + len(BRANCHES) * len(FIGURES), dtype=torch.float64, device="cuda")
        figures = base[len(COUNTS) :].view(len(BRANCHES), len(FIGURES))
        figures[:, 0] = count
        rounded = exact.to(problem.torch_dtype).double()
        if problem.magnitude >= HUGE:
            kind = torch.finfo(problem.torch_dtype)
            step = exact.abs().clamp(min=kind.smallest_normal).log2().floor().exp2() * kind.eps
            rounded += torch.where(rounded < exact, -step, step) / 2
        for at, values in ((3, by_torch), (5, rounded)):
            squares, largest, _ = self.errors(values - exact, judged, heads)
            figures[:, at] = (squares / rows).sqrt()
            figures[:, at + 1] = largest
        norm = torch.where(judged[..., None], exact, 0.0).square().sum((-1, -2)).sqrt().clamp(min=1e-30)  # [B, N]
        return exact, padding, touched, heads, judged, rows, norm, base

    def judge(self, output: Tensor) -> Tensor:
        assert self.expected is not None
        exact, padding, _, heads, judged, rows, norm, base = self.expected
        row = base.clone()
        row[0] = (judged & ~output.isfinite().all(-1)).sum()
        row[1] = (padding & (output != 0).any(-1)).sum()
        squares, largest, of_head = self.errors(output.double() - exact, judged, heads)
        figures = row[len(COUNTS) :].view(len(BRANCHES), len(FIGURES))
        figures[:, 1] = (squares / rows).sqrt()
        figures[:, 2] = largest
        figures[:, 7] = torch.where(heads, of_head.sqrt() / norm, 0.0).amax((1, 2))
        return row

    @staticmethod
    def errors(error: Tensor, judged: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of squares and largest error of each branch [3], and the sum of squares of each head [B, N]."""
        error = torch.where(judged[..., None], error, 0.0).nan_to_num(1e30, 1e30, -1e30)
        of_head = error.square().sum((-1, -2))  # [B, N]
        largest = error.abs().amax((-1, -2))  # [B, N]
        return torch.where(heads, of_head, 0.0).sum((1, 2)), torch.where(heads, largest, 0.0).amax((1, 2)), of_head


def faults(row: list[float], precision: str, limit: float, few_rows: bool = False) -> list[str]:
    """What is wrong with a run, in words.

    Args:
        row: Row that `Judge.run` returned.
        precision: "same" or "fp8".
        limit: Largest relative error that 8 bits may have.
        few_rows: See `RandomProblem.few_rows`.
    """
    room = FEW_ROWS if few_rows else 1.0
    found = [f"{name}: {int(count)}" for name, count in zip(COUNTS, row, strict=False) if count]
    for branch, name in enumerate(BRANCHES):
        at = len(COUNTS) + branch * len(FIGURES)
        figures = dict(zip(FIGURES, row[at : at + len(FIGURES)], strict=True))
        if precision == "fp8":
            if figures["relative"] > room * limit:
                found.append(f"{name}: relative error {figures['relative']:.4f}")
            continue
        for kind in ("rms", "max"):
            allowed = room * FACTOR * max(figures[f"torch_{kind}"], figures[f"rounding_{kind}"])
            if figures[kind] > allowed:
                found.append(f"{name}: {kind} error {figures[kind]:.3g}, allowed {allowed:.3g}")
    return found


def refusal(problem: RandomProblem) -> str:
    """Gives the kernels a problem with a mistake; says what went wrong, or "" if they refused it as they should."""
    judge = Judge(problem)
    arguments, tensors, workspace, alive = judge.call("same")
    changes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "even window": ({"window": (1, 2, 3)}, {}),
        "window 0": ({"window": (1, 0, 3)}, {}),
        "tile 0": ({"tile": (0, 1, 1)}, {}),
        "keep 0": ({"keep": 0}, {}),
        "keep above bucket": ({"keep": math.prod(problem.pattern.bucket) + 1}, {}),
        "bucket of 65": ({"bucket": (5, 13, 1), "keep": 1}, {}),
        "negative text": ({"text_tokens": -1}, {}),
        "scale": ({"scale": math.nan}, {}),
        "head_dim": ({"head_dim": problem.head_dim + 4}, {}),
        "dtype": ({"dtype": 2}, {}),
        "struct size": ({"struct_size": 8}, {}),
        "no query": ({}, {"query": None}),
        "no routes": ({}, {"routes": None}),
        "misaligned key": ({}, {"key": tensors["key"] + 8}),
        "output is query": ({}, {"output": tensors["query"], "output_stride": tensors["query_stride"]}),
        "stride not of 16 bytes": ({}, {"value_stride": (4, 4, 4)}),
        "negative stride": ({}, {"query_stride": (-8, -8, -8)}),
        "output rows overlap": ({}, {"output_stride": (0, 0, 0)}),
        "little workspace": ({}, {"workspace_bytes": tensors["workspace_bytes"] - 1}),
        "misaligned workspace": ({}, {"workspace": tensors["workspace"] + 64}),
    }
    in_problem, in_tensors = changes[problem.mistake]
    if in_tensors and problem.batch * problem.length * problem.heads == 1 and "stride" in next(iter(in_tensors)):
        return ""  # strides of one row count for nothing
    wrong_problem = Problem(**{**arguments, **{k: v for k, v in in_problem.items() if k != "struct_size"}})
    if "struct_size" in in_problem:
        wrong_problem.struct_size = 8
    try:
        load_library().enqueue(wrong_problem, Tensors(**{**tensors, **in_tensors}), 0)
        said = "was not refused"
    except LibraryError as error:
        said = "" if error.status is Status.INVALID_ARGUMENT else f"status {error.status.name}"
    torch.cuda.synchronize()
    written = bool((judge.placed["output"].memory != GUARD).any() or (workspace != 0xFF).any())
    del alive
    return said + (" but something was written" if written else "")
