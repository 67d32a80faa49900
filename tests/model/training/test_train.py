# SPDX-License-Identifier: Apache-2.0
"""Whole training runs of a tiny model: what they learn, and that interruptions change nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import RoutedTransformer, hard_routes, load_router
from vorta_trt.model.families.wan.training import WanTraining
from vorta_trt.model.training import (
    DataError,
    LossWeights,
    RunError,
    TrainingError,
    TrainingReport,
    TrainingSettings,
    train_router,
)
from vorta_trt.model.training.data import LatentDataset
from vorta_trt.model.training.objective import RouterObjective, attach_routers
from vorta_trt.model.training.run_folder import RunFolder
from vorta_trt.model.training.timesteps import draw_noise

from .samples import GEOMETRY, ONE_THREAD, SHAPE, Setup, write_data

GRID = torch.linspace(1, 1000, 41)  # timesteps that routers are looked at


def train(setup: Setup, output: Path, data: Path | None = None, **options: Any) -> TrainingReport:
    settings = {"precision": "fp32", "steps": 10, "batch_size": 2, "seed": 1}
    settings |= {name: options.pop(name) for name in list(options) if hasattr(TrainingSettings(), name)}
    report = train_router(
        setup.checkpoint, data or setup.data, output, TrainingSettings(**settings), device="cpu", **options
    )
    assert report is not None
    return report


def routed(setup: Setup, run: Path | None) -> RoutedTransformer:
    """The model with a run's routers; None: with those that a run of seed 1 starts from."""
    model = RoutedTransformer.from_pretrained(setup.checkpoint, router=run, geometry=GEOMETRY)
    attach_routers(model, seed=1)
    return model


def scores_at(setup: Setup, run: Path | None) -> Tensor:
    """Scores [L, B, N, 3] of a run's routers over all timesteps."""
    with torch.no_grad():
        return routed(setup, run).route_scores(GRID)


def full_share(scores: Tensor) -> float:
    return float((hard_routes(scores, 0.3) == 0).float().mean())


# -- learning ----------------------------------------------------------------------------------------------------------


def test_the_loss_falls(setup: Setup, family: WanTraining, tmp_path: Path) -> None:
    weights = LossWeights(diffusion=1.0, distillation=20.0, regularisation=0.02)
    report = train(setup, tmp_path / "run", steps=40, weights=weights)
    dataset = LatentDataset(setup.data, family, SHAPE)
    latents, conditions = dataset.batch([0, 1, 2])

    def distance(run: Path | None) -> tuple[float, float]:
        """Total loss and distillation on noise and timesteps that are the same for every router."""
        objective = RouterObjective(routed(setup, run), family, weights)
        found = []
        for part, timestep in enumerate((950.0, 700.0, 450.0, 210.0, 100.0)):
            noise = draw_noise(99, 1, part, tuple(latents.shape))
            with torch.no_grad():
                losses = objective(latents, noise, torch.full((3,), timestep), conditions)
            found.append((float(losses["total"]), float(losses["distillation"])))
        return sum(total for total, _ in found), sum(distillation for _, distillation in found)

    before, after = distance(None), distance(report.output)
    assert after[0] < before[0]
    assert after[1] < 0.5 * before[1]
    assert report.last["distillation"] < report.first["distillation"]


def test_the_full_branch_falls_under_the_regulariser_and_rises_without(setup: Setup, tmp_path: Path) -> None:
    regularised = LossWeights(diffusion=1.0, distillation=20.0, regularisation=5.0)
    train(setup, tmp_path / "falls", steps=25, weights=regularised)
    start, falls = scores_at(setup, None), scores_at(setup, tmp_path / "falls")
    assert falls[..., 0].mean() < 0.5 * start[..., 0].mean()
    assert full_share(falls) < 0.1 < full_share(start)

    distilled = LossWeights(diffusion=0.0, distillation=20.0, regularisation=0.0)
    train(setup, tmp_path / "rises", steps=25, weights=distilled, router=tmp_path / "falls", learning_rate=3e-2)
    rises = scores_at(setup, tmp_path / "rises")
    assert rises[..., 0].mean() > 2 * falls[..., 0].mean()
    assert full_share(rises) > 0.5

    log = RunFolder(tmp_path / "rises").read_log()
    assert [line["step"] for line in log] == list(range(1, 26))
    assert log[-1]["share_full"] > log[0]["share_full"]
    for line in log:
        assert sum(line[f"share_{branch}"] for branch in ("full", "coreset", "sliding")) == pytest.approx(1)
        assert sum(line[f"score_{branch}"] for branch in ("full", "coreset", "sliding")) == pytest.approx(1, abs=1e-5)
        assert len(line["timesteps"]) == 2


