# SPDX-License-Identifier: Apache-2.0
"""Inputs for the kernels and calls of them through the C API; what must not be read or kept is poisoned."""

from __future__ import annotations

import torch
from torch import Tensor

from vorta_trt.plugins import CORESET_KEYS, DTYPES, Problem, Tensors, load_library

from .kernel_oracle import Case, Selection

Inputs = tuple[Tensor, Tensor, Tensor]

#: Bytes of NaN in float16 and bfloat16, of -1 in int32.
POISON = 0xFF


def empty(case: Case, copies: int = 1) -> list[Tensor]:
    """`copies` uninitialised [B, S+T, N, D] tensors in the case's memory layout."""
    shape = (case.batch, case.video + case.text, case.heads, case.head_dim)
    options = {"dtype": case.torch_dtype, "device": "cuda"}
    if case.layout == "fused":  # slices of one projection
        return list(torch.empty(*shape[:2], copies, *shape[2:], **options).unbind(2))
    if case.layout == "heads_first":
        return [torch.empty(shape[0], shape[2], shape[1], shape[3], **options).transpose(1, 2) for _ in range(copies)]
    if case.layout == "padded_rows":  # 16 elements between the heads, 8 more between tokens
        return [
            torch.empty(*shape[:2], shape[2] * (shape[3] + 16) + 8, **options)[..., :-8]
            .unflatten(2, shape[2:3] + (-1,))[..., : shape[3]]
            for _ in range(copies)
        ]  # fmt: skip
    return [torch.empty(shape, **options) for _ in range(copies)]


def make_inputs(case: Case, seed: int) -> Inputs:
    """Random query, key, value; rows of padded text are NaN, because nobody may read them."""
    generator = torch.Generator("cuda").manual_seed(seed)
    query, key, value = empty(case, 3)
    for tensor in (query, key, value):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, device="cuda"))
        for sample in range(case.batch):
            tensor[sample, case.valid(sample) :] = float("nan")
    query *= case.magnitude
    if case.layout == "shared_keys":  # one key and value head for all
        key, value = (tensor[:, :, :1].expand(query.shape) for tensor in (key, value))
    return query, key, value


def make_problem(case: Case) -> Problem:
    return Problem(
        dtype=DTYPES[case.dtype], batch=case.batch, heads=case.heads, head_dim=case.head_dim, grid=case.grid,
        tile=case.tile, window=case.window, bucket=case.bucket, keep=case.keep,
        coreset_keys=CORESET_KEYS[case.coreset_keys], text_tokens=case.text, scale=0.0,
    )  # fmt: skip


class Call:
    """One problem with its device memory; `enqueue` may be repeated and captured."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case
        self.inputs = inputs
        self.problem = make_problem(case)
        self.routes = torch.tensor(case.routes, dtype=torch.int32, device="cuda")  # [B, N]
        self.lengths = torch.tensor(case.lengths, dtype=torch.int32, device="cuda") if case.text else None  # [B]
        self.output = empty(case)[0]  # [B, S+T, N, D]
        size = load_library().workspace_size(self.problem)
        self.workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        self.poison()
        self.tensors = Tensors(
            **{
                name: tensor.data_ptr()
                for name, tensor in zip(("query", "key", "value", "output"), (*inputs, self.output), strict=True)
            },
            **{
                f"{name}_stride": tensor.stride()[:3]
                for name, tensor in zip(("query", "key", "value", "output"), (*inputs, self.output), strict=True)
            },
            routes=self.routes.data_ptr(),
            text_length=None if self.lengths is None else self.lengths.data_ptr(),
            workspace=self.workspace.data_ptr(),
            workspace_bytes=size,
        )

    def poison(self) -> None:
        self.output.fill_(float("nan"))
        self.workspace.fill_(POISON)

    def enqueue(self) -> Tensor:
        load_library().enqueue(self.problem, self.tensors, torch.cuda.current_stream().cuda_stream)
        return self.output

    def selection(self, sample: int, head: int) -> Selection:
        """The coreset that the kernels left in the workspace (plugins/kernels/workspace.h)."""
        case = self.case
        bucket = case.bucket[0] * case.bucket[1] * case.bucket[2]
        buckets = case.video // bucket
        words = self.workspace.view(torch.int32)
        lists, start = [], 0
        for width in (case.keep, bucket - case.keep, *((case.keep,) if case.coreset_keys == "key" else ())):
            count = case.batch * case.heads * buckets * width
            rows = words[start : start + count].view(case.batch, case.heads, buckets, width)
            lists.append(rows[sample, head].long())  # [G, width]
            start += (count + 63) // 64 * 64  # lists start at multiples of 256 bytes
        return Selection(lists[0], lists[1], lists[-1] if case.coreset_keys == "key" else lists[0])
