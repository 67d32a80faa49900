# SPDX-License-Identifier: Apache-2.0
"""How fast is each branch of the routed-attention kernels, beside everything else that computes the same?

`vorta-trt bench attention`. Every row is checked against the reference in float32 before it is timed; peers are timed
on the same tensors in the same run; a peer that cannot run is a row with the reason.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Protocol

import torch

from vorta_trt.benchmarks.cases import BRANCHES, Case, Inputs, checked_head, make_inputs, select_cases
from vorta_trt.benchmarks.checks import FACTOR, SELECTION_BOUND, Expected, expected, relative_error
from vorta_trt.benchmarks.harness import environment
from vorta_trt.benchmarks.peer import Peer, Prepared, Unavailable
from vorta_trt.benchmarks.peers import CUDNN, select_peers
from vorta_trt.benchmarks.report import OURS, Report, Row, failed_row, with_speedups
from vorta_trt.benchmarks.routed import Capture, Routed
from vorta_trt.benchmarks.timing import GraphReplay, Run, Timer, Timing, matmul_ceiling, tflops
from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins import load_library
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.kernel_support import held_to
from vorta_trt.plugins.operator_schema import choices

logger = logging.getLogger(__name__)


class NoGpuError(VortaError):
    """This benchmark needs a CUDA GPU."""


class Progress(Protocol):
    """Called with what is being done, and with how many of how many parts are done."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Reports."""


@dataclass(frozen=True)
class Options:
    """The options of a run; empty tuples mean the defaults of `cases.select_cases` and `peers.select_peers`.

    `kernels` are the families of kernels with which our rows are measured, one after the other; "" is the GPU's own.
    """

    geometries: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()
    text_lengths: tuple[int, ...] = ()
    branches: tuple[str, ...] = BRANCHES
    peers: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("same",)
    kernels: tuple[str, ...] = ("",)
    dtype: str = "bf16"
    head_dim: int = 128
    inputs: str = "normal"
    small: bool = False
    seed: int = 0
    seconds: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is not known."""
        for branch in self.branches:
            if branch not in BRANCHES:
                raise ValueError(f"branch {branch!r}: must be one of {', '.join(BRANCHES)}")
        for precision in self.precisions:
            if precision not in choices("attention_precision"):
                raise ValueError(f"precision {precision!r}: must be one of {', '.join(choices('attention_precision'))}")
        select_peers(self.peers)
        self.cases()

    def cases(self) -> list[Case]:
        """The cases of these options."""
        return select_cases(
            self.geometries,
            self.heads,
            self.text_lengths,
            small=self.small,
            head_dim=self.head_dim,
            dtype=self.dtype,
            inputs=self.inputs,
        )

    def graphs(self) -> tuple[str, ...]:
        """Branches that are also timed in a CUDA graph: all for small problems, where the host's part is large."""
        return self.branches if self.small else ("mixed",)


def require_gpu(command: str = "bench attention") -> None:
    """Raises NoGpuError, saying what is missing."""
    if torch.cuda.is_available():
        return
    found = (
        f"torch {torch.__version__} is a build without CUDA"
        if torch.version.cuda is None
        else "torch finds no CUDA GPU"
    )
    raise NoGpuError(
        f"{command}: needs a CUDA GPU of compute capability 8.0 or newer, and {found}; run it on such a machine "
        f"with --output FILE.json, and show that file here with --from FILE.json"
    )


