# SPDX-License-Identifier: Apache-2.0
"""Inputs for the kernels and calls of them through the C API. Memory that must not be read or kept is poisoned."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vorta_trt.plugins import Problem, Tensors, load_library

from .attention_inputs import CHARACTERS, realistic
from .kernel_oracle import Case, Selection

Inputs = tuple[Tensor, Tensor, Tensor]

#: Bytes of NaN in float16 and bfloat16, of -1 in int32.
POISON = 0xFF
#: Bytes behind the workspace that nobody may write.
GUARD_BYTES = 4096
#: Head dimensions whose compact keys and values have room in the workspace.
COMPACT_HEAD_DIMS = (64, 128)

#: What a profile adds to the logits of a key, as a function of its token id and its place in the sequence, 0 to 1. The
#: steps of 120 and more, and their sum, exceed 2^127 as weights: nothing may overflow, wherever the softmax begins.
LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ramp": lambda token, place: 60 * place - 30,
    "rising": lambda token, place: 120 * (place * 5).floor() - 240,
    "falling": lambda token, place: 240 - 120 * (place * 5).floor(),
    "first-high": lambda token, place: torch.where(place < 0.1, 240.0, -240.0),
    "last-high": lambda token, place: torch.where(place < 0.96, -240.0, 240.0),
    "alternating": lambda token, place: 240.0 * (token // 100 % 2) - 120,
}
#: First entry of every query under a profile.
PROFILE_QUERY = 16.0


def takes_hopper_kernels(case: Case) -> bool:
    """Whether a call of this problem runs the kernels for Hopper."""
    return (
        case.head_dim in COMPACT_HEAD_DIMS
        and torch.cuda.get_device_capability() == (9, 0)
        and any("90a" in name for name in load_library().cuda_architectures)
        and case.layout != "shared_tokens"  # TMA has no axis along which the address stands still
        and load_library().forced_kernels != "sm80"
    )


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
    """Random query, key, value from attention_inputs.py. Rows of padded text are NaN: no kernel may read them."""
    generator = torch.Generator("cuda").manual_seed(seed)
    query, key, value = tensors = empty(case, 3)
    # A profile sets the logits, so all heads are of one kind.
    characters = ("normal",) if case.profile else CHARACTERS
    for tensor, numbers in zip(tensors, realistic(tuple(query.shape), generator, characters), strict=True):
        tensor.copy_(numbers)
        for sample in range(case.batch):
            tensor[sample, case.valid(sample) :] = float("nan")
    query *= case.magnitude
    if case.profile:
        token = torch.arange(query.shape[1], device="cuda")  # [S+T]
        level = LEVELS[case.profile](token, token / len(token)).float()  # [S+T]
        for sample in range(case.batch):
            valid = case.valid(sample)
            query[sample, :valid, :, 0] = PROFILE_QUERY
            key[sample, :valid, :, 0] = (level[:valid] * math.sqrt(case.head_dim) / PROFILE_QUERY)[:, None]
    if case.layout == "shared_keys":  # one key and value head for all
        key, value = (tensor[:, :, :1].expand(query.shape) for tensor in (key, value))
    if case.layout == "shared_samples":  # all share the sample with the most text, which has no NaN
        longest = max(range(case.batch), key=case.valid)
        key, value = (tensor[longest : longest + 1].expand(query.shape) for tensor in (key, value))
    if case.layout == "shared_tokens":  # one key a head, so that all scores of a row are equal
        key = key[:, :1].expand(query.shape)
    return query, key, value


def make_problem(case: Case) -> Problem:
    return Problem(
        dtype=case.dtype, batch=case.batch, heads=case.heads, head_dim=case.head_dim, grid=case.grid,
        tile=case.tile, window=case.window, bucket=case.bucket, keep=case.keep,
        coreset_keys=case.coreset_keys, text_tokens=case.text, scale=0.0, attention_precision=case.precision,
    )  # fmt: skip


def workspace_regions(case: Case) -> dict[str, tuple[int, int]]:
    """Offset and bytes of the regions that plugins/kernels/workspace.h lays out; with fp8, only those of the lists."""
    kept = case.kept
    heads = case.batch * case.heads
    rows = heads * (kept + case.text) * case.head_dim * 2 if case.head_dim in COMPACT_HEAD_DIMS else 0
    sizes = {
        "kept_queries": 4 * heads * kept,
        "dropped_queries": 4 * heads * (case.video - kept),
        "kept_keys": 4 * heads * kept if case.coreset_keys == "key" else 0,
        "compact_key": rows,
        "compact_value": rows,
        "work_counter": 256,
    }
    if case.precision == "fp8":
        sizes = {name: size for name, size in sizes.items() if "kept" in name or "dropped" in name}
    regions, offset = {}, 0
    for name, size in sizes.items():
        regions[name] = (offset, size)
        offset += (size + 255) // 256 * 256
    if case.precision == "same":
        regions["end"] = (offset, 0)
    return regions


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
        memory = torch.empty(size + GUARD_BYTES, dtype=torch.uint8, device="cuda")
        self.workspace, self.guard = memory[:size], memory[size:]
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
        self.guard.fill_(POISON)

    def enqueue(self) -> Tensor:
        load_library().enqueue(self.problem, self.tensors, torch.cuda.current_stream().cuda_stream)
        return self.output

    def region(self, name: str) -> Tensor:
        """The bytes of a part of the workspace, all samples and heads."""
        offset, size = workspace_regions(self.case)[name]
        return self.workspace[offset : offset + size]

    def selection(self, sample: int, head: int) -> Selection:
        """The coreset that the kernels wrote to the workspace, as lists of token ids."""
        keys = "kept_keys" if self.case.coreset_keys == "key" else "kept_queries"
        lists = [
            self.region(name).view(torch.int32).view(self.case.batch, self.case.heads, -1)[sample, head].long()
            for name in ("kept_queries", "dropped_queries", keys)
        ]  # [kept], [S - kept], [kept]
        return Selection(*lists)

    def compact_rows(self, name: str, sample: int, head: int) -> Tensor:
        """Rows that the kernels wrote to `compact_key` or `compact_value`: kept tokens, then text; [kept + T, D]."""
        case = self.case
        return self.region(name).view(case.torch_dtype).view(case.batch, case.heads, -1, case.head_dim)[sample, head]
