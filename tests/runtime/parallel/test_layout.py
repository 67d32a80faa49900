# SPDX-License-Identifier: Apache-2.0
"""Who computes what, and checksums by which ranks compare it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vorta_trt.runtime.parallel.checksums import RankDifferenceError, check_same, checksum
from vorta_trt.runtime.parallel.layout import Layout, choose_layout

from ...ranks import Pool


@pytest.mark.parametrize(
    ("options", "guidance", "sharing"),
    [
        ({"ranks": 4, "guided": True}, 2, 2),
        ({"ranks": 4, "guided": False}, 1, 4),
        ({"ranks": 4, "guided": True, "guidance_parallel": False}, 1, 4),
        ({"ranks": 5, "guided": True}, 1, 5),
        ({"ranks": 2, "guided": True, "shared_by": 1}, 2, 1),
        ({"ranks": 4, "guided": True, "shared_by": 4}, 1, 4),
        ({"ranks": 8, "guided": True, "shared_by": 4}, 2, 4),
    ],
)
def test_a_layout_for_every_run(options: dict[str, Any], guidance: int, sharing: int) -> None:
    layout = choose_layout(heads=40, **options)
    assert (layout.guidance, layout.sharing) == (guidance, sharing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ranks": 4, "guided": False, "heads": 6},
            "4 of them would share a pass, and the model's 6 heads .*; use one of 1, 2, 3, 6$",
        ),
        (
            {"ranks": 6, "guided": True},
            "gpus 6: 3 of them .* use one of 1, 2, 4, 5, 8, 10, 16, 20, 40, 80$",
        ),
        ({"ranks": 6, "guided": True, "guidance_parallel": True}, "use one of 2, 4, 8, 10, 16, 20, 40, 80$"),
        ({"ranks": 3, "guided": True, "guidance_parallel": False}, "use one of 1, 2, 4, 5, 8, 10, 20, 40$"),
        ({"ranks": 2, "guided": False, "guidance_parallel": True}, "there is one pass a step, since guidance is off"),
        ({"ranks": 3, "guided": True, "guidance_parallel": True}, "guidance_parallel with gpus 3: must be even"),
        ({"ranks": 4, "guided": True, "shared_by": 1}, "built for one GPU; give 2 with guidance in parallel"),
        ({"ranks": 2, "guided": True, "shared_by": 4}, "for 4 GPUs; give 4 or 8 with guidance in parallel"),
        ({"ranks": 2, "guided": False, "shared_by": 1}, "leave it out: guidance in parallel needs a guidance scale"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_layout(**{"heads": 40, **options})


def test_groups_are_rows_and_columns() -> None:
    layout = Layout(6, guidance=2)
    assert layout.sharers() == [[0, 1, 2], [3, 4, 5]]
    assert layout.partners() == [[0, 3], [1, 4], [2, 5]]
    assert [layout.pass_of(rank) for rank in range(6)] == [0, 0, 0, 1, 1, 1]
    assert str(layout) == "6 ranks: 3 ranks for each of the two passes of guidance"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_a_checksum_sees_every_element_and_the_order(dtype: torch.dtype) -> None:
    values = torch.arange(1, 101).to(dtype)
    sums = {checksum(values), checksum(values.flip(0))}
    for place in (0, 50, 99):
        changed = values.clone()
        changed[place] += 1
        sums.add(checksum(changed))
    assert len(sums) == 5
    assert checksum(values.view(10, 10).T.contiguous().T) == checksum(values)


def test_the_ranks_that_differ_are_named() -> None:
    check_same([3, 3, 3], "latents")
    with pytest.raises(RankDifferenceError, match="latents: rank 1 and rank 3 have other values than ranks 0, 2;"):
        check_same([3, 4, 3, 5], "latents")


def test_ranks_exchange_and_notice_that_they_differ(pool: Pool) -> None:
    for rank, found in enumerate(pool("exchanges", 4, scale=2.0)):
        assert found.pop("said").startswith(
            "RankDifferenceError: latents before step 2: rank 1 have other values than ranks 0, 2, 3;"
        )
        assert found == {
            "patience": [25.0, 25.0],
            "gathered": [0, 1, 2, 3],
            "from the first": 7,
            "passes": [[[2.0], [6.0]], [[4.0], [8.0]]][rank % 2],
            "text": {"rows": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "valid": [True, False]},
        }
