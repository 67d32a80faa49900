# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt compare --of`: two settings of one model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app

from ..kept import Kept
from ..tiny import Tiny, make_tiny


def vorta(*arguments: object, code: int = 0) -> str:
    """What the command printed on stdout, or for another `code` on stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr if code else result.stdout


def test_a_checkpoint(tiny_wan: Tiny, tmp_path: Path) -> None:
    common = ("compare", "dense", "tau=0.4", "--of", tiny_wan.checkpoint, "--router", tiny_wan.router)
    common = (*common, "--prompt", "a red wall", "--steps", 2, "--precision", "fp32", "--no-lpips")
    report = tmp_path / "report.json"
    table = tmp_path / "table.md"
    text = vorta(*common, "-o", report, "--keep", tmp_path / "kept", "--table", table)
    assert "| 000 a red wall | 9 | 64x96 |" in table.read_text()
    assert "dense against tau=0.4" in text and f"wrote {tmp_path}/kept" in text
    content = json.loads(report.read_text())
    assert (content["first"], content["second"]) == ("dense", "tau=0.4")
    assert content["pairs"][0]["frames"] == 9
    assert sorted(path.name for path in tmp_path.rglob("*.npy")) == ["000.npy", "000.npy"]
    again = json.loads(vorta(*common, "--json"))
    assert again["psnr"] == content["psnr"]  # the same noise
    assert json.loads(vorta(*common, "--seed", 1, "--json"))["psnr"] != content["psnr"]


def test_a_model_of_images(kept: Kept, tmp_path: Path) -> None:
    tiny = make_tiny(kept, "wan channels")
    for name, grey in (("dark", 40), ("light", 200)):
        Image.new("RGB", (96, 64), (grey, 0, 0)).save(tmp_path / f"{name}.png")
    common = ("compare", "dense", "routed", "--of", tiny.onnx, "--prompt", "a red wall", "--steps", 2, "--no-lpips")
    dark, light = (
        json.loads(vorta(*common, "--image", tmp_path / f"{name}.png", "--json")) for name in ("dark", "light")
    )
    assert dark["pairs"][0]["frames"] == 9 and dark["psnr"] != light["psnr"]
    assert "--image: this model begins a video with one" in vorta(*common, code=1)
    assert "samples with a model; give that with --of" in vorta("compare", "a", "b", "--last-image", "x.png", code=2)


def test_usage(tiny_wan: Tiny, tmp_path: Path) -> None:
    (tmp_path / "wan.onnx").write_bytes(b"")
    of = ("--of", tiny_wan.checkpoint)
    cases: list[tuple[tuple[Any, ...], int, str]] = [
        (
            ("dense", "routed", "--prompt", "a wall"),
            2,
            "samples with a model; give that with --of",
        ),
        (("dense", "sparse", *of, "--prompt", "a wall"), 2, "setting 'sparse': 'sparse' is none"),
        (("dense", "routed", *of), 2, "give one of them"),
        (("dense", "routed", *of, "--prompt", "a", "--table", "table.txt"), 2, "must end in .md or .csv"),
        (("dense", "routed", *of, "--prompt", "a", "--floor", "sparse"), 2, "--floor.*'sparse' is none"),
        (("dense", "routed", *of, "--prompt", "a", "-o", tmp_path / "none/r.json"), 2, "its folder does not exist"),
        (
            ("dense", "routed", *of, "--prompt", "a", "--video", "v", "--fps", -1),
            2,
            "--fps.*greater than or equal to 0.1",
        ),
        (("dense", "routed", *of, "--prompts", tmp_path / "none.txt"), 1, "none.txt: no such file"),
        (("dense", "routed", *of, "--prompt", "a wall"), 1, "size: there is no router"),
        (
            ("dense", "routed", "--of", tmp_path / "wan.onnx", "--prompt", "a", "--size", "9x64x96"),
            2,
            "belongs to check",
        ),
        (("dense", "routed", "--of", tmp_path / "absent.bundle", "--prompt", "a"), 1, "absent.bundle: no such"),
    ]
    for arguments, code, message in cases:
        assert re.search(message, vorta("compare", *arguments, code=code)), arguments
