# SPDX-License-Identifier: Apache-2.0
"""Buckets of timesteps."""

from __future__ import annotations

import pytest
import torch

from vorta_trt.model.calibration.buckets import bucket_of, make_buckets

STEPS = [1000.0, 990.0, 970.0, 940.0, 900.0, 850.0, 700.0, 400.0]


def test_buckets_have_equally_many_steps() -> None:
    assert make_buckets(STEPS, 2) == ((1000, 920), (920, 400))
    buckets = make_buckets(STEPS, 3)
    assert buckets[0][0] == 1000 and buckets[-1][1] == 400
    assert all(one[1] == other[0] for one, other in zip(buckets, buckets[1:], strict=False))
    assert sorted(bucket_of(STEPS, buckets).bincount().tolist()) == [2, 3, 3]
    assert bucket_of(STEPS, buckets).tolist() == sorted(bucket_of(STEPS, buckets).tolist())
    assert make_buckets(STEPS, 1) == ((1000, 400),)
    assert bucket_of(STEPS, make_buckets(STEPS, 8)).tolist() == list(range(8))
    assert make_buckets([3, 3, 2], 2) == ((3, 2.5), (2.5, 2))


@pytest.mark.parametrize("count", [0, 9])
def test_counts_that_make_no_sense(count: int) -> None:
    with pytest.raises(ValueError, match=f"buckets {count}: must be between 1 and the 8 different timesteps"):
        make_buckets(STEPS, count)


def test_other_timesteps_take_the_nearest_bucket() -> None:
    buckets = ((1000.0, 900.0), (800.0, 500.0), (500.0, 100.0))  # with a gap
    given = [2000, 1000, 899, 851, 850, 849, 500, 499, 100, 0]
    assert bucket_of(given, buckets).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert bucket_of(torch.tensor([950, 0]), buckets).tolist() == [0, 2]
