# SPDX-License-Identifier: Apache-2.0
"""Tables in plain text: aligned, never wrapped, and whatever a cell holds stays as it is."""

from __future__ import annotations

from vorta_trt.model.tables import percent, table_lines


def test_columns_are_aligned() -> None:
    lines = table_lines(("name", "share"), [("a", percent(1)), ("longer", percent(0.0449)), ("b",)], left=1)
    assert lines == ["name     share", "a       100.0%", "longer    4.5%", "b"]


def test_the_last_column_to_the_left() -> None:
    assert table_lines(("", ""), [("1.5", "a"), ("10.5", "longer")], left=-1) == [" 1.5  a", "10.5  longer"]


def test_no_heading_and_no_markup() -> None:
    long = "/a/[bold]path/" + "x" * 300
    assert table_lines(("", ""), [("file", long), ("and one", "")], left=2) == [f"file     {long}", "and one"]
