# SPDX-License-Identifier: Apache-2.0
"""The demo makes what it says, twice, and touches nothing that it did not make."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from vorta_trt.engines import Bundle
from vorta_trt.engines.flavours import FLAVOURS
from vorta_trt.model import RouteTable
from vorta_trt.model.families import family_names, get_family
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import demo
from vorta_trt.runtime.frames import read_frames

from ..test_documents_run import DEMO_LATENTS


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("family", family_names())
def test_the_whole_way(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = get_family(family)
    fewer = replace(facts.demo, blocks=dict.fromkeys(facts.demo.blocks, 1))  # one of each kind, for time
    monkeypatch.setattr(facts, "demo", fewer, raising=False)
    real = facts.demo
    folder = tmp_path / "a demo"
    folder.mkdir()
    (folder / demo.MARKER).touch()
    (folder / "left by an earlier demo").touch()
    report = demo.run_demo(folder, silent, family)
    assert report.passed, report.verified
    assert not (folder / "left by an earlier demo").exists()
    assert all(Path(path).exists() for path in report.files.values())
    assert report.plugin_layers == sum(real.blocks.values())
    bundle = Bundle.open(report.files["engine bundle"])
    assert bundle.onnx_path is not None
    table = RouteTable.from_json(Path(report.files["route table"]).read_text())
    assert table.saved == pytest.approx(report.attention_flops_saved)
    assert 0 < report.attention_flops_saved < 1
    assert set(table.shares()) == {"full", "coreset", "sliding"}
    assert min(table.shares().values()) > 0  # all branches occur
    assert bundle.manifest.family == family == report.family
    assert bundle.manifest.inputs[0].profile is not None
    if family == "wan":  # as README's example has it
        shapes = {spec.name: ", ".join(map(str, [1, *spec.shape[1:]])) for spec in bundle.manifest.inputs}
        wanted = [f"torch.randn({shapes[name]})" for name in ("hidden_states", "encoder_hidden_states")]
        assert ", ".join(wanted) == DEMO_LATENTS
    (video,) = (Path(path) for what, path in report.files.items() if what == "video")
    frames = np.stack(list(read_frames(video)))
    assert frames.shape == (demo.SIZE.frames, demo.SIZE.height, demo.SIZE.width, 3)
    assert frames.std() > 0.01
    steps = demo.next_steps(report)
    assert f"vorta-trt generate {family.replace('_', '-')}.bundle --prompt" in steps
    assert f"{real.checkpoint} --router ROUTER --size {real.size}" in steps
    (command,) = (line for line in steps.splitlines() if "vorta-trt verify" in line)
    assert shlex.split(command)[2:] == [
        f"{folder.name}/{family.replace('_', '-')}.bundle",
        f"{folder.name}/checkpoint",
        "--router",
        f"{folder.name}/router",
    ]


def test_an_unknown_family(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="family 'mochi': must be one of .*wan.*hunyuan_video"):
        demo.run_demo(tmp_path / "demo", silent, "mochi")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "plot"), ("tensorrt_rtx", "rtx")])
def test_what_is_not_installed_is_said_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(FLAVOURS["rtx"].__dict__, "module", raising=False)
    with pytest.raises(VortaError, match=rf"pip install '\.\[{extra}\]'"):
        demo.run_demo(tmp_path / "demo", lambda what, done, total: None)
    assert not (tmp_path / "demo").exists()


def test_a_package_without_its_library_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(flavour: Any) -> Path:
        raise VortaError("no shim")

    monkeypatch.setattr(demo, "load_plugin", absent)
    with pytest.raises(VortaError, match="no shim"):
        demo.run_demo(tmp_path / "demo", silent)
    assert not (tmp_path / "demo").exists()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds files that the demo did not make.*--output"):
        demo.run_demo(tmp_path, silent)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is a file"):
        demo.run_demo(tmp_path / "thesis.tex", silent)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vorta_trt.model.random_checkpoint.make_checkpoint", full)
    with pytest.raises(WriteError, match="checkpoint: cannot be written .*the disk is full"):
        demo.run_demo(tmp_path / "demo", silent)