def run(options: Options, progress: Progress) -> Report:
    """Measures everything on the current CUDA device. Raises NoGpuError; LibraryNotFoundError without the kernels."""
    require_gpu()
    library = load_library()
    for kernels in options.kernels:
        with held_to(kernels):  # raises now, not after the first rows
            pass
    start = time.perf_counter()
    rows: list[Row] = []
    with torch.no_grad():
        timer = Timer(options.seconds)
        progress("measuring the matrix product's ceiling")
        ceiling = matmul_ceiling(timer, torch_dtype(options.dtype))
        cases = options.cases()
        for index, case in enumerate(cases):

            def told(what: str, case: Case = case, index: int = index) -> None:
                progress(f"{case}: {what}", index, len(cases))

            rows += _gpu_rows(case, options, ceiling, timer, told)
    about = {
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "library": {"version": library.version, "cuda_architectures": list(library.cuda_architectures)},
        "options": asdict(options),
        "ceiling_tflops": round(ceiling, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return Report(about, rows)


def _gpu_rows(case: Case, options: Options, ceiling: float, timer: Timer, progress: Callable[[str], None]) -> list[Row]:
    """All rows of a case; after an error outside of a row, one failed row, so that other cases' rows are kept."""
    try:
        torch.cuda.empty_cache()
        inputs = make_inputs(case, "cuda", options.seed)
        return case_rows(case, inputs, options, ceiling, timer=timer, capture=GraphReplay, progress=progress)
    except RuntimeError as error:  # out of memory, or a GPU that a kernel has left in error
        logger.exception("%s", case)
        return [failed_row(blank_row(case, "full", OURS), error)]


def case_rows(
    case: Case,
    inputs: Inputs,
    options: Options,
    ceiling: float,
    *,
    timer: Callable[[Run], Timing],
    capture: Capture,
    progress: Callable[[str], None],
) -> list[Row]:
    """All rows of one case, ours first."""

    @cache
    def wanted(branch: str) -> Expected:
        return expected(case, inputs, branch, checked_head(branch, case.heads))

    def measured(row: Row, timing: Timing) -> Row:
        return _with_figures(row, timing, case.flops(row.branch), ceiling)

    def blank(branch: str, implementation: str) -> Row:
        progress(f"{branch}, {implementation}")
        return blank_row(case, branch, implementation)

    rows: list[Row] = []
    for kernels, precision in itertools.product(options.kernels, options.precisions):
        routed = Routed(
            case, inputs, precision, expected=wanted, timer=timer, measured=measured, capture=capture, kernels=kernels
        )
        rows += routed.rows(blank, [branch for branch in BRANCHES if branch in options.branches], options.graphs())
    for peer in select_peers(options.peers):
        if peer.branch in options.branches or peer is CUDNN:
            rows.append(_peer_row(blank(peer.branch, peer.name), peer, case, inputs, wanted, timer, measured))
    return with_speedups(rows)


def blank_row(case: Case, branch: str, implementation: str) -> Row:
    """A row with the case's facts and no figures yet."""
    geometry = case.geometry
    of_case = ("text_length", "heads", "head_dim", "dtype", "inputs")
    facts: dict[str, Any] = {name: getattr(geometry, name) for name in ("grid", "tile", "window", "text_tokens")}
    facts |= {name: getattr(case, name) for name in of_case}
    dense = 4 * case.head_dim * case.valid**2 * case.heads
    return Row(
        case=str(case),
        geometry=case.name,
        tokens=geometry.tokens,
        branch=branch,
        implementation=implementation,
        density=round(case.flops(branch) / dense, 4),
        **facts,
    )


def _with_figures(row: Row, timing: Timing, flops: int, ceiling: float) -> Row:
    useful = tflops(flops, timing.median)
    return replace(
        row,
        milliseconds=round(timing.median, 4),
        minimum=round(timing.minimum, 4),
        p90=round(timing.p90, 4),
        runs=timing.runs,
        useful_tflops=round(useful, 1),
        ceiling_share=round(useful / ceiling, 4),
    )


def _peer_row(
    row: Row,
    peer: Peer,
    case: Case,
    inputs: Inputs,
    wanted: Callable[[str], Expected],
    timer: Callable[[Run], Timing],
    measured: Callable[[Row, Timing], Row],
) -> Row:
    """Prepares, checks and times a peer; whatever it raises becomes the reason in its row."""
    try:
        prepared = peer.prepare(case, inputs)
        row = _checked_peer(replace(row, note=prepared.note), prepared, case, inputs, wanted(peer.branch))
        return measured(row, timer(prepared.run)) if row.state == "ok" else row
    except Unavailable as error:
        return replace(row, state="unavailable", note=str(error))
    except Exception as error:  # foreign code: it raises what it likes, and its absence has to be explained
        logger.debug("%s, %s", row.case, row.implementation, exc_info=True)
        reason = str(error).strip().partition("\n")[0][:200]
        return replace(row, state="unavailable", note=f"{type(error).__name__}: {reason}")


def _checked_peer(row: Row, prepared: Prepared, case: Case, inputs: Inputs, wanted: Expected) -> Row:
    head = checked_head(row.branch, case.heads)
    if prepared.exact is not None:
        output = prepared.exact(inputs.head(head, torch.float32))  # [1, S+V, 1, D]
        bound = SELECTION_BOUND
    else:
        output = prepared.output(prepared.run())[:, :, head : head + 1]
        bound = FACTOR * wanted.torch_error
    error = relative_error(output[:, : case.valid], wanted.output[:, : case.valid])
    row = replace(row, relative_error=error, torch_error=wanted.torch_error, error_bound=bound)
    if not error <= bound:
        return replace(row, state="wrong", note=f"relative error {error:.2e} above {bound:.2e}; not timed")
    return row
