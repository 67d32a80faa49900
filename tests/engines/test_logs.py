# SPDX-License-Identifier: Apache-2.0
"""Collectors of TensorRT's log are open side by side and inside each other, and each is one of its own."""

from __future__ import annotations

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
