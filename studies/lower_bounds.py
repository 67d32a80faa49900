# SPDX-License-Identifier: Apache-2.0
"""Do the lower ends of pyproject.toml's ranges give the videos that the pinned versions give?

    python studies/lower_bounds.py --work /tmp/lower

Makes a virtual environment with the lowest version of every dependency (of torch the installed one), and lays this
installation of vorta-trt in it. A tiny pipeline folder of each family, and one whose text encoder's config says untied
embeddings as Wan's does, are exported and sampled by both environments. Samples of the same seed must agree.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from vorta_trt.benchmarks.harness import write_result

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FAMILIES = {
    "wan": {"ffn_dim": 64, "freq_dim": 32},
    "hunyuan_video": {"single_layers": 1, "pooled_dim": 24, "refiner_layers": 1},
}
SIZES = {"layers": 2, "heads": 3, "head_dim": 32}
VIDEO = (9, 64, 96)
BOUND = 2.0  # of 255, the largest difference of a channel of a pixel: versions round differently
PROMPT = "a red wall"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the environment and of what it makes; kept")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    lowest = lower_ends()
    python = make_environment(work / "venv", lowest)
    rows = [
        compare(python, work, family, untied)
        for family, untied in (("wan", False), ("wan", True), ("hunyuan_video", False))
    ]
    for row in rows:
        print(f"{row['pipeline']}: largest difference {row['largest_difference']:.2f} of 255, {row['state']}")
    names = sorted(lowest)
    pinned = installed(Path(sys.executable), names)
    figures = {"lower": installed(python, names), "pinned": pinned, "bound": BOUND, "rows": rows}
    print(f"written: {write_result(arguments.output, 'lower-bounds', figures)}")
    return int(any(row["state"] != "ok" for row in rows))


def lower_ends() -> dict[str, str]:
    """Lowest version by name, as pyproject.toml admits, without what only builders and plots need."""
    tomllib = importlib.import_module("tomllib")  # of Python 3.11 and newer
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ends = {}
    for text in [*project["dependencies"], *project["optional-dependencies"]["video"]]:
        requirement = Requirement(text)
        ends[requirement.name] = next(part.version for part in requirement.specifier if part.operator == ">=")
    return ends | {"torch": importlib.metadata.version("torch").partition("+")[0]}


def make_environment(folder: Path, lowest: dict[str, str]) -> Path:
    """A virtual environment with these versions and this vorta-trt; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in lowest.items()))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *lowest], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    distribution = importlib.metadata.distribution("vorta-trt")
    import vorta_trt.plugins

    for source in (Path(vorta_trt.plugins.__file__).parents[1], Path(str(distribution._path))):  # type: ignore[attr-defined]
        target = site / source.name
        if not target.exists():
            target.symlink_to(source)
    return python


def installed(python: Path, names: list[str]) -> dict[str, str]:
    """Versions by name, of what an environment has."""
    code = (
        "import importlib.metadata as m, json; "
        f"have = {{d.name.lower().replace('_', '-'): d.version for d in m.distributions()}}; "
        f"print(json.dumps({{name: have[name] for name in {names!r} if name in have}}))"
    )
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def compare(python: Path, work: Path, family: str, untied: bool) -> dict[str, Any]:
    """Exports and samples in both environments."""
    name = f"{family}{' untied' if untied else ''}"
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    make_pipeline(folder, family, untied)
    frames = {}
    for which, program in (("pinned", Path(sys.executable)), ("lower", python)):
        onnx, video = folder / f"{which}.onnx", folder / f"{which}.npy"
        checkpoint = ["--router", folder / "router", "--precision", "fp32"]
        for command in (
            ["export", folder / "checkpoint", *checkpoint, "-o", onnx],
            ["generate", onnx, "--prompt", PROMPT, "--steps", "4", "--seed", "1", "-o", video],
        ):
            line = [str(part) for part in (program, "-m", "vorta_trt.cli", *command)]
            result = subprocess.run(line, capture_output=True, text=True, check=False)
            if result.returncode:
                error = re.sub(r"\s+", " ", result.stderr)[-400:]
                return {"pipeline": name, "largest_difference": float("nan"), "state": f"{which}: {error}"}
        frames[which] = np.load(video).astype(np.float64)
    scale = 255.0 if frames["pinned"].max() <= 1 else 1.0
    largest = float(np.abs(frames["pinned"] - frames["lower"]).max() * scale)
    return {"pipeline": name, "largest_difference": round(largest, 3), "state": "ok" if largest <= BOUND else "differs"}


def make_pipeline(folder: Path, family: str, untied: bool) -> None:
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
    from vorta_trt.model.random_pipeline import complete_pipeline

    sizes: dict[str, Any] = SIZES | ({"single_layers": 1} if family == "hunyuan_video" else {})
    make = {**FAMILIES[family], **SIZES, "text_dim": 32, "channels": 4}
    complete_pipeline(make_checkpoint(folder / "checkpoint", family, **make))
    geometry = AttentionGeometry.for_video(*VIDEO, family)
    make_router(folder / "router", geometry, family, video=VIDEO, **sizes)
    if untied:  # as in Wan's own checkpoints, whose shared embedding is the only one they hold
        config = folder / "checkpoint" / "text_encoder" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))


if __name__ == "__main__":
    sys.exit(main())
