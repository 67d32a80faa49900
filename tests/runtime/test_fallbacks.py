# SPDX-License-Identifier: Apache-2.0
"""A fallback is counted, logged once, and an error in strict mode."""

from __future__ import annotations

import logging

import pytest

from vorta_trt.runtime.fallbacks import KINDS, FallbackError, Fallbacks


def test_a_fallback_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fallbacks = Fallbacks()
    assert fallbacks.lines() == []
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            fallbacks.record("cuda graph capture", "shape 2 of 3")
        fallbacks.record("device memory", "80 of 90 GB free")
    assert fallbacks.counts == {"cuda graph capture": 3, "device memory": 1}
    assert len(caplog.records) == 2
    assert "cuda graph capture: shape 2 of 3; the engine is launched without a CUDA graph" in caplog.text
    assert fallbacks.lines()[0] == "cuda graph capture: 3 times: the engine is launched without a CUDA graph"


def test_what_differs_from_request_to_request_is_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    fallbacks = Fallbacks()
    for tokens in (600, 700):
        fallbacks.record("prompt length", f"the prompt has {tokens} tokens, and the model takes 512")
    assert fallbacks.counts == {"prompt length": 2}
    assert [record.getMessage() for record in caplog.records] == [
        f"prompt length: the prompt has {tokens} tokens, and the model takes 512; the end of the text is cut off"
        for tokens in (600, 700)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_strict_mode_refuses_every_kind(kind: str) -> None:
    fallbacks = Fallbacks(strict=True)
    with pytest.raises(FallbackError, match=f"{kind}: a reason; strict mode refuses what would happen instead: "):
        fallbacks.record(kind, "a reason")
    assert not fallbacks.counts


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="fallback 'luck': must be one of cuda graph capture"):
        Fallbacks().record("luck", "none")
