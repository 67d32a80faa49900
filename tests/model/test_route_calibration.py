# SPDX-License-Identifier: Apache-2.0
"""The file of calibrated routes: whole or refused, and looked up for any schedule."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.route_calibration import RouteCalibration

GEOMETRY = AttentionGeometry.for_video(9, 64, 96)
BUCKETS = ((999.0, 700.0), (700.0, 100.0))


def made(seed: int = 0, **changes: Any) -> RouteCalibration:
    generator = torch.Generator().manual_seed(seed)
    values = {
        "family": "wan",
        "geometry": GEOMETRY,
        "buckets": BUCKETS,
        "routes": torch.randint(0, 3, (2, 3, 4), generator=generator, dtype=torch.int8),
        "errors": torch.rand(2, 3, 4, 3, generator=generator),
        "budget": 0.1,
        "checkpoint": "Wan2.1",
        "settings": {"seed": 3, "check": {"sample_errors": [0.1, 0.2]}},
    }
    return RouteCalibration(**{**values, **changes})


def test_a_file_and_back(tmp_path: Path, seed: int) -> None:
    written, path = made(seed), tmp_path / "c.json"
    written.save(path)
    read = RouteCalibration.load(path)
    for name in ("family", "geometry", "buckets", "budget", "checkpoint", "settings"):
        assert getattr(read, name) == getattr(written, name)
    assert read.routes.dtype == torch.int8 and torch.equal(read.routes, written.routes)
    assert read.errors.dtype == torch.float32
    torch.testing.assert_close(read.errors, written.errors, rtol=1e-5, atol=0)
    before = path.read_bytes()
    read.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    made().save(path)
    before = path.read_bytes()

    def full(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        made(1).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


def test_overrides() -> None:
    calibration = made()
    override = calibration.overrides([1000, 999, 700, 699, 100, 0])
    assert override.dtype == torch.int32 and override.shape == (6, 3, 4)
    for step, bucket in enumerate([0, 0, 0, 1, 1, 1]):
        assert torch.equal(override[step], calibration.routes[bucket].int())
    assert torch.equal(calibration.overrides(torch.tensor([999, 0])), override[[0, 5]])


def test_predicted_errors_and_shares() -> None:
    routes = torch.tensor([[[0, 1, 2]]], dtype=torch.int8)
    errors = torch.tensor([[[[0.0, 9.0, 9.0], [0.0, 0.3, 9.0], [0.0, 9.0, 0.4]]]])
    calibration = made(buckets=BUCKETS[:1], routes=routes, errors=errors, budget=0.5)
    assert calibration.layer_errors.tolist() == [[pytest.approx(0.5)]]
    assert calibration.shares() == pytest.approx({"full": 1 / 3, "coreset": 1 / 3, "sliding": 1 / 3})
    assert "1 buckets, 1 layers, 3 heads: 33.3% full" in calibration.describe()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("hunyuan_video", 3, 4),
            "Wan2.1: are for family wan, the model has hunyuan_video; calibrate the model",
        ),
        (("wan", 30, 4), "are for layers 3, the model has 30"),
        (("wan", 3, 12), "are for heads 4, the model has 12"),
    ],
)
def test_another_model(given: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made().check(*given)


def test_another_size_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made().check("wan", 3, 4, GEOMETRY)
        made().check("wan", 3, 4)
        assert not caplog.text
        made().check("wan", 3, 4, AttentionGeometry.for_video(29, 96, 128))
    assert "were measured with grid 3x4x6" in caplog.text and "and are used with grid 8x6x8" in caplog.text


def _set(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def _ragged(content: dict[str, Any]) -> None:
    content["routes"][1][2].pop()


def _fourth_branch(content: dict[str, Any]) -> None:
    content["routes"][1][2][0] = 3


def _half_a_branch(content: dict[str, Any]) -> None:
    content["routes"][0][0][0] = 0.5


def _not_a_number(content: dict[str, Any]) -> None:
    content["errors"][0][0][0][1] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set(format=2), "format 2: must be 1"),
        (_set(family="mochi"), "family 'mochi': must be one of 'wan', 'hunyuan_video'"),
        (_set(geometry={"grid": [3, 4, 6]}), "geometry with keys .*missing"),
        (_set(buckets=[]), "buckets: there are none"),
        (_set(buckets=[[100, 700], [700, 100]]), r"must be pairs \(upper, lower\) of timesteps that descend"),
        (_set(buckets=[[999, 700, 100]]), "buckets.0 .*: Tuple should have at most 2 items"),
        (_set(buckets=[[999, 100]]), r"routes of shape \(2, 3, 4\), torch.int8: must be int8 \[1, L, N\]"),
        (_set(routes=[[], []]), r"routes of shape \(2, 0\)"),
        (_set(routes="full"), "routes 'full': must be a valid array"),
        (_set(errors=[[0.5]]), "errors.0.0 0.5: must be a valid array"),
        (_set(errors=[[[[0.5]]]]), r"errors of shape \(1, 1, 1, 1\), torch.float32: must be float32 \(2, 3, 4, 3\)"),
        (_set(budget=-1), "budget -1.0: must be finite and not negative"),
        (_ragged, "expected sequence of length"),
        (_fourth_branch, r"routes: must be 0 \(full\), 1 \(coreset\) or 2 \(sliding\)"),
        (_half_a_branch, "routes.0.0.0 0.5: must be a valid integer"),
        (_not_a_number, "errors.0.0.0.1 nan: must be a finite number"),
        (lambda content: content.pop("checkpoint"), "checkpoint: is missing"),
    ],
)
def test_damage_is_named(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    path = tmp_path / "c.json"
    made().save(path)
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"calibrated routes .*c.json: .*{message}.*; make it with"):
        RouteCalibration.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_what_is_no_such_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"calibrated routes .*c.json: .*`vorta-trt"):
        RouteCalibration.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent.json: no such file.*`vorta-trt calibrate`"):
        RouteCalibration.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("measured", "used", "warns"),
    [
        ("Wan2.1", "Wan2.2", True),
        ("Wan2.1 + fast.safetensors", "Wan2.2", True),
        ("Wan2.1", "Wan2.1", False),
        ("Wan2.1 + fast.safetensors", "Wan2.1", False),
        ("", "Wan2.2", False),
        ("Wan2.1", None, False),
    ],
)
def test_another_checkpoint_is_a_warning(
    measured: str, used: str | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made(checkpoint=measured).check("wan", 3, 4, GEOMETRY, checkpoint=used)
    assert ("calibrated routes of Wan2.1: are used with the weights of Wan2.2" in caplog.text) == warns
    assert bool(caplog.records) == warns
