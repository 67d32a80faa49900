# SPDX-License-Identifier: Apache-2.0
"""Every case of `bench blocks`. An operator's file adds its cases here."""

from __future__ import annotations

from collections.abc import Sequence

from vorta_trt.benchmarks.blocks import cross_attention, linear, norms
from vorta_trt.benchmarks.blocks.case import OperatorCase

MODULES = (linear, norms, cross_attention)


def all_cases() -> list[OperatorCase]:
    """The cases of every operator, in the order in which they are measured."""
    return [case for module in MODULES for case in module.cases()]


def select_cases(operators: Sequence[str] = (), models: Sequence[str] = ()) -> list[OperatorCase]:
    """The cases of some operators and models; all of them where nothing is named.

    Raises:
        ValueError: A name is none of an operator or model.
    """
    cases = all_cases()
    for what, names, known in (
        ("operator", operators, list(dict.fromkeys(case.operator for case in cases))),
        ("model", models, list(dict.fromkeys(case.model for case in cases))),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"{what} {name!r}: must be one of {', '.join(known)}")
    return [
        case for case in cases if (not operators or case.operator in operators) and (not models or case.model in models)
    ]
