# SPDX-License-Identifier: Apache-2.0
"""The timestep path alone gives the routes that the engine takes, from wherever its weights come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
import torch
from torch import Tensor

from vorta_trt.engines import Bundle, BundleError
from vorta_trt.engines.manifest import Manifest
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.timestep_path import TimestepPath
from vorta_trt.runtime.from_checkpoint import Source
from vorta_trt.runtime.sampling.path_source import timestep_path_of
from vorta_trt.runtime.schedules import schedule_timesteps

STEPS = 50
TIE = 1e-4  # of scores; closer ones may go either way in another runtime, where the embedding is rounded to 16 bits


def schedule(made: Any) -> tuple[float, ...]:
    return schedule_timesteps(made.checkpoint, STEPS, "flow-euler", 7.0).timesteps


def exported(made: Any, precision: str) -> Path:
    path: Path = made.folder / f"{precision} same.onnx"
    return path if path.exists() else made.export(precision)


class RoutesOfTheFile:
    """The part of an exported graph that gives `routes`, in ONNX Runtime: a whole schedule in one run, bf16 too."""

    def __init__(self, path: Path, folder: Path) -> None:
        names = ["timestep", "tau", "route_override"]
        onnx.utils.extract_model(path, folder / "routes.onnx", names, ["routes"], check_model=False)
        self.session = onnxruntime.InferenceSession(folder / "routes.onnx", providers=["CPUExecutionProvider"])

    def __call__(self, timesteps: Any, tau: float) -> Tensor:
        """int32 [P, L, N]"""
        shape = self.session.get_inputs()[2].shape
        feeds = {
            "timestep": np.array(timesteps, np.float32),
            "tau": np.array([tau], np.float32),
            "route_override": np.full(shape, -1, np.int32),
        }
        return torch.from_numpy(self.session.run(None, feeds)[0]).transpose(0, 1)  # from [L, P, N]


@pytest.mark.parametrize(
    ("family", "precision"),
    [("wan", "fp32"), ("wan", "fp16"), ("wan", "bf16"), ("hunyuan_video", "fp32"), ("hunyuan_video", "bf16")],
)
def test_routes_are_those_of_the_engine_over_a_schedule(
    family: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(family)
    path = exported(made, precision)
    known = timestep_path_of(path)
    assert known is not None
    engine = RoutesOfTheFile(path, tmp_path)
    rounded = torch.tensor(schedule(made)).to(torch.bfloat16).tolist()  # as HunyuanVideo's pipeline gives them
    branches = set()
    for timesteps in (schedule(made), rounded):
        best, second = known.route_scores(timesteps).topk(2).values.unbind(-1)  # [P, L, N] each
        for tau in (0.0, 0.3, float(best.median()), 1.1):
            tied = torch.minimum(best - second, (best - tau).abs()) < (TIE if precision != "fp32" else TIE / 10)
            assert tied.float().mean() < 0.03
            routes, taken = known.route_table(timesteps, tau).routes.int(), engine(timesteps, tau)
            assert torch.equal(routes[~tied], taken[~tied])
            assert taken.any() == (tau < 1)
            branches |= set(taken.unique().tolist())
    assert len(branches) > 1


@pytest.mark.parametrize(
    ("family", "precision", "dtype"), [("wan", "bf16", torch.bfloat16), ("hunyuan_video", "fp32", torch.float32)]
)
def test_a_model_and_its_export_have_the_same_path_to_the_bit(
    family: str, precision: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(family)
    timesteps = schedule(made)
    on_disk = Source(made.checkpoint, made.router, precision=precision).model()
    loaded = RoutedTransformer.from_pretrained(made.checkpoint, made.router, dtype=dtype)
    paths = [
        timestep_path_of(exported(made, precision)),
        TimestepPath.from_model(on_disk),
        TimestepPath.from_model(loaded),
    ]
    assert not on_disk.materialized
    first, *others = [path for path in paths if path is not None]
    assert len(others) == 2
    scores = first.route_scores(timesteps)
    with torch.no_grad():
        direct = loaded.route_scores(torch.tensor(timesteps)).transpose(0, 1)
    assert torch.equal(scores, direct)
    for other in others:
        assert torch.equal(other.route_scores(timesteps), scores)
        assert other.signals == first.signals
        for signal in first.signals:
            assert torch.equal(other.embedding(timesteps, signal), first.embedding(timesteps, signal))  # type: ignore[arg-type]
    table = first.route_table(timesteps)
    assert (table.geometry, table.other_flops) == (made.geometry, others[0].route_table(timesteps).other_flops)


def test_embeddings_are_what_diffusers_computes(wan: Any) -> None:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(wan.checkpoint / "transformer")
    path = TimestepPath.from_model(RoutedTransformer.from_model(model))
    timesteps = schedule(wan)
    text = torch.zeros(STEPS, 1, model.config.text_dim)
    with torch.no_grad():
        temb, modulation, *_ = model.condition_embedder(torch.tensor(timesteps), text, None)
    torch.testing.assert_close(path.embedding(timesteps), temb)
    torch.testing.assert_close(path.embedding(timesteps, "modulation"), modulation)


def test_hunyuan_video_has_no_modulation_of_the_timestep_alone(hunyuan_video: Any) -> None:
    path = TimestepPath.from_model(Source(hunyuan_video.checkpoint, hunyuan_video.router).model())
    assert path.signals == ("embedding",)
    with pytest.raises(ValueError, match="signal 'modulation': must be 'embedding' for a hunyuan_video model"):
        path.embedding([1.0], "modulation")


def test_overrides_per_step_and_without_router(wan: Any, seed: int) -> None:
    path = TimestepPath.from_model(Source(wan.checkpoint, wan.router).model())
    generator = torch.Generator().manual_seed(seed)
    override = torch.randint(-1, 3, (3, 2, 3), generator=generator, dtype=torch.int32)  # [P, L, N]
    timesteps = [900.0, 500.0, 10.0]
    routes = path.route_table(timesteps, 0.0, override).routes
    free = path.route_table(timesteps, 0.0).routes
    assert torch.equal(routes.int(), torch.where(override >= 0, override, free.int()))
    model = RoutedTransformer.from_pretrained(wan.checkpoint, geometry=wan.geometry, materialize=False)
    assert not TimestepPath.from_model(model).route_table(timesteps, 0.0).routes.any()
    with pytest.raises(ValueError, match=r"timesteps \[\]: must hold at least one"):
        path.route_table([])


# -- bundles -----------------------------------------------------------------------------------------------------------


def without(bundle: Path, copy: Path, *names: str) -> Path:
    """The bundle as an older version would have written it: without some files."""
    shutil.copytree(bundle, copy)
    document = json.loads((copy / "manifest.json").read_text())
    for name in names:
        (copy / name).unlink()
        del document["files"][name]
    Manifest.model_validate_json(json.dumps(document)).write(copy / "manifest.json")
    return copy


def test_a_bundle_holds_its_path(wan: Any, bundle: Path, fp16: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle, runtime=False)
    assert opened.timestep_path == bundle / "timestep_path.safetensors"
    assert "timestep_path.safetensors" in opened.manifest.files
    copy = without(bundle, tmp_path / "no onnx.bundle", "model.onnx")
    in_bundle, of_file = timestep_path_of(copy), timestep_path_of(fp16)
    assert in_bundle is not None and of_file is not None and in_bundle.has_router
    timesteps = schedule(wan)
    assert torch.equal(in_bundle.route_scores(timesteps), of_file.route_scores(timesteps))
    assert torch.equal(in_bundle.embedding(timesteps, "modulation"), of_file.embedding(timesteps, "modulation"))
    assert in_bundle.tau == 0.3
    (copy / "timestep_path.safetensors").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="timestep_path.safetensors is cut short"):
        timestep_path_of(copy)


def test_an_older_bundle_takes_it_from_its_onnx_file(wan: Any, bundle: Path, tmp_path: Path) -> None:
    timesteps = schedule(wan)
    now = timestep_path_of(bundle)
    assert now is not None
    older = without(bundle, tmp_path / "older.bundle", "timestep_path.safetensors")
    of_onnx = timestep_path_of(older)
    assert of_onnx is not None and torch.equal(of_onnx.route_scores(timesteps), now.route_scores(timesteps))
    bare = without(older, tmp_path / "bare.bundle", "model.onnx")
    assert Bundle.open(bare, runtime=False).timestep_path is None
    assert timestep_path_of(bare) is None


def test_files_that_hold_no_path(wan: Any, fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32)
    kept = [tensor for tensor in model.graph.initializer if "linear_2" not in tensor.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "lacking.onnx")
    with pytest.raises(ValueError, match="lacking.onnx: lacks condition_embedder.time_embedder.linear_2.weight"):
        timestep_path_of(tmp_path / "lacking.onnx")
    model = onnx.load(fp32)
    kept = [tensor for tensor in model.graph.initializer if "router" not in tensor.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "routerless.onnx")
    with pytest.raises(ValueError, match="its metadata and its timestep path disagree about a router"):
        timestep_path_of(tmp_path / "routerless.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    assert timestep_path_of(tmp_path / "foreign.onnx") is None
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.safetensors: not readable as safetensors"):
        TimestepPath.load(
            tmp_path / "x.safetensors", family="wan", config={}, geometry=wan.geometry, dtype=torch.float32
        )
    weights = {"condition_embedder.time_embedder.linear_1.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"x.safetensors: out_channels '16' is nothing that WanTransformer3DModel takes"
    ):
        TimestepPath.from_weights(
            weights, weights.__getitem__, family="wan", config={"out_channels": "16"}, geometry=wan.geometry,
            dtype=torch.float32, source="x.safetensors",
        )  # fmt: skip
