# SPDX-License-Identifier: Apache-2.0
"""Sizes, geometries, and the export in the middle of a build."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vorta_trt.engines import BuildError, SelectionError, bundle_writer, get_flavour
from vorta_trt.engines.flavours import Ability
from vorta_trt.export import read_metadata
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router
from vorta_trt.model.safetensors_files import WEIGHTS
from vorta_trt.model.video_size import VideoSize
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import Engine, from_checkpoint
from vorta_trt.runtime.from_checkpoint import Source, at_sizes, build_checkpoint, export_checkpoint

from ..model import original_names
from ..tiny import SIZE, SMALL, WAN, Tiny, save_calibration


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("text", ["77x720x1280", " 77X720x1280 ", "77 x 720 × 1280"])
def test_sizes(text: str) -> None:
    assert VideoSize.parse(text) == VideoSize(77, 720, 1280)
    assert str(VideoSize.parse(text)) == "77x720x1280"


@pytest.mark.parametrize(
    "text", ["", "77x720", "77x720x1280x3", "720p", "77,720,1280", "-77x720x1280", "77.0x720x1280"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be FRAMESxHEIGHTxWIDTH in pixels; use e.g. 77x720x1280"):
        VideoSize.parse(text)


def test_the_routers_geometry_is_the_default(wan: Any) -> None:
    assert Source(wan.checkpoint, wan.router).model().geometry == wan.geometry
    same = Source(wan.checkpoint, wan.router, VideoSize(*SIZE)).model()
    assert same.geometry == wan.geometry
    assert not same.materialized


def test_the_routers_tiles_win_where_the_grid_is_the_same(wan: Any, tmp_path: Path) -> None:
    trained = AttentionGeometry(wan.geometry.grid, (3, 2, 3), (1, 1, 1), (3, 2, 2), 6)
    router = make_router(tmp_path / "router", trained, layers=2, heads=3, head_dim=32)
    assert Source(wan.checkpoint, router, VideoSize(*SIZE)).model().geometry == trained


def test_the_authors_layout_exports_to_the_same(tiny_wan: Tiny, tmp_path: Path) -> None:
    state = load_file(tiny_wan.checkpoint / "transformer" / WEIGHTS)
    folder = tmp_path / "Wan2.1-T2V-Tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": WAN["heads"]}))
    save_file({original_names.wan(name): tensor for name, tensor in state.items()}, folder / WEIGHTS)
    source = Source(folder, tiny_wan.router, precision="fp32")
    path = export_checkpoint(source, tmp_path / "model.onnx", silent)
    inputs = source.model().inputs(seed=1)
    with Engine(path) as theirs, Engine(tiny_wan.onnx) as right:
        outputs = theirs(**inputs), right(**inputs)
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in ("sample", "routes"))


def test_a_size_that_the_router_was_not_trained_for(wan: Any, caplog: pytest.LogCaptureFixture) -> None:
    size = VideoSize(29, 96, 128)
    from_checkpoint._warn_once.cache_clear()
    for _ in range(2):  # for the plan, and to run it
        model = Source(wan.checkpoint, wan.router, size).model()
    assert model.geometry == AttentionGeometry.for_video(29, 96, 128, "wan")
    assert caplog.text.count("size 29x96x128: has token grid (8, 6, 8), and router") == 1
    assert "was trained for (3, 4, 6)" in caplog.text


def test_a_size_is_needed_without_router_or_config(wan: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: there is no router, so the video size is unknown"):
        Source(wan.checkpoint).model()
    bare = tmp_path / "router.pt"
    bare.write_bytes(next(wan.router.glob("ckpt/*/router.pt")).read_bytes())
    with pytest.raises(ValueError, match="size: .*router.pt has no config.json, so the video size is unknown"):
        Source(wan.checkpoint, bare).model()
    model = Source(wan.checkpoint, bare, VideoSize(*SIZE)).model()
    assert model.geometry == wan.geometry
    assert model.has_router


def test_a_router_of_another_family(wan: Any, tmp_path: Path) -> None:
    """Its family asks the model's config for entries that this one's has not."""
    family = "hunyuan_video_15"
    geometry = AttentionGeometry.for_video(*SIZE, family)
    router = make_router(tmp_path / "router", geometry, family, video=SIZE, layers=2, heads=3, head_dim=32)
    with pytest.raises(CheckpointError, match="belongs to another model family than a wan model"):
        Source(wan.checkpoint, router).model()


def test_tau_and_precision(wan: Any) -> None:
    assert Source(wan.checkpoint, wan.router).model().tau == 0.3
    assert Source(wan.checkpoint, wan.router, tau=0.5).model().tau == 0.5
    with pytest.raises(ValueError, match="precision 'int8': must be one of fp32, fp16, bf16"):
        Source(wan.checkpoint, wan.router, precision="int8").model()


def test_attention_precision(wan: Any, tmp_path: Path) -> None:
    assert Source(wan.checkpoint, wan.router).model().attention_precision == "same"
    source = Source(wan.checkpoint, wan.router, attention_precision="fp8")
    assert source.model().attention_precision == "fp8"
    done: list[str] = []
    with pytest.raises(BuildError, match="attention_precision fp8 needs GPUs of compute capability 8.9 or newer, and"):
        build_checkpoint(source, tmp_path / "wan.bundle", lambda what, *_: done.append(what))
    assert done == ["loading the checkpoint"]  # refused before the export, which takes minutes at real size
    assert not list(tmp_path.iterdir())
    bundle = build_checkpoint(source, tmp_path / "wan.bundle", silent, strict=False)
    assert bundle.manifest.attention_precision == "fp8"
    assert bundle.manifest.plugin is not None and bundle.manifest.plugin.layers == 2
    with pytest.raises(ValueError, match="attention_precision 'fp4': must be 'same' or 'fp8'"):
        Source(wan.checkpoint, wan.router, attention_precision="fp4").model()


def test_a_bundle_in_one_go(wan: Any, tmp_path: Path) -> None:
    stages: list[str] = []

    mapped: list[bool] = []

    def note(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total or total == 0
        stages.append(what)
        if what.startswith("building"):
            mapped.append(str(checkpoint) in Path("/proc/self/maps").read_text())

    checkpoint = make_wan_checkpoint(  # of its own, which no other test maps
        tmp_path / "checkpoint", **WAN, dtype=torch.bfloat16
    )
    folder = tmp_path / "out"
    bundle = build_checkpoint(Source(checkpoint, wan.router), folder / "wan 1.bundle", note)
    assert not any(mapped)  # the checkpoint's pages would count against the build's memory
    assert [entry.name for entry in folder.iterdir()] == ["wan 1.bundle"]  # nothing temporary is left
    assert bundle.manifest.precision == "bf16"
    assert bundle.manifest.plugin is not None
    assert bundle.manifest.plugin.layers == 2
    assert "timestep_path.safetensors" in bundle.manifest.files
    assert {"loading the checkpoint", "exporting: tracing the model", "exporting: writing weights"} <= set(stages)
    assert any(stage.startswith("building: ") for stage in stages)


def test_several_sizes_in_one_go(wan: Any, tmp_path: Path) -> None:
    stages: list[str] = []
    source = Source(wan.checkpoint, wan.router, precision="fp16")
    sources = at_sizes(source, [VideoSize(*SIZE), VideoSize(*SMALL)])
    bundle = build_checkpoint(sources, tmp_path / "wan.bundle", lambda what, *_: stages.append(what))
    assert [str(key) for key in bundle.engines] == ["transformer 9x64x96", "transformer 5x32x64"]
    assert {"exporting: transformer 5x32x64, tracing the model"} <= set(stages)
    assert any(stage.startswith("building: transformer 5x32x64, ") for stage in stages)
    assert [entry.name for entry in tmp_path.iterdir()] == ["wan.bundle"]  # nothing temporary is left
    assert len({view.timestep_path for view in bundle.views()}) == 1
    assert len({view.plan_path for view in bundle.views()}) == 2
    with pytest.raises(ValueError, match="transformer 9x64x96: is given twice"):
        build_checkpoint([sources[0], sources[0]], tmp_path / "other.bundle", silent)


def test_calibrated_routes_go_to_their_size(wan: Any, tmp_path: Path) -> None:
    routes = save_calibration(tmp_path / "routes.json", wan.geometry, (1000.0, 500.0), (500.0, 0.0))
    source = Source(wan.checkpoint, wan.router, route_override=routes)
    here, there = at_sizes(source, [VideoSize(*SIZE), VideoSize(*SMALL)])
    assert (here.route_override, there.route_override) == (routes, None)
    with pytest.raises(ValueError, match="which is that of none of the sizes 5x32x64, 13x64x96"):
        at_sizes(source, [VideoSize(*SMALL), VideoSize(13, 64, 96)])


def test_the_engines_of_several_sizes(wan: Any) -> None:
    """The copies of the ONNX files share their weights, and compute what the exported files compute."""
    seed = int(np.random.default_rng().integers(2**31))
    print(f"inputs from seed {seed}")
    for size, file in (("9x64x96", wan.export("fp16")), ("5x32x64", wan.folder / "fp16 small.onnx"), (None, None)):
        with Engine(wan.several, size=size, executor="onnxruntime") as engine:
            if file is None:
                assert str(engine.target.key) == "transformer 9x64x96"
                continue
            feeds = example_inputs(engine, seed)
            ours = engine(**feeds)
            assert engine.metadata is not None and str(engine.metadata.video_size) == size
        with Engine(file) as engine:
            theirs = engine(**feeds)
        assert all((ours[name] == theirs[name]).all() for name in theirs)
    with pytest.raises(SelectionError, match="was built for 9x64x96, 5x32x64; use one of these"):
        Engine(wan.several, size="81x480x832", executor="onnxruntime")


def example_inputs(engine: Engine, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shapes = {spec.name: [1 if isinstance(axis, str) else axis for axis in spec.shape] for spec in engine.inputs}
    return {
        spec.name: random.standard_normal(shapes[spec.name]).astype(spec.dtype)
        for spec in engine.inputs
        if spec.name not in ("tau", "route_override")
    }


def test_the_destination_is_checked_before_the_slow_part(
    wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Source) -> Any:
        raise AssertionError("the checkpoint was loaded")

    monkeypatch.setattr(Source, "model", never)
    (tmp_path / "x.bundle").mkdir()
    with pytest.raises(WriteError, match="exists and is not a bundle"):
        build_checkpoint(Source(wan.checkpoint, wan.router), tmp_path / "x.bundle", silent)
    with pytest.raises(ValueError, match="x.txt: its suffix must be .onnx; use e.g. .*x.onnx"):
        export_checkpoint(Source(wan.checkpoint, wan.router), tmp_path / "x.txt", silent)
    (tmp_path / "x.bundle/manifest.json").touch()
    router = shutil.copytree(wan.router, tmp_path / "x.bundle/router")
    with pytest.raises(WriteError, match=f"would be replaced, and {router}, from which it is to be made, lies in it"):
        build_checkpoint(Source(wan.checkpoint, router), tmp_path / "x.bundle", silent, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": (3, 2, 1)}, "batch .3, 2, 1.: must be 1 <= min <= opt <= max"),
        ({"optimization_level": 9}, "optimization_level 9: must be 0"),
        ({"workspace_gib": float("nan")}, "workspace_gib nan: must be positive"),
        ({"compute_capabilities": ["5.0"]}, "5.0"),
        ({"version_compatible": True}, "version_compatible: TensorRT-RTX has no such option"),
        ({"route_override": "absent.json"}, "calibrated routes absent.json: no such file"),
    ],
)
def test_options_are_checked_before_the_export(
    wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("vorta_trt.export.export_onnx", lambda *a, **k: pytest.fail("it was exported"))
    options = {**options}
    routes = options.pop("route_override", None)
    source = Source(wan.checkpoint, wan.router, route_override=None if routes is None else Path(routes))
    with pytest.raises((ValueError, RuntimeError, OSError), match=message):
        build_checkpoint(source, tmp_path / "x.bundle", silent, **options)
    assert not list(tmp_path.iterdir())


def test_plugin_and_space_are_checked_before_the_export(
    wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vorta_trt.export.export_onnx", lambda *a, **k: pytest.fail("it was exported"))
    source = Source(wan.checkpoint, wan.router)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
        with pytest.raises(WriteError, match=r"needs \d+\.\d MB, the disk has 0\.0 MB free"):
            build_checkpoint(source, tmp_path / "x.bundle", silent)
    monkeypatch.setattr(from_checkpoint, "load_plugin", lambda flavour: (_ for _ in ()).throw(VortaError("no plugin")))
    with pytest.raises(VortaError, match="no plugin"):
        build_checkpoint(source, tmp_path / "x.bundle", silent)
    assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_nothing(wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(bundle_writer, "build_plan", fail)
    with pytest.raises(MemoryError):
        build_checkpoint(Source(wan.checkpoint, wan.router), tmp_path / "x.bundle", silent)
    assert not list(tmp_path.iterdir())


def test_tensorrt_8_gets_opset_17_in_float16(wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its file is nothing that ONNX Runtime could run."""
    monkeypatch.setattr(type(get_flavour("tensorrt8")), "can_build", lambda self: Ability(True, "stands in for a GPU"))
    monkeypatch.setattr(type(get_flavour("tensorrt8")), "target", lambda self, *given: None)
    monkeypatch.setattr(from_checkpoint, "load_plugin", lambda flavour: None)
    kept = tmp_path / "kept.onnx"

    class Kept(Exception):
        pass

    def keep(flavour: Any, onnx: Any, *arguments: Any) -> None:
        assert flavour.name == "tensorrt8"
        shutil.copy(onnx.path, kept)
        raise Kept

    monkeypatch.setattr(bundle_writer, "load_plugin", lambda flavour: None)
    monkeypatch.setattr(bundle_writer, "build_plan", keep)
    for precision in ("bf16", "fp32"):
        with pytest.raises(ValueError, match=f"precision '{precision}'.*use --precision"):
            source = Source(wan.checkpoint, wan.router, precision=precision)
            build_checkpoint(source, tmp_path / "m.bundle", silent, tensorrt="tensorrt8")
    source = Source(wan.checkpoint, wan.router, precision="fp16")
    with pytest.raises(Kept):
        build_checkpoint(source, tmp_path / "m.bundle", silent, tensorrt="tensorrt8")
    assert (read_metadata(kept).opset, read_metadata(kept).precision) == (17, "fp16")
    with pytest.raises(ValueError, match="has no portable form of vorta::RoutedAttention, as files of opset 17"):
        Engine(kept)
