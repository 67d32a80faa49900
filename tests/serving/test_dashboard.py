# SPDX-License-Identifier: Apache-2.0
"""Grafana's dashboard shows every metric of the table, with its labels, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vorta_trt.serving.metric_table import METRICS, MetricKind

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "vorta-trt.json"


def test_every_metric_is_shown_and_there_are_no_others() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    shown = set()
    for panel in panels:
        for target in panel["targets"]:
            for found in re.findall(r"vorta_\w+", target["expr"]):
                name = found if found in METRICS else re.sub("_(bucket|sum|count)$", "", found)
                histogram = METRICS[name].kind is MetricKind.HISTOGRAM
                assert (found != name) == histogram, f"{found} is not exposed"
                shown.add(name)
                grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
                labels = {label for group in grouped for label in re.split(", *", group)} - {"le"}
                assert labels <= set(METRICS[name].labels), f"{panel['title']}: {labels}"
    assert shown == set(METRICS)
    assert len({panel["id"] for panel in panels}) == len(panels)
