# SPDX-License-Identifier: Apache-2.0
"""The C API without a GPU: what it refuses, in which words, and how much workspace it asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vorta_trt.plugins import LibraryError, Problem, Status, Tensors, load_library
from vorta_trt.plugins.operator_schema import LARGEST_BUCKET

PROBLEM: dict[str, Any] = {
    "dtype": 1, "batch": 2, "heads": 3, "head_dim": 64, "grid": (10, 6, 6), "tile": (2, 3, 2), "window": (3, 1, 3),
    "bucket": (2, 3, 2), "keep": 6, "coreset_keys": 0, "text_tokens": 8, "scale": 0.0,
}  # fmt: skip
STRIDE = (368 * 3 * 64, 3 * 64, 64)
ADDRESS = 0x7F0000000000  # never read: every test is refused before the launch
SPACING = 1 << 28  # further than any tensor here reaches
TENSORS: dict[str, Any] = {
    "query": ADDRESS, "key": ADDRESS + SPACING, "value": ADDRESS + 2 * SPACING, "output": ADDRESS + 3 * SPACING,
    "routes": ADDRESS + 4 * SPACING, "text_length": ADDRESS + 4 * SPACING, "workspace": ADDRESS + 5 * SPACING,
    "workspace_bytes": 1 << 20,
    "query_stride": STRIDE, "key_stride": STRIDE, "value_stride": STRIDE, "output_stride": STRIDE,
}  # fmt: skip


def strides(head_dim: int) -> dict[str, tuple[int, int, int]]:
    """Those of contiguous tensors."""
    names = ("query_stride", "key_stride", "value_stride", "output_stride")
    return dict.fromkeys(names, (368 * 3 * head_dim, 3 * head_dim, head_dim))


def refused(problem: dict[str, Any], tensors: dict[str, Any] | None = None) -> str:
    """Message of a call that must be refused."""
    library = load_library()
    with pytest.raises(LibraryError) as caught:
        if tensors is None:
            library.validate(Problem(**{**PROBLEM, **problem}))
        else:
            library.enqueue(Problem(**{**PROBLEM, **problem}), Tensors(**{**TENSORS, **tensors}), 0)
    assert caught.value.status is Status.INVALID_ARGUMENT
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 2}, "dtype 2: must be 0 (float16) or 1 (bfloat16); cast the tensors to one"),
        ({"batch": -1}, "batch -1: must be 0 to 65535; split the batch"),
        ({"heads": 65536}, "heads 65536: must be 0 to 65535; split the heads"),
        ({"batch": 65535, "heads": 65535}, "batch 65535 and heads 65535: at most 1073741824 heads in all"),
        ({"head_dim": 100}, "head_dim 100: must be a multiple of 8, at most 256; pad with zeros to 104"),
        ({"head_dim": 264}, "head_dim 264: must be a multiple of 8, at most 256; pad with zeros to 256"),
        ({"head_dim": 0}, "head_dim 0: must be a multiple of 8, at most 256; pad with zeros to 8"),
        ({"text_tokens": -1}, "text_tokens -1: must not be negative; use 0 for attention without text"),
        ({"scale": -0.5}, "scale -0.5: must be finite and positive; use 0 for 1/sqrt(head_dim)"),
        ({"scale": float("nan")}, "scale nan: must be finite and positive"),
        ({"scale": float("inf")}, "scale inf: must be finite and positive"),
        ({"grid": (0, 6, 6)}, "grid (0, 6, 6): every entry must be at least 1"),
        ({"grid": (2**31 - 1,) * 3}, "at most 2147482624 tokens are supported; use a smaller video"),
        ({"grid": (1, 1, 2**31 - 1)}, "at most 2147482624 tokens are supported; use a smaller video"),
        ({"tile": (2, 3, -2)}, "tile (2, 3, -2): every entry must be at least 1"),
        ({"window": (2, 1, 3)}, "window (2, 1, 3): every entry must be odd, so that the window has a centre tile; "
                                "use (3, 1, 3)"),
        ({"window": (0, 1, 3)}, "window (0, 1, 3): every entry must be at least 1"),
        ({"bucket": (5, 6, 6)}, "bucket (5, 6, 6): must have at most 64 tokens; use smaller buckets"),
        ({"bucket": (LARGEST_BUCKET + 1, 1, 1)}, f"bucket ({LARGEST_BUCKET + 1}, 1, 1): must have at most 64 tokens"),
        ({"bucket": (2**31 - 1,) * 3}, "must have at most 64 tokens"),  # the product passes 64 bits
        ({"bucket": (2, 0, 2)}, "bucket (2, 0, 2): every entry must be at least 1"),
        ({"keep": 0}, "keep 0: must be 1 to 12, the tokens of bucket (2, 3, 2), its centre included; use e.g. 6"),
        ({"keep": 13}, "keep 13: must be 1 to 12"),
        ({"coreset_keys": 2}, "coreset_keys 2: must be 0 (by query) or 1 (by key)"),
        ({"attention_precision": 2}, "attention_precision 2: must be 0 (same as the inputs) or 1 (fp8); use 0 unless "
                                     "fp8 is wanted"),
        ({"attention_precision": -1}, "attention_precision -1: must be 0 (same as the inputs) or 1 (fp8)"),
        ({"reserved": 7}, "reserved 7: must be 0; set the whole struct to zero before its fields"),
    ],
)  # fmt: skip
def test_problem_is_refused(changed: dict[str, Any], message: str) -> None:
    assert message in refused(changed)
    assert message in refused(changed, {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": None}, "query NULL: must be a device pointer to [B, S+T, N, D]; pass one"),
        ({"value": ADDRESS + 8}, "must be aligned to 16 bytes; copy the tensor to a fresh allocation"),
        ({"key_stride": (STRIDE[0], 100, 64)}, "key stride 100 of the token axis: must be a multiple of 8 elements "
                                               "(16 bytes), not negative; make the tensor contiguous"),
        ({"key_stride": (-8, 64, 64)}, "key stride -8 of the batch axis"),
        ({"output": ADDRESS}, "must not share memory with query, key or value; pass memory of its own"),
        ({"output": ADDRESS + SPACING - 16}, "output 0x7f000ffffff0: must not share memory with query, key or value"),
        ({"workspace": ADDRESS + 2 * SPACING + 256}, "must not share memory with query, key, value or output"),
        ({"workspace": ADDRESS + 3 * SPACING - 256}, "must not share memory with query, key, value or output"),
        ({"value_stride": (2**60, 192, 64)}, "value stride 1152921504606846976 of the batch axis: 2 entries reach "
                                             "beyond 2^56 elements"),
        ({"output_stride": (STRIDE[0], 2**53, 64)}, "output stride 9007199254740992 of the token axis: 368 entries"),
        ({"routes": None}, "must be an aligned device pointer to int32 [B, N]; pass one"),
        ({"text_length": None}, "text_tokens 8 need the valid text tokens of every sample; pass an aligned device "
                                "pointer to int32 [B]"),
        ({"workspace": TENSORS["workspace"] + 128}, "must be a device pointer aligned to 256 bytes; pass one"),
        ({"workspace_bytes": 1000}, "workspace_bytes 1000: this problem needs 297728; allocate what "
                                    "vorta_routed_attention_workspace_size says"),
    ],
)  # fmt: skip
def test_tensors_are_refused(changed: dict[str, Any], message: str) -> None:
    assert message in refused({}, changed)


#: Sizes of batch, token and head are 2, 368 and 3; rows have 64 elements.
OVERLAPPING = [
    ((192, 192, 64), "token", 384),  # samples start inside one another
    ((STRIDE[0], 64, 64), "head", 368 * 64),  # the token stride is that of the heads
    ((STRIDE[0], 56, 368 * 64), "token", 64),  # rows begin before the one ahead has ended
    ((STRIDE[0] - 8, 192, 64), "batch", STRIDE[0]),
    ((368 * 64, 64, 367 * 64), "head", 368 * 64),  # heads first, one token short
    ((8, 192, 64), "batch", 64),
]


@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
@pytest.mark.parametrize(("stride", "axis", "reach"), OVERLAPPING)
def test_strides_whose_rows_overlap_are_refused(name: str, stride: tuple[int, int, int], axis: str, reach: int) -> None:
    message = refused({}, {f"{name}_stride": stride})
    assert message.startswith(
        f"{name} stride {stride[('batch', 'token', 'head').index(axis)]} of the {axis} axis: rows"
    )
    assert f"{reach} elements lie between" in message


@pytest.mark.parametrize("axis", range(3))
def test_an_output_that_repeats_an_axis_is_refused(axis: int) -> None:
    stride = [0 if i == axis else entry for i, entry in enumerate(STRIDE)]
    assert f"output stride 0 of the {('batch', 'token', 'head')[axis]} axis: rows overlap" in refused(
        {}, {"output_stride": stride}
    )


@pytest.mark.parametrize(
    "stride",
    [
        (0, 192, 64),
        (STRIDE[0], 0, 64),
        (STRIDE[0], 192, 0),
        (0, 0, 0),
        (3 * 368 * 64, 64, 368 * 64),  # heads first
        (192, 2 * 192, 64),  # tokens first, samples side by side
        (STRIDE[0] * 3, 192 * 3, 64),  # one of three in a fused projection
        (STRIDE[0] * 3, 400, 128),  # room between the rows
    ],
)
def test_layouts_and_repeated_axes_are_legal(stride: tuple[int, int, int]) -> None:
    """Refused only for the memory that the workspace has too little of, which is looked at last."""
    few = {"workspace_bytes": 1}
    assert "workspace_bytes 1" in refused({}, {f"{name}_stride": stride for name in ("query", "key", "value")} | few)
    if 0 not in stride:
        assert "workspace_bytes 1" in refused({}, {"output_stride": stride} | few)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"heads": 0}, {"batch": 0, "heads": 0}], ids=str)
@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_an_empty_problem_is_done_at_once(empty: dict[str, int], precision: str) -> None:
    """On any machine: nothing is launched, and no pointer is looked at."""
    problem = Problem(**{**PROBLEM, **empty, "attention_precision": precision})
    library = load_library()
    assert library.workspace_size(problem) == 0
    library.enqueue(problem, Tensors(), 0)
    with pytest.raises(LibraryError, match="tile"):
        library.enqueue(Problem(**{**PROBLEM, **empty, "tile": (0, 1, 1)}), Tensors(), 0)


def test_kernels_are_forced_by_name(force_kernels: Callable[[str], None]) -> None:
    library = load_library()
    assert library.forced_kernels == ""
    force_kernels("sm80")
    assert library.forced_kernels == "sm80"
    with pytest.raises(LibraryError, match="family sm70: must be sm80") as caught:
        force_kernels("sm70")
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert library.forced_kernels == "sm80"
    for name in ("sm89_fp8", ""):
        force_kernels(name)
        assert library.forced_kernels == name


@pytest.mark.parametrize("said", [None, "", "sm80", "sm89_fp8", "sm70"])
def test_the_environment_is_read_when_the_library_is_loaded(said: str | None) -> None:
    script = """
        import os
        from vorta_trt.plugins import load_library
        library = load_library()
        print(library.forced_kernels)
        os.environ["VORTA_TRT_KERNELS"] = "other"
        print(library.forced_kernels)
        library.force_kernels("")
        print(library.forced_kernels)
    """
    environment = {name: value for name, value in os.environ.items() if name != "VORTA_TRT_KERNELS"}
    if said is not None:
        environment["VORTA_TRT_KERNELS"] = said
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [said or "", said or "", ""]


def test_a_family_in_the_environment_that_does_not_exist_is_refused_by_the_call() -> None:
    script = f"""
        import sys, types
        from vorta_trt.plugins import Problem, Tensors, load_library
        try:
            load_library().enqueue(Problem(**{PROBLEM!r}), Tensors(**{TENSORS!r}), 0)
        except Exception as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "VORTA_TRT_KERNELS": "sm70"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.startswith(
        "VORTA_TRT_KERNELS=sm70 in the environment when the library was loaded: must be sm80"
    )


