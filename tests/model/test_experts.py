# SPDX-License-Identifier: Apache-2.0
"""Two experts in a checkpoint: what a folder says of them, which of them takes which step, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.model import CheckpointReader, RoutedTransformer, load_router
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.experts import steps_of_experts, timesteps_of_expert
from vorta_trt.model.families import get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.route_calibration import RouteCalibration

from ..kept import Kept
from ..tiny import TinyExperts, make_tiny


@pytest.mark.parametrize(
    ("timesteps", "high", "low"),
    [
        ((999.0, 875.0, 874.9, 500.0), 2, 2),  # the boundary itself is the first expert's
        ((999.0, 900.0), 2, 0),
        ((800.0, 700.0), 0, 2),
    ],
)
def test_which_expert_takes_which_step(timesteps: tuple[float, ...], high: int, low: int) -> None:
    expected = {TRANSFORMER: range(high), TRANSFORMER_2: range(high, high + low)}
    assert steps_of_experts(timesteps, 0.875) == {component: steps for component, steps in expected.items() if steps}
    assert steps_of_experts(timesteps, None) == {TRANSFORMER: range(len(timesteps))}
    for component, steps in expected.items():
        highest, lowest = timesteps_of_expert(component, 0.875)
        assert all(lowest <= timesteps[step] <= highest for step in steps)


def test_the_steps_are_those_of_diffusers_comparison() -> None:
    """As its loop has it, for every published boundary and all timesteps around it."""
    for ratio in (0.875, 0.9, 0.417, 0.3):
        timesteps = torch.arange(1000, 0, -0.5)
        boundary = ratio * 1000
        first = [bool(timestep >= boundary) for timestep in timesteps]
        steps = steps_of_experts(timesteps.tolist(), ratio)
        assert steps[TRANSFORMER] == range(sum(first)) and steps[TRANSFORMER_2] == range(sum(first), len(first))


def test_timesteps_that_cross_the_boundary_twice() -> None:
    with pytest.raises(ValueError, match="timesteps 900, 800, 900: must fall, so that the experts switch once, at 875"):
        steps_of_experts((900.0, 800.0, 900.0), 0.875)


def test_each_expert_has_its_own_weights_and_router(tiny_experts: TinyExperts) -> None:
    with (
        CheckpointReader(tiny_experts.checkpoint) as high,
        CheckpointReader(tiny_experts.checkpoint, TRANSFORMER_2) as low,
    ):
        assert high.experts == low.experts == COMPONENTS
        assert high.boundary_ratio == low.boundary_ratio == 0.875
        assert high.config == low.config and high.names() == low.names()
        name = "blocks.0.attn1.to_q.weight"
        assert not torch.equal(high.tensor(name), low.tensor(name))
        beside = CheckpointReader(tiny_experts.checkpoint / TRANSFORMER, TRANSFORMER_2)
        assert torch.equal(beside.tensor(name), low.tensor(name))
    models = tiny_experts.models()
    assert [(model.component, model.boundary_ratio) for model in models] == [(name, 0.875) for name in COMPONENTS]
    assert {model.checkpoint_name for model in models} == {"checkpoint"}
    at = torch.tensor([500.0])
    assert not torch.equal(models[0].route_scores(at), models[1].route_scores(at))


@pytest.fixture
def folder(tiny_experts: TinyExperts, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_experts.checkpoint, tmp_path / "checkpoint"))


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("ratio", [None, True, 0, 1.0, -0.5, "0.9"])
def test_two_experts_need_a_boundary(folder: Path, ratio: Any) -> None:
    edit(folder, boundary_ratio=ratio)
    with pytest.raises(CheckpointError, match="boundary_ratio .* with a transformer_2: must be a number between"):
        CheckpointReader(folder)


def test_experts_of_two_kinds(folder: Path) -> None:
    edit(folder, transformer_2=["diffusers", "SkyReelsV2Transformer3DModel"])
    with pytest.raises(CheckpointError, match="both experts must be of one class"):
        CheckpointReader(folder)


def test_a_boundary_without_a_second_expert_is_one_expert(folder: Path) -> None:
    edit(folder, transformer_2=[None, None])
    assert CheckpointReader(folder).experts == (TRANSFORMER,)
    assert RoutedTransformer.from_pretrained(folder).boundary_ratio is None
    with pytest.raises(CheckpointError, match="has no transformer_2, so it is a pipeline of one transformer"):
        CheckpointReader(folder, TRANSFORMER_2)


def test_folders_that_are_not_there(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="transformer_2: is the second of two experts; give the folder of both"):
        CheckpointReader(folder / TRANSFORMER_2)
    shutil.rmtree(folder / TRANSFORMER_2)
    with pytest.raises(FileNotFoundError, match="lacks transformer_2/, the second of two experts, .*; download it"):
        CheckpointReader(folder, TRANSFORMER_2)


def test_the_authors_layout_has_the_published_boundary(folder: Path) -> None:
    for component, name in zip(COMPONENTS, ("high_noise_model", "low_noise_model"), strict=True):
        (folder / component).rename(folder / name)
    (folder / "model_index.json").unlink()
    reader = CheckpointReader(folder, TRANSFORMER_2)
    assert reader.folder.name == "low_noise_model"
    assert (reader.experts, reader.boundary_ratio) == (COMPONENTS, 0.875)
    assert get_family("wan").published_boundary({"in_channels": 36, "out_channels": 16}) == 0.9


def test_a_router_of_the_other_expert(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    router = Path(shutil.copytree(tiny_experts.routers[TRANSFORMER_2], tmp_path / "router"))
    config = json.loads((router / "config.json").read_text())
    (router / "config.json").write_text(json.dumps(config | {"component": TRANSFORMER_2}))
    RoutedTransformer.from_pretrained(tiny_experts.checkpoint, router, component=TRANSFORMER_2)
    with pytest.raises(CheckpointError, match=r"trained for transformer_2 \(low noise\), and this is transformer"):
        RoutedTransformer.from_pretrained(tiny_experts.checkpoint, router)
    load_router(router).check_component(TRANSFORMER, (TRANSFORMER,))  # of a model alone nothing is said


def test_calibrated_routes_of_the_other_expert(tmp_path: Path) -> None:
    geometry = AttentionGeometry.for_video(9, 64, 96)
    routes = RouteCalibration(
        family="wan",
        geometry=geometry,
        buckets=((1000.0, 875.0),),
        routes=torch.zeros(1, 2, 3, dtype=torch.int8),
        errors=torch.zeros(1, 2, 3, 3),
        budget=0.1,
        component=TRANSFORMER,
    )
    routes.save(tmp_path / "routes.json")
    read = RouteCalibration.load(tmp_path / "routes.json")
    assert read.component == TRANSFORMER
    for component in (None, TRANSFORMER):
        read.check("wan", 2, 3, geometry, component)
    with pytest.raises(ValueError, match=r"are for transformer \(high noise\), the model is transformer_2"):
        read.check("wan", 2, 3, geometry, TRANSFORMER_2)


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_expert_without_its_config(tiny_experts: TinyExperts, tmp_path: Path, component: str) -> None:
    shutil.copytree(tiny_experts.checkpoint, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / component / "config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"restore .*checkpoint/{component}/config\.json") as refused:
        CheckpointReader(tmp_path / "checkpoint", component)
    assert "Error" not in str(refused.value)


def test_a_second_expert_of_another_kind_is_named(tiny_experts: TinyExperts, kept: Kept, tmp_path: Path) -> None:
    other = make_tiny(kept, "wan channels").checkpoint
    shutil.copytree(tiny_experts.checkpoint, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint" / TRANSFORMER_2)
    shutil.copytree(other / TRANSFORMER, tmp_path / "checkpoint" / TRANSFORMER_2)
    with pytest.raises(CheckpointError, match=r"its transformer_2 is that of a WanImageToVideoPipeline"):
        CheckpointReader(tmp_path / "checkpoint", TRANSFORMER_2)
