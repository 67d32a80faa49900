# SPDX-License-Identifier: Apache-2.0
"""A run on disk: whole or not at all, readable by `load_router`, and with a log that resuming continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.model import AttentionGeometry, load_router
from vorta_trt.model.geometry import keep_tokens
from vorta_trt.model.training.run_folder import (
    RunError,
    RunFolder,
    TrainingState,
    check_resumable,
    open_log,
    reduction_rate,
    run_config,
)
from vorta_trt.plugins.errors import VortaError

ROUTER = {"blocks.0.router.linear.weight": torch.ones(6, 4), "blocks.0.router.linear.bias": torch.zeros(6)}


def config_of(geometry: AttentionGeometry) -> dict[str, Any]:
    return run_config(
        model_class="WanTransformer3DModel",
        checkpoint="some/where",
        video_size=(9, 64, 96),
        geometry=geometry,
        training={"steps": 3},
    )


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step, decisive={"seed": 1, "weights": {"diffusion": 1.0}}, optimizer={"state": {}, "param_groups": []}
    )


def authors_keep(bucket: tuple[int, int, int], rate: float) -> int:
    """`get_group_info` of the authors' code: the centre, and as many other tokens of a bucket as stay."""
    frames, height, width = bucket
    return int(frames * height * width * (1 - rate)) - 1 + 1


def test_both_codes_read_the_same_keep() -> None:
    """Every size of a bucket up to 512 tokens, and every keep: the rate as it stands in config.json."""
    for tokens in range(1, 513):
        geometry = AttentionGeometry((1, 1, tokens), (1, 1, tokens), (1, 1, 1), (1, 1, tokens), keep=1)
        for keep in range(1, tokens + 1):
            object.__setattr__(geometry, "keep", keep)  # a new one would be checked 131,328 times
            rate = json.loads(json.dumps(reduction_rate(geometry)))
            assert authors_keep((1, 1, tokens), rate) == keep_tokens((1, 1, tokens), rate) == keep
    published = AttentionGeometry.for_video(77, 720, 1280)
    assert reduction_rate(published) == 0.5


@pytest.mark.parametrize("keep", range(1, 13))
def test_the_published_layout(tmp_path: Path, keep: int) -> None:
    geometry = AttentionGeometry((4, 6, 4), (2, 3, 2), (1, 3, 1), (2, 3, 2), keep=keep)
    run = RunFolder(tmp_path / "run")
    run.start(config_of(geometry))
    folder = run.save(ROUTER, state(7))
    assert folder == tmp_path / "run/ckpt/step-000007"
    loaded = load_router(tmp_path / "run")
    assert loaded.path == folder / "router.pt"
    assert loaded.geometry() == geometry
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in ROUTER.items())
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert list(written) == [
        "name",
        "pretrained_model_path",
        "revision",
        "train_video_size",
        "self_attention_kwargs",
        "training",
    ]
    assert set(written["self_attention_kwargs"]) == {
        "lowres_window_size",
        "lowres_reduction_rate",
        "window_size",
        "tile_size",
        "latent_shape",
    }


def test_a_checkpoint_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.start(config_of(AttentionGeometry.for_video(9, 64, 96)))
    run.save(ROUTER, state(5))
    real, calls = torch.save, []

    def fails_the_second_time(content: object, file: Path) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(content, file)

    monkeypatch.setattr(torch, "save", fails_the_second_time)
    with pytest.raises(OSError, match="No space left"):
        run.save(ROUTER, state(10))
    assert [entry.name for entry in (tmp_path / "ckpt").iterdir()] == ["step-000005"]
    assert run.load_state().step == 5
    load_router(tmp_path)


def test_the_next_run_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / "ckpt/.step-000010.unfinished-123-ab"
    left.mkdir(parents=True)
    (left / "router.pt").write_bytes(b"half")
    (tmp_path / ".config.json.unfinished-123-ab").mkdir()
    run = RunFolder(tmp_path)
    assert run.steps() == []
    run.check_new()
    run.start(config_of(AttentionGeometry.for_video(9, 64, 96)))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ckpt", "config.json"]
    run.save(ROUTER, state(10))
    assert [entry.name for entry in (tmp_path / "ckpt").iterdir()] == ["step-000010"]


def test_refusals(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"has no ckpt/step-\* to resume from.*--resume"):
        run.load_state()
    run.start({})
    folder = run.save(ROUTER, state(3))
    with pytest.raises(RunError, match="holds a training run already.*--resume"):
        run.check_new()
    check_resumable(run.load_state(), state(3).decisive, steps=4)
    with pytest.raises(RunError, match="seed is 2, but the run was started with 1"):
        check_resumable(run.load_state(), {**state(3).decisive, "seed": 2}, steps=4)
    changed = {"seed": 2, "weights": {"diffusion": 0.5}}
    with pytest.raises(RunError, match=r"seed is 2.*\(and 1 more differ\)"):
        check_resumable(run.load_state(), changed, steps=4)
    with pytest.raises(RunError, match="the run has done 3 steps, 3 are asked for"):
        check_resumable(run.load_state(), state(3).decisive, steps=3)
    torch.save({**state(3).model_dump(), "step": "3"}, folder / "training.pt")
    with pytest.raises(RunError, match=r"training.pt is not readable \(step '3': .*step-000003"):
        run.load_state()
    (folder / "training.pt").write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"training.pt is not readable .*; remove step-000003"):
        run.load_state()
    (folder / "training.pt").unlink()
    with pytest.raises(RunError, match="was not trained here and cannot be resumed.*--rou"):
        run.load_state()


def test_the_log_continues_where_the_checkpoint_was(tmp_path: Path) -> None:
    run, file = RunFolder(tmp_path), tmp_path / "log.jsonl"
    with open_log(run) as write:
        for step in range(1, 6):
            write({"step": step, "loss": step / 2})
    with file.open("a") as stream:
        stream.write('{"step": 6, "lo')  # killed while writing
    with open_log(run, resumed_from=3) as write:
        write({"step": 4, "loss": -1.0})
    assert run.read_log() == [{"step": step, "loss": step / 2} for step in (1, 2, 3)] + [{"step": 4, "loss": -1.0}]
    with open_log(run):
        pass
    assert run.read_log() == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("{", "is not valid JSON"), ('{"step": "5"}', "step '5'"), ("[1]", r"content \[1\]"), ("{}", "step: is missing")],
)
def test_a_log_that_was_edited(tmp_path: Path, line: str, wrong: str) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunError, match=rf"log .*log.jsonl, line 2: {wrong}.*"):
        RunFolder(tmp_path).read_log()


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    with open_log(RunFolder(tmp_path), tensorboard=True) as write:
        write({"step": 1, "loss": 0.5, "timesteps": [1.0]})
    assert [file.name.split(".")[0] for file in (tmp_path / "report").iterdir()] == ["events"]
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(VortaError, match=r"package tensorboard is not installed .*pip install '\.\[train\]'"):
        open_log(RunFolder(tmp_path), tensorboard=True).__enter__()