def test_text_length_without_text_is_refused() -> None:
    assert "must be NULL because text_tokens is 0" in refused({"text_tokens": 0}, {})


def test_other_struct_sizes_are_refused() -> None:
    problem, tensors = Problem(**PROBLEM), Tensors(**TENSORS)
    problem.struct_size = 88  # of API version 1
    with pytest.raises(LibraryError, match=r"problem\.struct_size 88: must be 96 in this library \(API version 3\)"):
        load_library().validate(problem)
    tensors.struct_size = 8
    with pytest.raises(LibraryError, match=r"tensors\.struct_size 8: must be 168 in this library"):
        load_library().enqueue(Problem(**PROBLEM), tensors, 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"grid": (11, 7, 5)},
        {"grid": (1, 1, 1)},  # smaller than a tile and a bucket
        {"tile": (3, 4, 5), "window": (1, 1, 1)},
        {"tile": (2**31 - 1,) * 3},
        {"bucket": (3, 4, 5), "keep": 60},
        {"bucket": (64, 1, 1), "keep": 64},
        {"grid": (31, 45, 80), "tile": (6, 9, 8), "window": (2**31 - 1,) * 3},
    ],
    ids=str,
)
def test_tile_and_bucket_need_not_divide_the_grid(changed: dict[str, Any]) -> None:
    problem = Problem(**{**PROBLEM, **changed})
    load_library().validate(problem)
    assert load_library().workspace_size(problem) > 0


