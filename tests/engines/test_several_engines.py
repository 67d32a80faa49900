# SPDX-License-Identifier: Apache-2.0
"""Bundles of several engines: a manifest of the second version, views of one engine, and what is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from vorta_trt.engines import Bundle, EngineKey, Manifest, SelectionError, build_engine
from vorta_trt.engines.manifest import EngineFiles, EngineRecord, FurtherEngine
from vorta_trt.export.metadata import KEY
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.target import read_target

FIRST = EngineKey("transformer", "5x96x96")
LARGE = EngineKey("transformer", "13x128x128")
SECOND = EngineKey("transformer_2", "5x96x96")
SECOND_LARGE = EngineKey("transformer_2", "13x128x128")


def with_engines(folder: Path, *keys: EngineKey) -> Path:
    """Adds engines with the content of the first one, under other names."""
    manifest = Bundle.open(folder, runtime=False).manifest
    files, further = dict(manifest.files), []
    for key in keys:
        names = EngineFiles.of(key, manifest.key)
        for own, other in zip(names.model_dump().values(), manifest.own_names.model_dump().values(), strict=True):
            if other in files and own not in files:
                shutil.copy(folder / other, folder / own)
                files[own] = files[other]
        fields = {name: getattr(manifest, name) for name in EngineRecord.model_fields}
        further.append(FurtherEngine(**{**fields, "component": key.component, "size": key.size, "names": names}))
    manifest.model_copy(update={"engines": further, "files": files}).write(folder / "manifest.json")
    return folder


def changed(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of an exported file whose metadata says something else."""
    model = onnx.load(source)
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps({**json.loads(entry.value), **changes})
    onnx.save(model, target)
    return target


def test_files_of_every_engine_have_names_of_their_own() -> None:
    assert EngineFiles.of(FIRST, FIRST) == EngineFiles()
    assert EngineFiles.of(LARGE, FIRST) == EngineFiles(
        plan="transformer.13x128x128.plan",
        layers="layers.13x128x128.json",
        timestep_path="timestep_path.safetensors",  # the sizes of a component share it
        onnx="model.13x128x128.onnx",
        route_override="route_override.13x128x128.json",
    )
    second, large = EngineFiles.of(SECOND, FIRST), EngineFiles.of(SECOND_LARGE, FIRST)
    assert (second.plan, second.onnx) == ("transformer_2.plan", "model.transformer_2.onnx")
    assert (large.plan, large.onnx) == ("transformer_2.13x128x128.plan", "model.transformer_2.13x128x128.onnx")
    assert second.timestep_path == large.timestep_path == "timestep_path.transformer_2.safetensors"


