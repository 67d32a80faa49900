# SPDX-License-Identifier: Apache-2.0
"""README and guides are followed, in their order: every command and every Python example runs on a CPU.

The names that they use lead to the tiny Wan, `demo/` as well. Real sizes become its size, long runs short ones, and
what needs a GPU runs in ONNX Runtime; see `on_a_cpu`. tests/runtime/test_demo.py compares README's sizes with them.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.export.names import component_file
from vorta_trt.model.constants import TRANSFORMER, TRANSFORMER_2
from vorta_trt.runtime.video_file import write_frames

from .kept import Kept
from .test_documentation import ROOT, blocks, commands
from .tiny import CHANNELS, FRAMES, HEIGHT, TEXT_DIM, WIDTH, Tiny, make_experts, make_tiny

pytest.importorskip("av")
pytest.importorskip("matplotlib")

SIZE = f"{FRAMES}x{HEIGHT}x{WIDTH}"
CHECKPOINTS = ("Wan2.1-T2V-14B-Diffusers", "Wan2.1-T2V-1.3B-Diffusers", "CHECKPOINT", "checkpoint")
# Sizes of the demo in Python examples, and the tiny Wan's.
DEMO_LATENTS = "torch.randn(1, 16, 12, 12, 12), torch.randn(1, 512, 64)"
SMALLER = {
    r"num_frames=45, height=96, width=96": f"num_frames={FRAMES}, height={HEIGHT}, width={WIDTH}",
    re.escape(DEMO_LATENTS): f"torch.randn(1, {CHANNELS}, 3, 8, 12), torch.randn(1, 512, {TEXT_DIM})",
    r"num_inference_steps=\d+": "num_inference_steps=2",
}
QUICK = {
    "generate": "--steps 2",
    "compare": "--steps 2 --no-lpips",
    "verify": "--case 'all sliding'",
    "calibrate": "--dtype fp32 --device cpu --samples 2 --buckets 2 --steps 4 --run-steps 2",
    "train-router": "--precision fp32 --device cpu --batch-size 1 --steps 1",
    "prepare": "--precision fp32 --device cpu",
}
BUNDLES = ("wan.bundle", "i2v.bundle", "wan22.bundle")
NEEDS_A_GPU = ("bench",)
DOCUMENTS = ("README.md", "docs/generate.md", "docs/calibration.md", "docs/training.md")


@pytest.fixture
def workspace(tiny_wan: Tiny, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with everything that the documents name."""
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    image = make_tiny(kept, "wan channels")
    experts = make_experts(kept)
    links = {
        "i2v.onnx": image.onnx,
        "wan22.onnx": experts.onnx,
        "wan22.transformer_2.onnx": component_file(experts.onnx, TRANSFORMER_2),
        "Wan2.2-T2V-A14B-Diffusers": experts.checkpoint,
        "HIGH": experts.routers[TRANSFORMER],
        "LOW": experts.routers[TRANSFORMER_2],
        "Wan2.1-I2V-14B-720P-Diffusers": image.checkpoint,
        "ROUTER": tiny_wan.router,
        "wan.onnx": tiny_wan.onnx,
        "wan.bundle": tiny_wan.bundle,
        "demo/checkpoint": tiny_wan.checkpoint,
        "demo/router": tiny_wan.router,
        "demo/wan-fp32.onnx": tiny_wan.onnx,
        "demo/wan.bundle": tiny_wan.bundle,
        **dict.fromkeys(CHECKPOINTS, tiny_wan.checkpoint),
    }
    for name, target in links.items():
        Path(name).symlink_to(target)
    Path("prompts.txt").write_text("a red wall\na blue wall\n", encoding="utf-8")
    Path("VIDEOS").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for name in ("dense.mp4", "routed.mp4", "VIDEOS/cat.mp4", "VIDEOS/dog.mp4"):
        write_frames(Path(name), frames, 16)
    Image.fromarray(frames[0]).save("first.png")
    for name in ("cat", "dog"):
        Path(f"VIDEOS/{name}.txt").write_text(f"a {name}\n", encoding="utf-8")
    return tmp_path


def on_a_cpu(arguments: list[str]) -> list[str]:
    """The same command for small models and without a GPU."""
    name = arguments[1] if arguments[:2] == ["train-router", "prepare"] else arguments[0]
    changed = [SIZE if before == "--size" else text for before, text in zip(["", *arguments], arguments, strict=False)]
    extra = shlex.split(QUICK.get(name, ""))
    if "--timesteps" in arguments and "--steps" in extra[:1]:
        extra = extra[2:]
    if name == "train-router" and "--resume" in arguments:
        extra[-1] = "2"
    if name == "compare" and "--of" not in arguments:
        extra = ["--no-lpips"]
    if "tea" in arguments:  # no coefficients are published for a tiny model
        extra += ["--cache-coefficients", "none", "--cache-threshold", "5"]
    if (
        "wan22.bundle" in arguments and name == "generate"
    ):  # all tiny checkpoints have one name, by which they are found
        extra += ["--checkpoint", "Wan2.2-T2V-A14B-Diffusers"]
    if name in ("generate", "compare") and "--dry-run" not in arguments:
        changed = [text.replace(".bundle", ".onnx") if text in BUNDLES else text for text in changed]
    return changed + extra


def test_quick_options() -> None:
    examples = "".join(script for document in DOCUMENTS for script in blocks(ROOT / document, "python"))
    assert all(re.search(real, examples) for real in SMALLER), "a size that no example has any more"
    assert on_a_cpu(["build", "C", "--size", "77x720x1280", "-o", "b"]) == ["build", "C", "--size", SIZE, "-o", "b"]
    assert on_a_cpu(["generate", "wan.bundle", "--steps", "6"])[1:] == [
        *("wan.onnx", "--steps", "6", "--steps", "2"),  # the last one counts
    ]
    assert on_a_cpu(["generate", "wan.bundle", "--dry-run"])[1] == "wan.bundle"
    assert on_a_cpu(["train-router", "C", "--resume"])[-2:] == ["--steps", "2"]


def run(arguments: list[str]) -> None:
    """Runs a command; what it writes may be there from the command before it, as in the alternatives of a guide."""
    for option, name in zip(arguments, arguments[1:], strict=False):
        path = Path(name)
        if option in ("-o", "--plot") and arguments[0] != "train-router":
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        elif option == "-o" and path.is_symlink():
            path.unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{shlex.join(arguments)}\n{result.output}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_following(document: str, workspace: Path) -> None:
    lines = "\n".join(blocks(ROOT / document, "bash")).splitlines()
    written = commands("\n".join(line for line in lines if not line.startswith("torchrun ")))
    assert written or blocks(ROOT / document, "python")
    if document == "docs/calibration.md":
        run(on_a_cpu(["train-router", "prepare", "CHECKPOINT", "--videos", "VIDEOS", "--size", SIZE, "-o", "DATA"]))
    for arguments in written:
        if arguments[0] not in NEEDS_A_GPU:
            run(on_a_cpu(arguments))
    for number, script in enumerate(blocks(ROOT / document, "python")):
        for real, small in SMALLER.items():
            script = re.sub(real, small, script)
        exec(compile(script, f"{document}, example {number}", "exec"), {"__name__": "example"})
