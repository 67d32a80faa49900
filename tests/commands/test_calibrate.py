# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt calibrate`, and the commands that take its file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.engines import Bundle
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router
from vorta_trt.model.route_calibration import RouteCalibration

SIZE = (29, 96, 128)  # grid (8, 6, 8)
MODEL = {"layers": 2, "heads": 2, "head_dim": 32}
QUICK = ("--dtype", "fp32", "--device", "cpu", "--buckets", 2, "--samples", 2, "--steps", 8)


def vorta(*arguments: object, code: int = 0) -> str:
    """What the command printed on stdout, or for another `code` on stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code:
        assert result.stdout == ""
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a router for it, and data."""
    root = tmp_path_factory.mktemp("a wan")
    make_wan_checkpoint(root / "checkpoint", **MODEL, ffn_dim=96, text_dim=32)
    make_router(root / "router", AttentionGeometry.for_video(*SIZE), **MODEL)
    generator = torch.Generator().manual_seed(0)
    for kind in ("latents", "prompts"):
        (root / "data" / kind).mkdir(parents=True)
    for name in ("cat", "dog"):
        latents, prompt = (torch.randn(shape, generator=generator) for shape in ((16, 8, 12, 16), (9, 32)))
        save_file({"latents": latents}, root / f"data/latents/{name}.safetensors")
        save_file({"prompt_embeds": prompt}, root / f"data/prompts/{name}.safetensors")
    samples = [{"name": name, "caption": name} for name in ("cat", "dog")]
    content = {"version": 1, "family": "wan", "video_size": list(SIZE), "samples": samples}
    (root / "data/dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def routes(folder: Path) -> Path:
    """Calibrated routes, about half of dense attention's FLOPs."""
    output = folder / "routes.json"
    command = ("calibrate", folder / "checkpoint", "--data", folder / "data", "-o", output, *QUICK)
    text = vorta(*command, "--target-share", 0.6, "--plot", folder / "routes.png")
    assert (folder / "routes.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"attention FLOPs saved: \d+\.\d %", text)
    assert f"next: vorta-trt build '{folder}/checkpoint' --route-override '{output}' -o BUNDLE" in text
    return output


def test_json(folder: Path, tmp_path: Path) -> None:
    command = ("calibrate", folder / "checkpoint", "--data", folder / "data", "-o", tmp_path / "c.json", *QUICK)
    content = json.loads(vorta(*command, "--budget", 0.3, "--json"))
    assert content["budget"] == 0.3 and len(content["buckets"]) == 2
    assert RouteCalibration.load(content["output"]).settings == content["settings"]


def test_a_lora_is_fused(folder: Path, routes: Path, tmp_path: Path) -> None:
    """Errors are those of the fused model, and the file says of which."""
    width = MODEL["heads"] * MODEL["head_dim"]
    tensors = {"lora_A.weight": torch.eye(4, width), "lora_B.weight": torch.eye(width, 4)}
    save_file({f"blocks.0.attn1.to_q.{name}": value for name, value in tensors.items()}, tmp_path / "x.safetensors")
    data, lora = folder / "data", f"{tmp_path / 'x.safetensors'}:3"
    output = tmp_path / "routes.json"
    said = vorta("calibrate", folder / "checkpoint", "--data", data, *QUICK, "--lora", lora, "-o", output)
    assert f"--lora {lora} --route-override" in said.replace("\n", " ")
    fused, plain = RouteCalibration.load(output), RouteCalibration.load(routes)
    assert fused.checkpoint == "checkpoint + x.safetensors" and plain.checkpoint == "checkpoint"
    assert not torch.equal(fused.errors, plain.errors)


def test_routes_show_them(folder: Path, routes: Path, tmp_path: Path) -> None:
    calibration = RouteCalibration.load(routes)
    common = ("routes", folder / "checkpoint", "--route-override", routes, "--steps", 6)
    table = json.loads(vorta(*common, "--plot", tmp_path / "routes.png", "--json"))
    assert table["routes"] == calibration.overrides(table["timesteps"]).tolist()
    assert 0 < table["attention_flops_saved"] < 0.75
    assert (tmp_path / "routes.png").read_bytes().startswith(b"\x89PNG")
    beside_a_router = json.loads(vorta(*common, "--router", folder / "router", "--json"))
    assert beside_a_router["routes"] == table["routes"] and beside_a_router["scores"] != table["scores"]
    euler = json.loads(vorta(*common, "--scheduler", "flow-euler", "--flow-shift", 3, "--json"))
    assert euler["routes"] == calibration.overrides(euler["timesteps"]).tolist()


def test_a_bundle_holds_them(folder: Path, routes: Path, tmp_path: Path) -> None:
    """Without router and size: the geometry is that of the file."""
    path = tmp_path / "a.bundle"
    vorta("build", folder / "checkpoint", "--route-override", routes, "-o", path)
    bundle = Bundle.open(path, runtime=False)
    assert bundle.route_override_path is not None and bundle.manifest.geometry is not None
    calibration = RouteCalibration.load(bundle.route_override_path)
    assert AttentionGeometry.from_dict(bundle.manifest.geometry) == calibration.geometry
    assert calibration.routes.equal(RouteCalibration.load(routes).routes)
    assert re.search(r"overrides +2 buckets, 2 layers, 2 heads", vorta("inspect", path))
    assert "2 buckets" in json.loads(vorta("inspect", path, "--json"))["route_override"]


def test_usage(folder: Path, tmp_path: Path) -> None:
    common = ("calibrate", folder / "checkpoint", "-o", tmp_path / "c.json")
    data = ("--data", folder / "data")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    cases: list[tuple[tuple[Any, ...], int, str]] = [
        ((), 2, "--prompts / --data.*give one of them"),
        ((*data, "--prompts", prompts), 2, "--prompts / --data.*give one of them"),
        (("--prompts", prompts), 2, "--size.*: must be given with --prompts"),
        ((*data, "--budget", 0), 2, "budget 0.0: must be"),
        ((*data, "--budget", 0.1, "--target-share", 0.3), 2, "one decides the other; give one"),
        ((*data, "--size", "720p"), 2, "size '720p': must be FRAMESxHEIGHTxWIDTH"),
        ((*data, "--dtype", "int8"), 2, "'int8' is not one of"),
        ((*data, "--plot", tmp_path / "routes.bmpx"), 1, "routes.bmpx: its suffix must be one of"),
        ((*data, "--plot", tmp_path / "absent" / "routes.png"), 1, "routes.png: its folder does not exist"),
        ((*data, "--size", "9x64x96"), 1, "(?s)samples cannot be used.*must be .16, 3, 8, 12."),
        ((*data, "--target-share", 0.01), 1, "target share 0.01: the cheapest branch everywhere takes"),
        (("--prompts", prompts, "--size", "29x96x128"), 1, "has no text_encoder, tokenizer, vae"),
        (("--prompts", tmp_path / "none.txt", "--size", "29x96x128"), 1, "none.txt: no such file"),
    ]
    for options, code, message in cases:
        assert re.search(message, vorta(*common, *options, code=code)), options
    assert [entry.name for entry in tmp_path.iterdir()] == ["prompts.txt"]
    assert "Missing option '--router'; give a router, or" in vorta("routes", folder / "checkpoint", code=2)


def test_files_that_do_not_fit(folder: Path, routes: Path, tmp_path: Path) -> None:
    other = make_wan_checkpoint(tmp_path / "other", **{**MODEL, "layers": 3}, ffn_dim=96, text_dim=32)
    for command in (("routes",), ("build", "-o", tmp_path / "a.bundle")):
        name, *options = command
        message = vorta(name, other, "--route-override", routes, *options, code=1)
        assert "are for layers 2, the model has 3; calibrate the model itself" in message
        damaged = tmp_path / "damaged.json"
        damaged.write_text(routes.read_text()[:-40])
        message = vorta(name, folder / "checkpoint", "--route-override", damaged, *options, code=1)
        assert "damaged.json: is not valid JSON" in message and "make it with `vorta-trt calibrate`" in message
    assert not (tmp_path / "a.bundle").exists()
