# SPDX-License-Identifier: Apache-2.0
"""A tiny Wan checkpoint and training data for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vorta_trt.model.checkpoint import CheckpointReader
from vorta_trt.model.families.training import training_family
from vorta_trt.model.families.wan.training import WanTraining

from .samples import CHANNELS, HEAD_DIM, HEADS, LAYERS, TEXT_DIM, Setup, write_data


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only cost time at this size, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint

    root = tmp_path_factory.mktemp("router training")
    make_wan_checkpoint(
        root / "wan",
        layers=LAYERS,
        heads=HEADS,
        head_dim=HEAD_DIM,
        ffn_dim=32,
        text_dim=TEXT_DIM,
        channels=CHANNELS,
        freq_dim=32,
        seed=3,
    )
    write_data(root / "data", ["cat", "dog", "the sea"])
    return Setup(root / "wan", root / "data")


@pytest.fixture(scope="session")
def family(setup: Setup) -> WanTraining:
    with CheckpointReader(setup.checkpoint) as reader:
        made = training_family(reader.family, reader.config)
    assert isinstance(made, WanTraining)
    return made
