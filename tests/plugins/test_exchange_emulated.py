# SPDX-License-Identifier: Apache-2.0
"""The exchange between GPUs, run on a CPU: threads are ranks, and kernels run thread by thread.

`emulate_exchange.cpp` says what is the library's own and what stands in for CUDA, NCCL and the attention. Every rank's
output must be its rows of what one rank computes of all tokens, in integers, so that nothing is merely close.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.parallel import library_exchange
from vorta_trt.model.parallel.attention import sharded_attention
from vorta_trt.plugins.library import Problem, Tensors
from vorta_trt.plugins.ulysses_attention import GatherTokensParams, Part, UlyssesAttentionParams

from .conftest import DRIVER, ROOT, Compile
from .test_cublaslt_abi import package_folder

KERNELS = ROOT / "plugins" / "kernels"
SOURCES = ("exchange/communicator.cpp", "exchange/known_answer.cpp", "exchange/gather_tokens.cpp",
           "exchange/ulysses_attention.cpp", "last_error.cpp", "tensor_checks.cpp", "validate_problem.cpp")  # fmt: skip
Array = np.ndarray[Any, np.dtype[np.uint16]]


@pytest.fixture(scope="module")
def emulated(compile_cpp: Compile) -> ctypes.CDLL:
    cuda = package_folder("cuda_runtime_api.h")
    if cuda is None:
        pytest.skip("needs cuda_runtime_api.h of nvidia-cuda-runtime")
    sources = [DRIVER / "emulate_exchange.cpp", *(KERNELS / name for name in SOURCES)]
    content = b"".join(path.read_bytes() for path in sorted((KERNELS / "exchange").iterdir()))
    arguments = ["-Wno-unknown-pragmas", f"-DSOURCES={hash_of(content)}", "-isystem", cuda, f"-I{KERNELS}"]
    arguments += [f"-I{ROOT / 'plugins' / 'include'}", *sources]
    library = ctypes.CDLL(str(compile_cpp("libemulated.so", *arguments, shared=True)))
    library.vorta_last_error.restype = ctypes.c_char_p
    return library


def hash_of(content: bytes) -> str:
    """A C identifier that changes with the sources, so that a library of older ones is not kept."""
    return "s" + hashlib.sha256(content).hexdigest()[:16]


def in_ranks(emulated: ctypes.CDLL, ranks: int, work: Callable[[int], None]) -> list[str]:
    """Runs `work(rank)` in a thread for each rank; the messages of those that fail."""
    failed: list[str] = []

    def body(rank: int) -> None:
        emulated.emulate_rank(rank)
        try:
            work(rank)
        except AssertionError as error:
            failed.append(str(error))
        finally:
            emulated.vorta_communicator_destroy(ranks, 0)

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def call(emulated: ctypes.CDLL, function: str, *arguments: Any) -> None:
    if getattr(emulated, function)(*arguments) != 0:
        raise AssertionError(emulated.vorta_last_error().decode())


def join(emulated: ctypes.CDLL, ranks: int, rank: int) -> None:
    call(emulated, "vorta_communicator_init", bytes(128), ranks, rank, ctypes.c_double(10))


def attention(query: Array, key: Array, value: Array, routes: Any) -> Array:
    """What stands in for the attention, of [B, S+T, N, D] and routes [B, N]."""
    positions = np.arange(1, query.shape[1] + 1, dtype=np.uint16)[None, :, None, None]
    total = (key * positions).sum(axis=1, keepdims=True, dtype=np.uint16)
    return (query + total + value * routes[:, None, :, None].astype(np.uint16)).astype(np.uint16)


def own_rows(tokens: Array, video: int, ranks: int, rank: int) -> Array:
    """[B, X+T, N, D] of a rank, zeros as padding."""
    size = -(-video // ranks)
    rows = tokens[:, min(rank * size, video) : min((rank + 1) * size, video)]
    padding = np.zeros((tokens.shape[0], size - rows.shape[1], *tokens.shape[2:]), np.uint16)
    return np.concatenate([rows, padding, tokens[:, video:]], axis=1)


class Attention:
    """A call of `vorta_ulysses_attention` for the heads that `order` names, with a workspace of its own."""

    def __init__(
        self,
        emulated: ctypes.CDLL,
        ranks: int,
        grid: tuple[int, int, int],
        inputs: list[Array],
        output: Array,
        routes: Any,
        lengths: Any,
        order: Any,
    ) -> None:
        batch, _, heads, dim = output.shape
        text = output.shape[1] - -(-grid[0] * grid[1] * grid[2] // ranks)
        problem = Problem(
            dtype="float16", batch=batch, heads=order.size, head_dim=dim, grid=grid, tile=grid, window=(1, 1, 1),
            bucket=(1, 1, 1), keep=1, text_tokens=text,
        )  # fmt: skip
        self._emulated, self._alive = emulated, (inputs, output, routes, lengths, order)
        self._params = params = UlyssesAttentionParams(
            ranks=ranks,
            attention=problem,
            head_order=order.ctypes.data,
            tensor_heads=0 if order.size == heads else heads,
        )
        size = ctypes.c_size_t()
        call(emulated, "vorta_ulysses_attention_workspace_size", ctypes.byref(params), ctypes.byref(size))
        self._workspace = aligned(np.full(size.value // 2 + 128, 0xDEAD, np.uint16))
        self.beyond = self._workspace[size.value // 2 :]
        names = ("query", "key", "value", "output")
        params.tensors = Tensors(
            routes=routes.ctypes.data,
            text_length=lengths.ctypes.data if text else None,
            workspace=self._workspace.ctypes.data,
            workspace_bytes=size.value,
            **{name: tensor.ctypes.data for name, tensor in zip(names, (*inputs, output), strict=True)},
            **{f"{name}_stride": [step // 2 for step in output.strides[:3]] for name in names},
        )

    def run(self, part: int = 0) -> None:
        self._params.parts = part
        call(self._emulated, "vorta_ulysses_attention_enqueue", ctypes.byref(self._params), None)


CASES = [  # ranks, grid, text, batch, heads, head dimension
    (1, (2, 3, 4), 0, 1, 4, 64),
    (2, (3, 3, 3), 0, 1, 4, 128),
    (3, (2, 5, 7), 5, 2, 6, 72),
    (4, (1, 1, 5), 3, 2, 4, 8),  # the last rank has no tokens
    (4, (2, 3, 3), 0, 3, 40, 64),
    (8, (3, 5, 5), 7, 1, 24, 256),
]


@pytest.mark.parametrize(("ranks", "grid", "text", "batch", "heads", "dim"), CASES)
def test_every_rank_gets_its_rows(
    emulated: ctypes.CDLL,
    ranks: int,
    grid: tuple[int, int, int],
    text: int,
    batch: int,
    heads: int,
    dim: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    video = grid[0] * grid[1] * grid[2]
    shape = (batch, video + text, heads, dim)
    whole = [random.integers(0, 1 << 16, shape, dtype=np.uint16) for _ in range(3)]
    routes = random.integers(0, 3, (batch, heads), dtype=np.int32)
    order = random.permutation(heads).astype(np.int32)
    wanted = attention(*whole, routes)
    lengths = np.full(batch, text, np.int32)

    def work(rank: int) -> None:
        join(emulated, ranks, rank)
        mine = [own_rows(tokens, video, ranks, rank) for tokens in whole]
        for tokens in mine:  # nobody reads the padding
            count = min(max(video - rank * -(-video // ranks), 0), -(-video // ranks))
            tokens[:, count : -(-video // ranks)] = 0xFFFF
        output = aligned(np.full(mine[0].shape, 0xABCD, np.uint16))
        mine = [aligned(tokens) for tokens in mine]
        whole_call = Attention(emulated, ranks, grid, mine, output, routes, lengths, order)
        for _ in range(2):  # the second call finds what the first has left in the workspace
            output.fill(0xABCD)
            whole_call.run()
            assert np.array_equal(output, own_rows(wanted, video, ranks, rank)), f"rank {rank}"
        by_rank = order.reshape(ranks, -1)
        halves = [np.ascontiguousarray(part).ravel() for part in np.array_split(by_rank, 2, axis=1) if part.size]
        first, *others = [Attention(emulated, ranks, grid, mine, output, routes, lengths, half) for half in halves]
        output.fill(0xABCD)
        for half in (first, *others):  # all exchanges of Q, K and V before the first attention
            half.run(Part.TO_HEADS)
        for half in (first, *others):
            half.run(Part.ATTEND)
            half.run(Part.TO_TOKENS)
        assert np.array_equal(output, own_rows(wanted, video, ranks, rank)), f"halves of the heads of rank {rank}"
        for one in (whole_call, first, *others):
            assert (one.beyond == 0xDEAD).all(), "written beyond the workspace"
        gathered = np.zeros((batch, video, heads * dim), np.uint16)
        video_rows = aligned(own_rows(wanted[:, :video], video, ranks, rank))
        gather = GatherTokensParams(
            ranks=ranks, batch=batch, tokens=video, row_bytes=heads * dim * 2, input=video_rows.ctypes.data,
            output=gathered.ctypes.data,
        )  # fmt: skip
        call(emulated, "vorta_gather_tokens_enqueue", ctypes.byref(gather), None)
        assert np.array_equal(gathered.reshape(batch, video, heads, dim), wanted[:, :video]), f"gather of rank {rank}"

    assert in_ranks(emulated, ranks, work) == []


def aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 256 bytes."""
    room = np.zeros(array.size + 128, np.uint16)
    begin = -room.ctypes.data % 256 // 2
    copy = room[begin : begin + array.size].reshape(array.shape)
    copy[:] = array
    return copy


