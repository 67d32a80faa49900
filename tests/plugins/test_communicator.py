# SPDX-License-Identifier: Apache-2.0
"""Communicators between GPUs where there is no GPU: NCCL that is missing, wrong or old, and arguments that break rules.

A library with NCCL's functions stands in for it. Each case runs in a process, since a library that was found stays.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vorta_trt.plugins import LibraryError, Problem, load_library
from vorta_trt.plugins.communicator import check, leave, rank_of
from vorta_trt.plugins.operator_calls import enqueue, validate
from vorta_trt.plugins.ulysses_attention import UlyssesAttentionParams, workspace_size

from .conftest import ROOT
from .test_cublaslt_abi import package_folder
from .test_linear import in_a_process

STAND_IN = """
extern "C" {
int ncclGetVersion(int* version) { *version = VERSION; return 0; }
int ncclGetUniqueId(char* id) { for (int i = 0; i < 128; ++i) id[i] = char(i); return RESULT; }
const char* ncclGetErrorString(int) { return "unhandled system error"; }
const char* ncclGetLastError(void*) { return "no socket interface found"; }
#define NAMED(name) int nccl##name() { return 2; }
NAMED(CommInitRank) NAMED(CommDestroy) NAMED(CommAbort) NAMED(CommGetAsyncError) NAMED(GroupStart) NAMED(GroupEnd)
NAMED(Send) NAMED(Recv)
}
"""

PROGRAM = """
from vorta_trt.plugins import VortaError, load_library
from vorta_trt.plugins.communicator import create_id, join, nccl_version
library = load_library()
for call in (lambda: nccl_version(library)[0], lambda: create_id(library) == bytes(range(128)), {more}):
    try:
        print(call())
    except (VortaError, ValueError) as error:
        print(error)