@pytest.mark.parametrize("extent", [2**31 - 2000, 2_147_480_009], ids=["even", "prime"])
def test_validation_takes_no_time_where_nothing_divides(extent: int) -> None:
    """A refusal once searched for divisors up to the extent of the grid, which took seconds."""
    problem = Problem(**{**PROBLEM, "grid": (1, 1, extent), "tile": (1, 1, 2**30 + 1), "bucket": (1, 1, 7), "keep": 3})
    start = time.thread_time()  # of the processor: others may have it meanwhile
    for _ in range(100):
        load_library().validate(problem)
    assert time.thread_time() - start < 1


@pytest.mark.parametrize("keep", [1, 5, 12])
@pytest.mark.parametrize("coreset_keys", [0, 1])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("grid", [(10, 6, 6), (20, 45, 80)])
def test_workspace_formula(keep: int, coreset_keys: int, head_dim: int, grid: tuple[int, int, int]) -> None:
    tile = (2, 3, 2)
    changed = {"keep": keep, "coreset_keys": coreset_keys, "head_dim": head_dim, "grid": grid, "tile": tile}
    problem = Problem(**{**PROBLEM, **changed})
    tokens = grid[0] * grid[1] * grid[2]
    kept = tokens // 12 * keep
    lists = [kept, tokens - kept, *([kept] if coreset_keys else [])]
    rows = 2 * [kept + 8] if head_dim in (64, 128) else []  # compact keys and values, text included
    sizes = [*(4 * entries for entries in lists), *(2 * head_dim * entries for entries in rows)]  # of a head
    wanted = sum((2 * 3 * size + 255) // 256 * 256 for size in sizes) + 256  # the work counters
    assert load_library().workspace_size(problem) == wanted


def test_workspace_passes_32_bits() -> None:
    problem = Problem(**{**PROBLEM, "batch": 1024, "heads": 40, "grid": (20, 45, 80), "tile": (5, 9, 8)})
    assert load_library().workspace_size(problem) >= 4 * 1024 * 40 * 72_000


def test_messages_belong_to_their_thread() -> None:
    refused({"keep": 0})
    inside: list[str] = []

    def other() -> None:
        inside.append(load_library()._text("vorta_last_error"))
        inside.append(refused({"dtype": 5}))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert inside[0] == ""
    assert inside[1].startswith("dtype 5")
    assert load_library()._text("vorta_last_error").startswith("keep 0")


def test_minimal_window_may_exceed_the_grid() -> None:
    load_library().validate(Problem(**{**PROBLEM, "window": (99, 1, 2**31 - 1)}))


def test_fp8_is_a_valid_problem_of_any_head_dimension() -> None:
    """What has kernels is a question of the GPU, asked at the launch."""
    for head_dim in (64, 96, 128):
        fp8 = Problem(**{**PROBLEM, "head_dim": head_dim, "attention_precision": "fp8"})
        load_library().validate(fp8)
        assert load_library().workspace_size(fp8) > 0


def test_fp8_without_kernels_says_so() -> None:
    """Asked before anything is launched, so on every machine."""
    with pytest.raises(LibraryError) as caught:
        load_library().enqueue(
            Problem(**{**PROBLEM, "head_dim": 96, "attention_precision": 1}),
            Tensors(**{**TENSORS, **strides(96)}),
            0,
        )
    assert caught.value.status is Status.UNSUPPORTED
    message = str(caught.value)
    assert "head_dim 96: there are 8-bit kernels for head_dim 64 and 128" in message
    assert message.endswith("; use attention_precision same")


@pytest.mark.skipif(torch.cuda.is_available(), reason="would launch on addresses that do not exist")
@pytest.mark.parametrize(("head_dim", "forced"), [(64, ""), (128, ""), (64, "sm80"), (128, "sm80"), (96, "")])
def test_enqueue_without_a_gpu_says_so(head_dim: int, forced: str, force_kernels: Callable[[str], None]) -> None:
    """The choice of the kernels comes first, but asks for the device only where there is something to choose."""
    force_kernels(forced)
    library = load_library()
    with pytest.raises(LibraryError) as caught:
        library.enqueue(Problem(**{**PROBLEM, "head_dim": head_dim}), Tensors(**{**TENSORS, **strides(head_dim)}), 0)
    assert caught.value.status is Status.CUDA_ERROR
    has_choice = head_dim in (64, 128) and not forced and any("90a" in name for name in library.cuda_architectures)
    step = "kernel choice" if has_choice else "coreset selection"
    assert re.search(rf"{step}: cudaError\w+: .*; run on a machine with an NVIDIA GPU", str(caught.value))
