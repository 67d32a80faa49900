# SPDX-License-Identifier: Apache-2.0
"""docs/serving.md names every error code, metric, field and route."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import vorta_trt.serving
from vorta_trt.serving import Catalogue, JobStore, ServeSettings, create_app
from vorta_trt.serving.api_errors import CODES
from vorta_trt.serving.metric_table import METRICS
from vorta_trt.serving.video_request import VideoRequest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", re.sub(r"(?ms)^```.*?^```", "", TEXT)))))


def codes() -> set[str]:
    """Words for programs, as the sources give them."""
    found = {"worker_lost", "server_error", *CODES.values()}
    for path in Path(next(iter(vorta_trt.serving.__path__))).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("ApiError", "RequestError"):
                    found |= {
                        str(each.value) for each in node.args[2:3] if isinstance(each, ast.Constant) and each.value
                    }
            elif isinstance(node, ast.FunctionDef) and node.name == "describe_failure":
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                tuples = [each for each in returned if isinstance(each, ast.Tuple)]
                found |= {str(each.elts[0].value) for each in tuples if isinstance(each.elts[0], ast.Constant)}
    return found


def test_every_error() -> None:
    assert len(codes()) > 20
    assert codes() - WORDS == set()


def test_every_metric() -> None:
    assert set(METRICS) - WORDS == set()
    labels = {label for metric in METRICS.values() for label in metric.labels}
    assert labels - WORDS == set()


def test_fields_of_this_api() -> None:
    from vorta_trt.runtime.sampling.params import SamplingParams

    assert VideoRequest.model_fields.keys() - SamplingParams.model_fields.keys() - WORDS == set()


def test_every_route(catalogue: Catalogue, store: JobStore) -> None:
    settings = ServeSettings(models=(catalogue.get(None).settings,), jobs=store.folder)
    paths = create_app(settings, store, catalogue).openapi()["paths"]
    documented = {path.replace("{video_id}", "ID").replace("{name}", "NAME") for path in paths}
    assert len(documented) >= 9 and {path for path in documented if path not in TEXT} == set()
