# SPDX-License-Identifier: Apache-2.0
"""What a peer is: someone else's attention, prepared for a case, on the tensors that ours gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vorta_trt.benchmarks.cases import Case, Inputs


class Unavailable(Exception):
    """This peer cannot run this case here; the message says why."""


@dataclass(frozen=True)
class Prepared:
    """A peer that is ready to be timed.

    run: one call. Masks, index tables and compilation are made before; what a call has to do each time is inside.
    output: turns a result of `run` into [1, tokens, N, D] in raster order, with every valid token at least.
    note: what a reader has to know about the run.
    exact: the same algorithm on inputs of one head in float32. Given where rounding may change what is computed, not
        only how exactly: then this is what is checked.
    """

    run: Callable[[], Any]
    output: Callable[[Any], Tensor]
    note: str = ""
    exact: Callable[[Inputs], Tensor] | None = None


Prepare = Callable[[Case, Inputs], Prepared]


@dataclass(frozen=True)
class Peer:
    """name: in tables; option: on the command line; branch: which of ours computes the same."""

    name: str
    option: str
    branch: str
    prepare: Prepare
