# SPDX-License-Identifier: Apache-2.0
"""`studies/one_rank_at_a_time.py` with a tiny model on the CPU."""

from __future__ import annotations

import one_rank_at_a_time as study
import pytest
import torch
from torch import distributed

from vorta_trt.benchmarks.step.cases import StepCase
from vorta_trt.benchmarks.step.models import Subject

SIZES = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 2, "ffn_dim": 64, "text_dim": 24}


def test_every_rank_is_measured_and_the_slowest_counts() -> None:
    subject = Subject.make(StepCase("tiny", "wan", SIZES, (9, 64, 96), passes=2, shift=3.0), "cpu", torch.float32)
    rows = [*study.measure(subject, ["50/50"], [2], runs=1)]
    assert [(row["gpus"], row["placement"]) for row in rows] == [(2, "balanced"), (2, "in_order")]
    for row in rows:
        assert len(row["rank_seconds"]) == row["gpus"]
        assert row["computing_seconds"] >= max(row["rank_seconds"]) > row["packing_seconds"] > 0
        assert row["speedup_of_computing"] == pytest.approx(row["one_gpu_seconds"] / row["computing_seconds"])
        assert row["estimated_speedup"] < row["speedup_of_computing"] and row["h100_exchange_seconds"] > 0
    assert not distributed.is_initialized() and subject.routed.parallel is None
