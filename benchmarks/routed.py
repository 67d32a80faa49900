# SPDX-License-Identifier: Apache-2.0
"""Our own rows of a case: every branch checked, then timed; mixed routes against their parts; graph replay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vorta_trt.benchmarks.cases import Case, Inputs, checked_head, head_counts, route_ids
from vorta_trt.benchmarks.checks import FACTOR, FP8_BOUND, Expected, padding_is_zero, relative_error
from vorta_trt.benchmarks.report import OURS, Row, failed_row
from vorta_trt.benchmarks.timing import Run, Timing
from vorta_trt.model import Branch, routed_attention
from vorta_trt.plugins import load_library
from vorta_trt.plugins.kernel_support import held_to
from vorta_trt.plugins.operator_schema import SAME_PRECISION

logger = logging.getLogger(__name__)
GRAPH = "graph replay"
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
Measured = Callable[[Row, Timing], Row]


def families_of(precision: str) -> set[str]:
    """The names of the kernel families of an attention precision, "same" or "fp8"."""
    return {family.name for family in load_library().kernel_families if family.attention_precision == precision}


class Routed:
    """Our operator on one case, in one precision.

    Args:
        kernels: The family of kernels that calls are held to, "" for the GPU's own; see `held_to`.
        expected: gives the checked head's output of a branch.
        measured: adds a timing's figures to a row.
        capture: makes a graph of a run.
    """

    def __init__(
        self,
        case: Case,
        inputs: Inputs,
        precision: str,
        *,
        expected: Callable[[str], Expected],
        timer: Callable[[Run], Timing],
        measured: Measured,
        capture: Capture,
        kernels: str = "",
    ) -> None:
        self._case, self._inputs, self._precision = case, inputs, precision
        self._expected, self._timer, self._measured, self._capture = expected, timer, measured, capture
        self._kernels = kernels
        self.name = OURS if precision == SAME_PRECISION else f"{OURS} {precision}"
        if kernels:
            self.name += f" ({kernels})"

    def rows(self, blank: Callable[[str, str], Row], branches: Sequence[str], graphs: Sequence[str]) -> list[Row]:
        """A row for each of `branches`, and one more through a graph for those of them that are in `graphs`.

        blank: makes the row of a branch and an implementation.
        """
        if self._precision != SAME_PRECISION and self._kernels in families_of(SAME_PRECISION):
            note = f"kernels {self._kernels} compute in the type of the tensors alone"
            return [replace(blank(branch, self.name), state="unavailable", note=note) for branch in branches]
        with held_to(self._kernels):
            return self._rows(blank, branches, graphs)

    def _rows(self, blank: Callable[[str, str], Row], branches: Sequence[str], graphs: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for branch in branches:
            row = self._guarded(self._branch_row, blank(branch, self.name))
            if branch == "mixed" and row.state == "ok":
                row = replace(row, parts=self._parts(row, rows))
            rows.append(row)
            if branch in graphs and row.state == "ok":
                errors = {name: getattr(row, name) for name in ("relative_error", "torch_error", "error_bound")}
                blank_graph = replace(blank(branch, f"{self.name}, {GRAPH}"), **errors)  # the very same output
                rows.append(self._guarded(self._graph_row, blank_graph))
        return rows

    def _guarded(self, make: Callable[[Row], Row], row: Row) -> Row:
        """Makes a failure of ours a row, so that a long run's other figures are kept; the command fails at its end."""
        try:
            return make(row)
        except RuntimeError as error:
            logger.exception("%s, %s, %s", row.case, row.branch, row.implementation)
            return failed_row(row, error)

    def _attend(self, inputs: Inputs, routes: Tensor) -> Tensor:
        options: dict[str, Any] = {} if self._precision == SAME_PRECISION else {"attention_precision": self._precision}
        tensors = (inputs.query, inputs.key, inputs.value)
        output: Tensor = routed_attention(*tensors, routes, self._case.geometry, inputs.text_length, **options)
        return output  # [1, S+T, N, D]

    def _routes(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], dtype=torch.int32, device=self._inputs.query.device)  # [B, N]

    def _branch_row(self, row: Row) -> Row:
        routes = self._routes(route_ids(row.branch, self._case.heads))
        output = self._attend(self._inputs, routes)
        row = self._checked(row, output)
        del output
        if row.state != "ok":
            return row
        return self._measured(row, self._timer(lambda: self._attend(self._inputs, routes)))

    def _checked(self, row: Row, output: Tensor) -> Row:
        """The row with its errors; for mixed routes, those of the branch that is nearest to its bound."""
        found = []
        for branch in head_counts(row.branch, self._case.heads):
            wanted, head = self._expected(branch), checked_head(branch, self._case.heads)
            found.append((relative_error(output[:, :, head : head + 1], wanted.output), wanted.torch_error))
        error, torch_error = max(found, key=lambda pair: pair[0] / pair[1])
        bound = self._bound(torch_error)
        row = replace(row, relative_error=error, torch_error=torch_error, error_bound=bound)
        if not padding_is_zero(self._case, output):
            return replace(row, state="wrong", note="rows of padded text are not 0; not timed")
        if bound is not None and not error <= bound:
            return replace(row, state="wrong", note=f"relative error {error:.2e} above {bound:.2e}; not timed")
        return row

    def _bound(self, torch_error: float) -> float | None:
        if self._precision == SAME_PRECISION:
            return FACTOR * torch_error
        return FP8_BOUND if self._case.inputs == "normal" else None  # on other inputs the error is stated

    def _graph_row(self, row: Row) -> Row:
        """Replay must equal the eager call, also after the routes were changed."""
        ids = route_ids(row.branch, self._case.heads)
        routes = self._routes(ids)
        replay = self._capture(lambda: self._attend(self._inputs, routes))
        changed = [(route + 1) % len(Branch) for route in ids]
        for what, given in (("the eager call", ids), ("the eager call after the routes were changed", changed)):
            routes.copy_(self._routes(given))
            eager = self._attend(self._inputs, self._routes(given))
            if not torch.equal(replay(), eager):
                return replace(row, state="wrong", note=f"replay differs from {what}; not timed")
        routes.copy_(self._routes(ids))
        note = "equals the eager call, also after the routes were changed"
        return self._measured(replace(row, note=note), self._timer(replay))

    def _parts(self, mixed: Row, rows: Sequence[Row]) -> dict[str, float]:
        """Milliseconds of the sum of the parts, and how many times longer the mixed call takes; see `Row.parts`."""
        counts = head_counts("mixed", self._case.heads)
        ids = route_ids("mixed", self._case.heads)
        whole = {row.branch: row.milliseconds for row in rows if row.implementation == self.name}
        sums: dict[str, float] = {}
        shares = [
            milliseconds * count / self._case.heads
            for kind, count in counts.items()
            if (milliseconds := whole.get(kind)) is not None
        ]
        if len(shares) == len(counts):
            sums["prorated"] = sum(shares)
        sums["separate"] = 0.0
        for kind in counts:
            route = int(Branch[kind.upper()])
            part = self._inputs.heads([head for head, own in enumerate(ids) if own == route])
            routes = self._routes([route] * counts[kind])
            sums["separate"] += self._timer(partial(self._attend, part, routes)).median
        assert mixed.milliseconds is not None
        figures = {f"{name}_milliseconds": value for name, value in sums.items()}
        figures |= {f"over_{name}": mixed.milliseconds / value for name, value in sums.items()}
        return {name: round(value, 4) for name, value in figures.items()}
