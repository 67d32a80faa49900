# SPDX-License-Identifier: Apache-2.0
"""What moves heads and tokens: the choice that all ranks make together. Ranks and communicators are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vorta_trt.model.parallel import exchange_choice, ranks
from vorta_trt.model.parallel.exchange_choice import ExchangeChoice, choose_exchange
from vorta_trt.plugins import VortaError

GPU = torch.device("cuda", 0)
GROUP: Any = SimpleNamespace(size=lambda: 2)
JOINED: Any = object()


class Ranks:
    """Rank 0, with what it and rank 1 lack."""

    def __init__(self, patch: pytest.MonkeyPatch, own: str = "", other: str = "", backends: str = "") -> None:
        self.asked = 0
        self.other = other
        if own:
            patch.setattr(exchange_choice, "load_library", self._fail)
        else:
            patch.setattr(exchange_choice, "load_library", object)
        self._own = own
        patch.setattr(exchange_choice, "nccl_version", lambda library: (22703, "libnccl.so.2"))
        patch.setattr(exchange_choice.dist, "all_gather_object", self._gather)
        patch.setattr(exchange_choice.dist, "get_backend_config", lambda group: backends or "cpu:gloo,cuda:nccl")
        patch.setattr(exchange_choice.GroupCommunicator, "of", lambda *arguments: JOINED)

    def _fail(self) -> None:
        raise VortaError(self._own)

    def _gather(self, obstacles: list[str], obstacle: str, group: object) -> None:
        self.asked += 1
        obstacles[:] = [obstacle, self.other]


def test_auto_is_the_library_where_every_rank_can(monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks(monkeypatch)
    reason = "every rank has a GPU, libvorta_trt and NCCL"
    assert choose_exchange("auto", GROUP, GPU, 9.0) == ExchangeChoice("library", reason, JOINED)
    assert choose_exchange("library", GROUP, GPU, 9.0) == ExchangeChoice("library", "asked for", JOINED)


@pytest.mark.parametrize(
    ("lacking", "device", "reason"),
    [
        ({"own": "NCCL: none"}, GPU, "rank 0: NCCL: none"),
        ({"other": "computes on cpu"}, GPU, "rank 1: computes on cpu"),
        ({"backends": "cpu:gloo,cuda:gloo"}, GPU, "rank 0: the group's backend is cpu:gloo,cuda:gloo"),
        ({}, torch.device("cpu"), "rank 0: computes on cpu"),
    ],
)
def test_what_one_rank_lacks_all_know(
    monkeypatch: pytest.MonkeyPatch, lacking: dict[str, str], device: torch.device, reason: str
) -> None:
    Ranks(monkeypatch, **lacking)
    assert choose_exchange("auto", GROUP, device, 9.0) == ExchangeChoice("torch", reason)
    with pytest.raises(ValueError, match=f"exchange 'library'.*{reason}; use 'torch' or 'auto'"):
        choose_exchange("library", GROUP, device, 9.0)


def test_torch_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch)
    assert choose_exchange("torch", GROUP, GPU, 9.0) == ExchangeChoice("torch", "asked for") and ranks.asked == 0


def test_a_failure_of_what_was_chosen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise VortaError("known-answer exchange: rank 0 of 2 has waited 60 s for the others")

    Ranks(monkeypatch)
    monkeypatch.setattr(exchange_choice.GroupCommunicator, "of", fail)
    with pytest.raises(VortaError, match="known-answer exchange"):
        choose_exchange("auto", GROUP, GPU, 9.0)


@pytest.mark.parametrize(("exchange", "asked", "overlaps"), [
    ("library", None, True), ("torch", None, False), ("library", False, False), ("torch", True, True)
])  # fmt: skip
def test_exchanges_of_the_library_overlap_unless_asked_otherwise(
    exchange: Any, asked: bool | None, overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "joined", lambda group: group)
    monkeypatch.setattr(ranks, "choose_exchange", lambda *arguments: ExchangeChoice(exchange, "asked for"))
    assert ranks.Ranks.of(GROUP, "balanced", 4, device=GPU, exchange=exchange, overlap=asked).overlap == overlaps
