# SPDX-License-Identifier: Apache-2.0
"""Collectors of TensorRT's log are open side by side and inside each other, and each is one of its own."""

from __future__ import annotations

import threading
from typing import Any

from vorta_trt.engines.logs import LogHub


def test_nested_collectors_with_the_same_content_stay_apart() -> None:
    hub = LogHub("vorta_trt.test")
    with hub.collect() as outer:
        with hub.collect() as inner:
            hub.emit("ERROR", "inside")
        hub.emit("WARNING", "after")
    assert (outer.warnings, outer.errors) == (["after"], ["inside"])
    assert (inner.warnings, inner.errors) == ([], ["inside"])


def test_collectors_may_close_in_any_order() -> None:
    hub = LogHub("vorta_trt.test")
    first, second = hub.collect(), hub.collect()
    one, two = first.__enter__(), second.__enter__()
    hub.emit("WARNING", "both")
    first.__exit__(None, None, None)
    hub.emit("WARNING", "the second alone")
    second.__exit__(None, None, None)
    assert (one.warnings, two.warnings) == (["both"], ["both", "the second alone"])


def test_a_message_may_come_while_another_one_is_handed_out() -> None:
    """From an engine that Python collects at that moment, on the same thread."""
    hub = LogHub("vorta_trt.test")

    class Collecting(list[Any]):
        def append(self, message: Any) -> None:
            super().append(message)
            hub.emit("WARNING", "freed")

    def log() -> None:
        with hub.collect() as collected:
            collected.errors = Collecting()
            hub.emit("ERROR", "first")
        found.append(collected)

    found: list[Any] = []
    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    thread.join(10)
    assert [(each.errors, each.warnings) for each in found] == [(["first"], ["freed"])]
