# SPDX-License-Identifier: Apache-2.0
"""A second look at cases that may have failed by bad luck.

The coreset branch keeps the tokens that are least similar to their bucket's centre. Where two similarities nearly tie,
rounding decides which token stays, and the output of that token jumps. This happens in torch as in the engine, but not
for the same tokens. In a small model a single jump outweighs all rounding, so one run may exceed twice torch's error
without any fault. A fault shows for every input, bad luck does not. So such a case runs again on other inputs, and the
run with the median error counts. Routes need no second look: if they differ, there is a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vorta_trt.model.geometry import Branch
from vorta_trt.runtime.verification.cases import Case
from vorta_trt.runtime.verification.report import CaseReport
from vorta_trt.runtime.verification.sides import ROUTES, Sides

# Odd, so that there is a median. One run in ten jumps beyond the limit; five runs of nine do once in a thousand cases.
DRAWS = 9


@dataclass(frozen=True)
class Outcome:
    """A case, the outputs of its sides, and on how many different inputs it ran."""

    case: Case
    sides: Sides
    draws: int = 1

    @property
    def report(self) -> CaseReport:
        """The errors, and whether they pass."""
        return CaseReport(
            name=self.case.name,
            draws=self.draws,
            outputs=[self.sides.error(name) for name in self.sides.truth if name != ROUTES],
            different_routes=self.sides.different(ROUTES),
            routes=self.sides.truth[ROUTES].size,
            fp8_attention=self.sides.fp8,
            fp8_linears=self.sides.fp8_linears,
        )

    @property
    def excess(self) -> float:
        """The largest error in multiples of its limit."""
        return max(error.relative_l2 / error.limit for error in self.report.outputs)

    @property
    def may_be_bad_luck(self) -> bool:
        """Whether the case failed with equal routes, and at least one head took the coreset branch."""
        report = self.report
        uses_coreset = bool((self.sides.truth[ROUTES] == Branch.CORESET).any())
        return not report.passed and report.different_routes == 0 and uses_coreset


def redraw(
    outcomes: Sequence[Outcome], draw: Callable[[str, int], Case], run: Callable[[list[Case]], list[Sides]]
) -> list[Outcome]:
    """Replaces each outcome that may be bad luck by the one of `DRAWS` draws with the median error.

    Args:
        outcomes: The outcome of each case.
        draw: Makes the case of a name with other inputs, given the number of the draw.
        run: Runs cases.
    """
    again = [outcome.case.name for outcome in outcomes if outcome.may_be_bad_luck]
    if not again:
        return list(outcomes)
    cases = [draw(name, number) for name in again for number in range(1, DRAWS)]
    more = [Outcome(case, sides) for case, sides in zip(cases, run(cases), strict=True)]

    def middle(first: Outcome) -> Outcome:
        draws = [first, *(outcome for outcome in more if outcome.case.name == first.case.name)]
        finite = sorted(draws, key=lambda outcome: outcome.excess if outcome.excess == outcome.excess else float("inf"))
        chosen = finite[len(finite) // 2]
        return Outcome(chosen.case, chosen.sides, len(draws))

    return [middle(outcome) if outcome.case.name in again else outcome for outcome in outcomes]
