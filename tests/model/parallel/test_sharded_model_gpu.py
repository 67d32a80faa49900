# SPDX-License-Identifier: Apache-2.0
"""Whole transformers in bfloat16 on 2 and 4 GPUs: no less exact than on one, within a factor of 2, as everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ...ranks import Pool, started
from .conftest import MODELS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpus() -> Iterator[Pool]:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs 2 GPUs: torch finds {count}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCCL_NVLS_ENABLE", "0")
        with started(min(count, 4), "cuda") as pool:
            yield pool


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_error_is_that_of_one_gpu(
    gpus: Pool, folders: dict[str, dict[str, str]], ranks: int, name: str, seed: int
) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs: torch finds {torch.cuda.device_count()}")
    for placement, block_ops in (("balanced", "plugin"), ("in_order", "native")):
        case = {"placement": placement, "block_ops": block_ops, "seed": seed}
        found = gpus("errors_on_gpus", ranks, **folders[name], **case)
        print(placement, block_ops, found)
        assert all(0 < of_all <= 2 * of_one for of_one, of_all in found)
        assert len(set(found)) == 1  # the same sample on every rank
