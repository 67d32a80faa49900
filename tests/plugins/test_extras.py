# SPDX-License-Identifier: Apache-2.0
"""Optional packages: what is there is imported, and what is not names the extra to install, before the long work."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import get_args

import pytest

from vorta_trt.model.route_picture import check_picture
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.extras import Extra, MissingExtraError, import_extra

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_what_is_installed_is_imported() -> None:
    assert import_extra("math", "plot") is math


@pytest.mark.parametrize("extra", get_args(Extra))
def test_what_is_not_installed_names_the_extra(extra: Extra) -> None:
    with pytest.raises(MissingExtraError, match=rf"package no_such_package .*pip install '\.\[{extra}\]'") as caught:
        import_extra("no_such_package.part", extra)
    assert isinstance(caught.value, VortaError) and isinstance(caught.value, ImportError)


def test_every_extra_is_in_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    declared = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(get_args(Extra)) <= set(declared)
    assert {"rtx", "tensorrt", "test"} <= set(declared)


def test_a_picture_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(MissingExtraError, match=r"package matplotlib .*'.\[plot\]'"):
        check_picture(tmp_path / "routes.png")