def test_what_is_written_routes_the_model(setup: Setup, tmp_path: Path) -> None:
    train(setup, tmp_path / "run", steps=3)
    loaded = load_router(tmp_path / "run")
    assert loaded.geometry() == GEOMETRY
    assert loaded.config is not None
    assert loaded.config["train_video_size"] == [9, 64, 96]
    model = RoutedTransformer.from_pretrained(setup.checkpoint, router=tmp_path / "run")
    _, routes = model(**model.inputs())
    assert torch.equal(routes, hard_routes(model.route_scores(model.inputs()["timestep"]), 0.3))


def test_micro_batches_change_nothing_but_speed(setup: Setup, tmp_path: Path) -> None:
    train(setup, tmp_path / "one", steps=2, batch_size=6)
    train(setup, tmp_path / "three", steps=2, batch_size=6, micro_batch_size=3)
    one, three = (load_router(tmp_path / name).state_dict for name in ("one", "three"))
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=1e-4, atol=1e-4)  # AdamW divides by tiny gradients
    logs = [RunFolder(tmp_path / name).read_log() for name in ("one", "three")]
    for line, other in zip(*logs, strict=True):
        assert line["timesteps"] == other["timesteps"] and len(line["timesteps"]) == 6
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
    train(setup, tmp_path / "one", steps=3, batch_size=6, micro_batch_size=2, resume=True)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({}, [1, 1, 1, 1]),
        ({"schedule": "constant_with_warmup", "warmup_steps": 2}, [0, 0.5, 1, 1]),
        ({"schedule": "linear", "warmup_steps": 1}, [0, 1, 2 / 3, 1 / 3]),
        ({"schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_is_a_function_of_the_step(
    setup: Setup, tmp_path: Path, schedule: dict[str, Any], rates: list[float]
) -> None:
    options = {"batch_size": 1, "learning_rate": 0.5, **schedule}
    train(setup, tmp_path / "run", steps=4, checkpoint_every=2, **options)
    log = RunFolder(tmp_path / "run").read_log()
    assert [line["learning_rate"] / 0.5 for line in log] == pytest.approx(rates, abs=1e-5)
    if schedule.get("schedule") in ("linear", "cosine"):
        with pytest.raises(RunError, match="steps is 5, but the run was started with 4"):
            train(setup, tmp_path / "run", steps=5, resume=True, **options)
    else:
        train(setup, tmp_path / "run", steps=5, resume=True, **options)
        assert RunFolder(tmp_path / "run").read_log()[-1]["learning_rate"] == 0.5


def test_a_geometry_of_ones_own(setup: Setup, tmp_path: Path) -> None:
    shapes = {"tile": (1, 2, 3), "window": (1, 3, 1), "bucket": (3, 2, 1), "reduction_rate": 0.9}
    train(setup, tmp_path / "run", steps=1, batch_size=1, **shapes)
    geometry = load_router(tmp_path / "run").geometry()
    assert geometry is not None
    assert (geometry.tile, geometry.window, geometry.bucket, geometry.keep) == ((1, 2, 3), (1, 3, 1), (3, 2, 1), 1)
    with pytest.raises(ValueError, match=r"tile \(1, 2, 0\): entry 0: must be at least 1"):
        train(setup, tmp_path / "other", tile=(1, 2, 0))


@pytest.mark.parametrize("wrong", [{"window": (3, 2, 3)}, {"reduction_rate": 1.0}])
def test_window_and_rate_are_checked_before_the_data_is_read(
    setup: Setup, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="window .*odd|reduction rate"):
        train(setup, tmp_path / "run", data=tmp_path / "no such folder", **wrong)


def test_a_tile_and_a_bucket_that_do_not_divide_the_grid(setup: Setup, tmp_path: Path) -> None:
    """The grid is (3, 4, 6)."""
    report = train(setup, tmp_path / "run", steps=2, batch_size=1, tile=(2, 3, 4), window=(1, 1, 1), bucket=(2, 3, 5))
    assert all(value == value for value in report.last.values())
    geometry = load_router(tmp_path / "run").geometry()
    assert geometry is not None and (geometry.tiles, geometry.buckets) == ((2, 2, 2), (2, 2, 2))


def test_bf16_and_tensorboard(setup: Setup, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    report = train(
        setup, tmp_path / "run", steps=3, precision="bf16", batch_size=4, micro_batch_size=2, tensorboard=True
    )
    assert all(value == value for value in report.last.values())
    assert any((tmp_path / "run/report").iterdir())
    assert all(tensor.dtype == torch.float32 for tensor in load_router(tmp_path / "run").state_dict.values())


# -- interruptions -----------------------------------------------------------------------------------------------------


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Routers, optimiser and log are equal to the last bit."""
    for name in ("router.pt", "training.pt"):
        held = [torch.load(run / f"ckpt/step-{step:06d}" / name, weights_only=True) for run in (one, other)]
        assert_equal(*held)
    logs = [[{**line, "seconds": 0} for line in RunFolder(run).read_log()] for run in (one, other)]
    assert logs[0] == logs[1]


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for parts in zip(one, other, strict=True):
            assert_equal(*parts)
    else:
        assert one == other


def test_resuming_changes_nothing(setup: Setup, tmp_path: Path) -> None:
    train(setup, tmp_path / "whole", steps=9, checkpoint_every=9)
    train(setup, tmp_path / "parts", steps=4)
    train(setup, tmp_path / "parts", steps=9, checkpoint_every=9, resume=True, gradient_checkpointing=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 9)
    train(setup, tmp_path / "other", steps=9, seed=2)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "whole", tmp_path / "other", 9)


KILLED = """
import sys
from vorta_trt.model.training import TrainingSettings, train_router
settings = TrainingSettings(steps=100000, batch_size=2, seed=1, precision="fp32", checkpoint_every=1)
train_router(*sys.argv[1:], settings, device="cpu")
"""


def test_a_killed_run_leaves_a_loadable_checkpoint(setup: Setup, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, setup.checkpoint, setup.data, run], env=ONE_THREAD)
    try:
        deadline = time.monotonic() + 300
        while len(list((run / "ckpt").glob("step-*"))) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for folder in (run / "ckpt").glob("step-*"):
        load_router(folder / "router.pt")
        assert torch.load(folder / "training.pt", weights_only=True)["step"] == int(folder.name[5:])
    routed(setup, run)

    step = max(int(folder.name[5:]) for folder in (run / "ckpt").glob("step-*")) + 2
    train(setup, run, steps=step, resume=True)
    assert not list(run.rglob(".*unfinished-*"))
    train(setup, tmp_path / "whole", steps=step)
    assert_same_run(tmp_path / "whole", run, step)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_bad_data_stops_a_run_before_it_starts(setup: Setup, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["cat", "dog"])
    (data / "prompts/dog.safetensors").unlink()
    with pytest.raises(DataError, match="sample 'dog': has a caption but no text embedding"):
        train(setup, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()
    report = train(setup, tmp_path / "run", data=data, skip_bad=True, steps=1)
    assert (report.samples, report.skipped) == (1, 1)
    assert "1 samples (1 skipped)" in report.summary()
    with pytest.raises(DataError, match=r"latents have shape .* must be \(4, 3, 8, 16\)"):
        train(setup, tmp_path / "run 2", video_size=(9, 64, 128))


def test_a_run_is_not_overwritten_or_continued_as_another(setup: Setup, tmp_path: Path) -> None:
    train(setup, tmp_path / "run", steps=2)
    with pytest.raises(RunError, match="holds a training run already"):
        train(setup, tmp_path / "run", steps=2)
    with pytest.raises(RunError, match="learning_rate is 0.5, but the run was started with 0.01"):
        train(setup, tmp_path / "run", steps=4, learning_rate=0.5, resume=True)
    with pytest.raises(RunError, match=r"geometry.keep is \d+, but the run was started with"):
        train(setup, tmp_path / "run", steps=4, reduction_rate=0.75, resume=True)
    data = write_data(tmp_path / "data", ["something else"])
    with pytest.raises(RunError, match="data is .*, but the run was started with"):
        train(setup, tmp_path / "run", data=data, steps=4, resume=True)
    with pytest.raises(RunError, match="the run has done 2 steps, 2 are asked for"):
        train(setup, tmp_path / "run", steps=2, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss or its gradient is not finite .*--learning-rate"):
        train(setup, tmp_path / "run", steps=20, learning_rate=1e30, checkpoint_every=1)
    load_router(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps 0: must be greater than or equal to 1"),
        ("learning_rate", 0.0, "learning_rate 0.0: must be greater than 0"),
        ("learning_rate", float("inf"), "learning_rate inf: must be a finite number"),
        ("weight_decay", -1.0, "weight_decay -1.0"),
        ("seed", -1, "seed -1: must be greater than or equal to 0"),
        ("precision", "fp16", "precision 'fp16': must be 'bf16' or 'fp32'"),
        ("schedule", "exponential", "schedule 'exponential': must be 'constant'"),
        ("warmup_steps", 5, "warmup_steps 5: schedule 'constant' has no warm-up; use 'constant_with_warmup'"),
        ("accumulation", 4, "accumulation: is not known"),
    ],
)
def test_settings_that_make_no_sense(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{name: value})


def test_devices_that_are_not_there(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'tpu': must be one of auto, cpu, cuda"):
        train_router(setup.checkpoint, setup.data, tmp_path / "run", device="tpu")
    with pytest.raises(ValueError, match="--fsdp: there is one process, nothing to shard over"):
        train(setup, tmp_path / "run", fsdp=True)
