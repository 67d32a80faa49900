# SPDX-License-Identifier: Apache-2.0
"""One operator at one size: what it costs at least, who computes it, and whether that is right.

Letters: B batch, X tokens, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vorta_trt.benchmarks.timing import Run


@dataclass(frozen=True)
class Implementation:
    """Something that computes the operator on the prepared tensors.

    Attributes:
        name: Name in the rows.
        run: Makes one call and returns its outputs.
        ours: Whether it is ours, not a peer's.
    """

    name: str
    run: Run
    ours: bool = False


@dataclass(frozen=True)
class Prepared:
    """The tensors of a case on the GPU, and everything that computes on them.

    Attributes:
        implementations: What is measured. The first peer is the one that the others are compared with, in time and, for
            ours, in error.
        error: The relative error of an implementation's outputs against float32 or float64, for a sample of rows.
    """

    implementations: Sequence[Implementation]
    error: Callable[[Any], float]


@dataclass(frozen=True)
class OperatorCase:
    """One operator at one size.

    Attributes:
        operator: Name of the operator as an ONNX node.
        model: Name of the model that has this size.
        size: The size in words, such as "72,000 x 5120 to 13824, gelu_tanh".
        flops: FLOPs of a call, 0 where memory decides.
        bytes: Bytes that a call reads and writes at least.
        prepare: Makes the tensors; takes the name of a torch dtype, such as "bfloat16", and a seed.
    """

    operator: str
    model: str
    size: str
    flops: int
    bytes: int
    prepare: Callable[[str, int], Prepared]

    def __str__(self) -> str:
        return f"{self.operator}, {self.model}, {self.size}"
