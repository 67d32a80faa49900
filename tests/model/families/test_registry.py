# SPDX-License-Identifier: Apache-2.0
"""A family has one place: the registry finds it, and nothing outside of `model/families/` names one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import (
    DEFAULT_FAMILY,
    families,
    family_names,
    family_of_class,
    family_of_config,
    get_family,
    usual_shifts,
)

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("plugins", "model", "export", "engines", "runtime", "serving", "commands", "cli.py", "public.py")
SUFFIXES = (".py", ".cpp", ".h", ".hpp", ".cu", ".cuh", ".cmake", ".map", ".txt")
COMMON_WORDS = {"video"}  # of families' names that say nothing of a family


def sources() -> list[Path]:
    """What the house is made of, without the families themselves."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        files = [ROOT / line for line in listed.stdout.splitlines()]
    else:  # not a checkout, as in a source archive
        files = [file for room in ROOMS for file in [ROOT / room, *(ROOT / room).rglob("*")]]
    inside = ROOT / "model" / "families"
    return [file for file in files if file.suffix in SUFFIXES and file.is_file() and inside not in file.parents]


def words_of_families() -> set[str]:
    names = [part for family in families() for part in words(f"{family.name} {family.title}")]
    return set(names) - COMMON_WORDS


def words(text: str) -> Iterator[str]:
    """The words that identifiers and sentences are made of: `WanTransformer3DModel` -> wan, transformer, d, model."""
    for match in re.finditer(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text):
        yield match[0].lower()


def test_words_are_found_in_every_form() -> None:
    assert words_of_families() >= {"wan", "hunyuan"}
    for text in ("WanTransformer3DModel", "wan-14b", "WAN_14B", "_wan(x)", "wan2.1", "Wan's", 'family == "wan"'):
        assert "wan" in set(words(text))
    for text in ("wanted", "unwanted", "Wang", "swan", "wants"):
        assert "wan" not in set(words(text))
    assert "hunyuan" in set(words("VortaHunyuanVideoTransformer"))


def test_no_source_file_outside_of_the_families_names_one() -> None:
    names = words_of_families()
    files = sources()
    assert len(files) > 150
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if names & set(words(line))
    ]
    assert not found, "ask the family object (vorta_trt.model.families) instead:\n" + "\n".join(found)


def test_the_import_graph_of_the_model_has_no_circle() -> None:
    import grimp

    graph = grimp.build_graph("vorta_trt", cache_dir=None)
    modules = {name for name in graph.modules if name.startswith("vorta_trt.model")}
    imports = {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}
    while leaves := {name for name, imported in imports.items() if not imported}:
        imports = {name: imported - leaves for name, imported in imports.items() if name not in leaves}
    assert not imports, f"these files import each other, or what does: {imports}"


def test_the_registry_and_the_facts_are_cheap() -> None:
    program = (
        "import sys, json, vorta_trt.model.families as f; [str(family) for family in f.families()]; f.usual_shifts();"
        "heavy = ('torch', 'diffusers', 'transformers', 'numpy', 'pydantic');"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []


@pytest.mark.parametrize("name", family_names())
def test_every_family_is_found(name: str) -> None:
    family = get_family(name)
    assert family.name == name and family is get_family(name)
    assert family_of_class(family.transformer_class) is family
    assert family_of_config({"_class_name": family.transformer_class}, "x") is family
    assert (ROOT / "model" / "families" / name).is_dir()


@pytest.mark.parametrize("name", family_names())
def test_the_parts_of_a_family_are_there(name: str) -> None:
    """What the facts name as strings, so that they need no torch."""
    import diffusers

    family = get_family(name)
    assert family.diffusers_transformer()
    transformer = family.load("transformer")
    assert getattr(transformer, family.routed_class).family == name
    assert all(hasattr(_blocks_of(family), block) for block in family.block_classes)
    training = getattr(family.load("training"), family.training_class)
    assert training.condition_names
    random = family.load("random")
    assert callable(random.make_checkpoint) and callable(random.add_parts)
    config = {**_defaults(family), "_class_name": family.transformer_class}
    family.check_config(config, "the defaults of diffusers")
    kinds = family.pipeline_kinds(config)
    assert kinds and all(hasattr(diffusers, kind.pipeline) for kind in kinds)
    assert all(set(kind.conditioners) <= set(kind.components) for kind in kinds)
    assert tuple(family.stacks(config)) == family.router_stacks
    inputs = family.inputs(config)
    assert [spec.name for spec in inputs if spec.step] == ["hidden_states", "timestep"] == [i.name for i in inputs[:2]]
    assert "encoder_hidden_states" in [spec.name for spec in inputs]
    assert all(spec.kind == "uniform" or spec.sizes or spec.kind == "latents" for spec in inputs)
    modules = family.compared_modules(config)
    assert len(set(modules)) == len(modules) > sum(family.stacks(config).values())
    frames, height, width = map(int, family.demo.size.split("x"))
    AttentionGeometry.for_video(frames, height, width, name)


def _blocks_of(family: object) -> object:
    """The modules of a family's folder that hold its blocks, as one."""
    import importlib
    from types import SimpleNamespace

    found = {}
    for module in ("transformer", "blocks"):
        try:
            found |= vars(importlib.import_module(f"{type(family).__module__}.{module}"))
        except ModuleNotFoundError:
            continue
    return SimpleNamespace(**found)


def _defaults(family: object) -> dict[str, object]:
    from vorta_trt.model.configs import typed_config

    return typed_config(family.diffusers_transformer(), {}, Path("config.json"))  # type: ignore[attr-defined]


def test_unknown_families() -> None:
    with pytest.raises(ValueError, match="family 'flux': must be one of " + ", ".join(map(repr, family_names()))):
        get_family("flux")
    with pytest.raises(ValueError, match="family 'flux'"):
        AttentionGeometry.for_video(77, 720, 1280, "flux")
    assert family_of_class("FluxTransformer2DModel") is None
    with pytest.raises(CheckpointError, match="x: its config.json says _class_name 'Flux'; must be one of WanTr"):
        family_of_config({"_class_name": "Flux"}, "x")


def test_the_default_is_the_first() -> None:
    assert AttentionGeometry.for_video(77, 720, 1280) == AttentionGeometry.for_video(77, 720, 1280, DEFAULT_FAMILY)
    assert DEFAULT_FAMILY == family_names()[0]
    assert all(str(family) in usual_shifts() for family in families())