def test_a_wrong_value_is_found_when_ranks_join(emulated: ctypes.CDLL) -> None:
    emulated.emulate_damage(1)
    try:
        failed = in_ranks(emulated, 2, lambda rank: join(emulated, 2, rank))
    finally:
        emulated.emulate_damage(0)
    assert len(failed) == 2
    assert all("known-answer exchange: word 2048 that rank 0 sent to rank" in message for message in failed)
    rank = ctypes.c_int32()
    with pytest.raises(AssertionError, match="ranks 2: this process has no communicator of 2 GPUs"):
        call(emulated, "vorta_communicator_rank", 2, ctypes.byref(rank))


def test_a_second_communicator_of_as_many_ranks_is_refused(emulated: ctypes.CDLL) -> None:
    emulated.emulate_rank(0)
    join(emulated, 1, 0)
    with pytest.raises(AssertionError, match="has a communicator of 1 GPUs on device 0 already"):
        join(emulated, 1, 0)
    for _ in range(2):
        call(emulated, "vorta_communicator_destroy", 1, 0)


@pytest.mark.parametrize("overlap", [False, True])
def test_torch_gives_the_library_what_it_needs(
    emulated: ctypes.CDLL, overlap: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sharded_attention` with a communicator: of all heads at once, and in halves of two heads and one."""
    ranks, batch, heads, dim, text = 2, 2, 6, 64, 3
    geometry = AttentionGeometry((3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 3, 3), 2, "key", text)
    library = SimpleNamespace(call=lambda function, *given: call(emulated, function, *given))
    monkeypatch.setattr(library_exchange, "ready_library", lambda tensor: library)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    empty = torch.empty

    def aligned_as_on_a_gpu(*size: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") is not torch.uint8:
            return empty(*size, **options)
        room = torch.full((size[0] + 256,), 0xAD, dtype=torch.uint8)
        begin = -room.data_ptr() % 256
        return room[begin : begin + size[0]]

    monkeypatch.setattr(torch, "empty", aligned_as_on_a_gpu)
    random = np.random.default_rng(seed)
    whole = [random.integers(0, 1 << 16, (batch, 27 + text, heads, dim), dtype=np.uint16) for _ in range(3)]
    routes = random.integers(0, 3, (batch, heads), dtype=np.int32)
    order = torch.from_numpy(random.permutation(heads))
    wanted = attention(*whole, routes)

    def work(rank: int) -> None:
        join(emulated, ranks, rank)
        tokens = [torch.from_numpy(own_rows(each, 27, ranks, rank)).view(torch.float16) for each in whole]
        found = sharded_attention(
            *tokens,
            torch.from_numpy(routes),
            order,
            geometry,
            SimpleNamespace(size=lambda: ranks, rank=lambda: rank),
            torch.full((batch,), text, dtype=torch.int32),
            communicator=SimpleNamespace(watched=nullcontext),
            overlap=overlap,
        )
        assert np.array_equal(found.view(torch.uint16).numpy(), own_rows(wanted, 27, ranks, rank)), f"rank {rank}"

    assert in_ranks(emulated, ranks, work) == []