def test_one_engine_leaves_the_manifest_as_it_was(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    assert document["schema_version"] == 1
    assert not {"component", "size", "names", "engines"} & set(document)
    opened = Bundle.open(bundle)
    assert opened.engines == (FIRST,) and opened.select().manifest == opened.manifest


def test_views(bundle: Path) -> None:
    opened = Bundle.open(with_engines(bundle, LARGE, SECOND, SECOND_LARGE))
    assert opened.engines == (FIRST, LARGE, SECOND, SECOND_LARGE)
    assert opened.plan_path.name == "transformer.plan" and opened.key == FIRST
    assert json.loads((bundle / "manifest.json").read_text())["schema_version"] == 2
    for view, key in zip(opened.views(), opened.engines, strict=True):
        again = opened.select(key.component, key.size)
        assert again.manifest == view.manifest and view.key == key and view.engines == opened.engines
        assert view.plan_path.name in view.manifest.files and view.plan_path.is_file()
        assert view.manifest.plugin is not None and view.manifest.plugin.library in view.manifest.files
        plans = [name for name in view.manifest.files if name.endswith(".plan")]
        assert plans == [view.plan_path.name] and view.manifest.engines == []
        assert view.select("transformer_2", VideoSize(13, 128, 128)).key == SECOND_LARGE
        assert read_target(view).key == key  # what was selected stays selected
        assert view.select("transformer_2").key == EngineKey("transformer_2", key.size)
        assert read_target(view, component="transformer").key == EngineKey("transformer", key.size)
    assert opened.select("transformer_2").key == SECOND and opened.select(size="13x128x128").key == LARGE


def test_what_is_not_there_is_named(bundle: Path) -> None:
    opened = Bundle.open(with_engines(bundle, LARGE))
    with pytest.raises(SelectionError, match="was built for 5x96x96, 13x128x128; .* --size 81x480x832 as well"):
        opened.select(size="81x480x832")
    with pytest.raises(SelectionError, match="holds transformer only"):
        opened.select("transformer_2")
    with pytest.raises(ValueError, match="must be FRAMESxHEIGHTxWIDTH"):
        opened.select(size="large")


def test_every_engine_is_checked(bundle: Path) -> None:
    from .test_bundle import problems

    with_engines(bundle, LARGE)
    (bundle / "transformer.13x128x128.plan").unlink()
    assert "transformer.13x128x128.plan is missing" in problems(bundle, verify=False)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["transformer.13x128x128.plan"]
    with pytest.raises(ValueError, match=r"files: transformer\.13x128x128\.plan is missing"):
        Manifest.model_validate_json(json.dumps(manifest))


def test_several_files_make_one_bundle(make_model: Any, tmp_path: Path) -> None:
    """Both sizes of both experts; the ONNX copies share one data file, in which every weight is once."""
    files = [changed(make_model(tmp_path / "base.onnx"), tmp_path / "model.onnx", boundary_ratio=0.875)]
    for name, changes in (
        ("large.onnx", {"latent_shape": (16, 3, 16, 16)}),
        ("model.transformer_2.onnx", {"component": "transformer_2"}),
        ("large.transformer_2.onnx", {"component": "transformer_2", "latent_shape": (16, 3, 16, 16)}),
    ):
        files.append(changed(files[0], tmp_path / name, **changes))
    seen: set[str] = set()
    opened = build_engine(
        files[:2], tmp_path / "several.bundle", include_onnx=True, progress=lambda event: seen.add(event.engine)
    )  # the second experts are found beside the first
    assert [str(key) for key in opened.engines] == [
        "transformer 5x96x96",
        "transformer_2 5x96x96",
        "transformer 9x128x128",
        "transformer_2 9x128x128",
    ]
    assert seen == {str(key) for key in opened.engines}
    Bundle.open(opened.path, runtime=False)  # every hash
    names = {view.onnx_path: view for view in opened.views()}
    assert len(names) == 4
    shared = opened.path / "model.onnx.data"
    first = read_onnx(files[0])
    weights = {tensor.name: first.read_bytes(tensor) for tensor in first.model.graph.initializer}
    for path, view in names.items():
        assert path is not None and shared.name in view.manifest.files
        copy = read_onnx(path)
        assert copy.data_files == (shared,)
        assert {tensor.name: copy.read_bytes(tensor) for tensor in copy.model.graph.initializer} == weights
    large = {content for content in weights.values() if len(content) >= 1024}
    assert shared.stat().st_size < sum(map(len, large)) + 4096 * len(large)  # once, though four models have them
    path = opened.timestep_path
    if path is not None:
        assert {view.timestep_path for view in opened.views() if view.key.component == "transformer"} == {path}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "transformer 5x96x96: is given twice"),
        ({"component": "transformer_2", "latent_shape": (16, 3, 16, 16)}, "transformer: is given for other sizes"),
        ({"precision": "fp16", "latent_shape": (16, 3, 16, 16)}, "is of precision fp16, and .* of bf16"),
        ({"checkpoint": "another", "component": "transformer_2"}, "is of checkpoint another, and .* of "),
        ({"boundary_ratio": 0.875, "component": "transformer_2"}, "is of boundary_ratio 0.875, and .* of None"),
        (
            {"lora": [{"name": "a", "sha256": "0" * 64, "strength": 1.0}], "latent_shape": (16, 3, 16, 16)},
            "is of LoRA a.*, and .* of none",
        ),
    ],
)
def test_files_that_are_no_engines_of_one_bundle(
    make_model: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    first = make_model(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=words):
        build_engine([first, changed(first, tmp_path / "other.onnx", **changes)], tmp_path / "several.bundle")
    assert not (tmp_path / "several.bundle").exists()


def test_routes_are_given_for_every_file(make_model: Any, tmp_path: Path) -> None:
    first = make_model(tmp_path / "model.onnx")
    other = changed(first, tmp_path / "other.onnx", latent_shape=(16, 3, 16, 16))
    with pytest.raises(ValueError, match="route_override: 1 given for 2 ONNX files"):
        build_engine([first, other], tmp_path / "several.bundle", route_override=tmp_path / "routes.json")