"""

JOINS = "*(lambda n=n, r=r, t=t: join(library, bytes(128), n, r, t) for n, r, t in ((0, 0, 9), (2, 2, 9), (2, 0, 0)))"


def stand_in(folder: Path, version: int = 22703, result: int = 0) -> Path:
    compiler = shutil.which("g++") or pytest.skip("needs g++ to make a library")
    (folder / "source.cpp").write_text(STAND_IN.replace("VERSION", str(version)).replace("RESULT", str(result)))
    library = folder / "libnccl.so.2"
    subprocess.run([compiler, "-shared", "-fPIC", folder / "source.cpp", "-o", library], check=True)
    return library


def test_a_named_library_is_used_and_arguments_are_checked(tmp_path: Path) -> None:
    more = f"{JOINS}, lambda: join(library, bytes(5), 2, 0)"
    lines = in_a_process(PROGRAM.format(more=more), VORTA_TRT_NCCL=str(stand_in(tmp_path))).splitlines()
    assert lines == [
        "22703",
        "True",
        "ranks 0: must be 1 to 1024; give the number of GPUs",
        "rank 2: must be 0 to 1, for ranks are 2; give each process its own number",
        "timeout_seconds 0: must be positive; give 60, say",
        "identity of 5 bytes: must have 128; pass what create_id returned",
    ]


def test_what_nccl_says_is_passed_on(tmp_path: Path) -> None:
    lines = in_a_process(PROGRAM.format(more=""), VORTA_TRT_NCCL=str(stand_in(tmp_path, result=2))).splitlines()
    assert lines[1] == (
        "ncclGetUniqueId: NCCL says: unhandled system error: no socket interface found; see the other ranks' "
        "messages, and set NCCL_DEBUG=WARN for more"
    )


def test_an_old_nccl_is_refused(tmp_path: Path) -> None:
    library = stand_in(tmp_path, 21200)
    lines = in_a_process(PROGRAM.format(more=""), VORTA_TRT_NCCL=str(library)).splitlines()
    assert lines[0] == f"NCCL {library}: version 21200 is too old: must be 21300 (2.13) or newer; update NCCL"


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    lines = in_a_process(PROGRAM.format(more=""), VORTA_TRT_NCCL=str(tmp_path / "none.so")).splitlines()
    assert f"VORTA_TRT_NCCL={tmp_path}/none.so in the environment: must name a libnccl.so of NCCL 2 (" in lines[0]


def test_without_nccl_it_says_what_to_install() -> None:
    lines = in_a_process(PROGRAM.format(more="")).splitlines()
    if lines[0].isdigit():
        pytest.skip("this machine has an NCCL of its own")
    assert lines[0].startswith("NCCL: no libnccl.so.2 is loaded, on the loader's path, or in NVIDIA's wheels")
    assert "pip install nvidia-nccl-cu13" in lines[0]


def test_declarations_agree_with_the_header() -> None:
    nccl, cuda = package_folder("nccl.h"), package_folder("cuda_runtime_api.h")
    compiler = shutil.which("g++")
    if nccl is None or cuda is None or compiler is None:
        pytest.skip("needs g++, nccl.h and cuda_runtime_api.h: those of nvidia-nccl and nvidia-cuda-runtime")
    includes = [f"-I{folder}" for folder in (ROOT / "plugins/kernels", ROOT / "plugins/include", nccl, cuda)]
    source = ROOT / "tests" / "plugins" / "driver" / "compare_nccl.cpp"
    command = [compiler, "-std=c++17", "-fsyntax-only", *includes, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def params(ranks: int = 4, heads: int = 40, **values: object) -> UlyssesAttentionParams:
    problem = Problem(
        dtype="bfloat16", batch=1, heads=heads, head_dim=128, grid=(20, 45, 80), tile=(5, 9, 8), window=(3, 3, 3),
        bucket=(2, 3, 2), keep=6, text_tokens=0,
    )  # fmt: skip
    return UlyssesAttentionParams(ranks=ranks, attention=problem, **values)


@pytest.mark.parametrize("ranks", [0, 3, 7, 2000])
def test_ranks_that_do_not_divide_the_heads_are_refused(ranks: int) -> None:
    with pytest.raises(LibraryError, match=f"ranks {ranks}: must be 1 to 1024 and divide the 40 heads"):
        validate(load_library(), params(ranks))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_workspace_holds_heads_output_and_what_is_largest_of_the_rest(ranks: int) -> None:
    """Q, K and V received, the output, and packed rows, which need more than the attention itself."""
    whole = 72_000 * 40 * 128 * 2
    size = workspace_size(load_library(), params(ranks))
    attention = load_library().workspace_size(params(heads=40 // ranks).attention)
    assert size == 4 * whole // ranks + max(3 * whole // ranks, attention) + 256  # bytes; routes take the last


def test_a_missing_communicator_is_an_error_not_a_no_op() -> None:
    """Neither a GPU nor valid memory is needed to find that out, and none is touched."""
    library = load_library()
    for call in (lambda: check(library, 4), lambda: rank_of(library, 4)):
        with pytest.raises(LibraryError, match="ranks 4: this process has no communicator of 4 GPUs"):
            call()
    leave(library, 4)
    call_of_one = params(head_order=256)
    stride = (72_000 // 4 * 40 * 128, 40 * 128, 128)
    tensors = call_of_one.tensors
    tensors.struct_size = type(tensors)().struct_size
    for position, name in enumerate(("query", "key", "value", "output")):
        setattr(tensors, name, (position + 1) << 40)
        setattr(tensors, f"{name}_stride", type(tensors.query_stride)(*stride))
    tensors.routes, tensors.workspace = 1 << 30, 1 << 45
    tensors.workspace_bytes = workspace_size(library, call_of_one)
    with pytest.raises(LibraryError, match="ranks 4: this process has no communicator of 4 GPUs"):
        enqueue(library, call_of_one, 0)
    tensors.workspace_bytes -= 1
    with pytest.raises(LibraryError, match="bytes that vorta_ulysses_attention_workspace_size says"):
        enqueue(library, call_of_one, 0)
