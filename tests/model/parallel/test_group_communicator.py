# SPDX-License-Identifier: Apache-2.0
"""Communicators of process groups, with a stand-in for the library: who joins and leaves when."""

from __future__ import annotations

import pytest

from ...ranks import Pool


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_group_has_one_communicator_as_long_as_somebody_has_it(pool: Pool, ranks: int) -> None:
    for rank, found in enumerate(pool("communicators", ranks)):
        joined = ("join", (7, ranks, rank))  # with the id that the first rank has made
        first, aborted = [joined, ("exchange", rank), ("leave", ranks)], [joined, ("abort", ranks)]
        assert found["told"] == [*first, *aborted, *2 * [joined, ("leave", ranks)]]
        assert found["same"] and found["kept"] and found["gone"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_other_ranks_than_before_are_refused_by_all(pool: Pool, ranks: int) -> None:
    for found in pool("communicators", ranks):
        members = str([*range(ranks)])
        assert found["said"].startswith(f"VortaError: group of ranks {members}: rank 1 has a communicator of {ranks} ")
        assert "let go of the models or engines that have it first" in found["said"]
