# SPDX-License-Identifier: Apache-2.0
"""Do the published sizes go from a checkpoint to an engine on a small machine? Time and memory of each step.

    python studies/real_size.py wan-1.3b --work /big/disk         # checkpoint -> ONNX -> TensorRT-RTX bundle
    python studies/real_size.py wan-14b --work /big/disk          # checkpoint -> ONNX -> TensorRT-RTX network
    python studies/real_size.py wan-2.2-a14b --work /big/disk     # the same, both experts; --layers 8 of the 40
    python studies/real_size.py wan-2.2-a14b --work /big/disk --hollow  # all of them; zeros as weights
    python studies/real_size.py hunyuan-video --work /big/disk    # the same
    python studies/real_size.py hunyuan-video-15 --work /big/disk # the same

The weights are random, the architecture, the video size and every file are the real ones. The large ones are not built:
with 28 (each expert), 26 and 17 GB of bf16 weights that takes more memory than the 24 GB that this is about; they need
twice that on the disk, or once with --hollow, whose checkpoints hold zeros in files that take no space (they have
holes). Memory is that of the whole process tree; see `memory.PeakMemory`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from memory import PeakMemory

from vorta_trt.benchmarks.harness import gib, write_result
from vorta_trt.export.names import component_file
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER
from vorta_trt.model.random_checkpoint import SHARD_BYTES
from vorta_trt.model.safetensors_files import INDEX, WEIGHTS

EXPERTS = {"wan-2.2-a14b": 0.875}  # architectures with two, and their boundary
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
VIDEO = {
    "wan-1.3b": (81, 480, 832),
    "wan-14b": (77, 720, 1280),
    "wan-2.2-a14b": (81, 720, 1280),
    "hunyuan-video": (117, 720, 1280),
    "hunyuan-video-15": (121, 720, 1280),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=[*VIDEO])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint, ONNX file and bundle; kept")
    parser.add_argument("--layers", type=int, help="of the first stack, for less time and disk [default: all]")
    parser.add_argument("--hollow", action="store_true", help="zeros as weights, in files that take no space")
    parser.add_argument("--step", choices=["checkpoint", "parse"], help=argparse.SUPPRESS)  # run in a child process
    parser.add_argument("--onnx", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work, architecture = arguments.work, arguments.architecture
    if arguments.step == "checkpoint":
        return make_files(architecture, work, arguments.layers, arguments.hollow)
    if arguments.step == "parse":
        return parse(arguments.onnx, work / "parse.json")

    work.mkdir(parents=True, exist_ok=True)
    layers = [] if arguments.layers is None else ["--layers", str(arguments.layers)]
    hollow = ["--hollow"] if arguments.hollow else []
    child = [sys.executable, __file__, architecture, "--work", str(work), *layers, *hollow, "--step"]
    weights_are = "zeros, bf16, in files with holes" if hollow else "random, bf16"
    figures: dict[str, Any] = {"architecture": architecture, "video": VIDEO[architecture], "weights": weights_are}
    if layers:
        figures["layers"] = arguments.layers
    if not (work / "checkpoint" / "model_index.json").exists():
        figures["checkpoint"] = measured([*child, "checkpoint"])
    weights = sum(file.stat().st_size for file in (work / "checkpoint").glob("transformer*/*.safetensors"))
    figures["weights_gib"] = gib(weights)

    vorta_trt = str(Path(sys.executable).with_name("vorta-trt"))
    size = "x".join(map(str, VIDEO[architecture]))
    noises = ("high=", "low=") if architecture in EXPERTS else ("",)
    routers = [part for noise in noises for part in ("--router", f"{noise}{work / 'router'}")]
    common = [str(work / "checkpoint"), *routers, "--size", size, "--precision", "bf16"]
    if architecture == "wan-1.3b":
        bundle = work / "wan.bundle"
        figures["build"] = measured([vorta_trt, "build", *common, "-o", str(bundle), "--overwrite"])
        manifest = json.loads((bundle / "manifest.json").read_text())
        figures["engine_build_seconds"] = manifest["engine"]["build_seconds"]
        figures["plugin_layers"] = manifest["plugin"]["layers"]
        figures["plan_gib"] = gib((bundle / "transformer.plan").stat().st_size)
        figures["peak_rss_over_weights"] = round(figures["build"]["peak_rss_gib"] / figures["weights_gib"], 2)
    else:
        onnx = work / "transformer.onnx"
        figures["export"] = measured([vorta_trt, "export", *common, "-o", str(onnx)])
        for component in COMPONENTS[: len(noises)]:
            file = component_file(onnx, component)
            run = measured([*child, "parse", "--onnx", str(file)])
            figures["parse" if component == TRANSFORMER else f"parse {component}"] = {
                **run,
                **json.loads((work / "parse.json").read_text()),
            }
    print(json.dumps(figures, indent=2))
    print(f"written: {write_result(RESULTS, f'real-size-{architecture}', figures)}")


def measured(command: list[str]) -> dict[str, float]:
    print("$", *command, flush=True)
    run = PeakMemory(command).run()
    return {
        "seconds": round(run.seconds, 1),
        "peak_rss_gib": round(run.peak_rss_gib, 2),
        "peak_anonymous_gib": round(run.peak_anonymous_gib, 2),
    }


def make_files(architecture: str, work: Path, layers: int | None, hollow: bool) -> None:
    import torch

    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.families.hunyuan_video.random import HUNYUAN_VIDEO
    from vorta_trt.model.families.hunyuan_video_15.random import HUNYUAN_VIDEO_15
    from vorta_trt.model.families.wan.random import WAN_1_3B, WAN_14B
    from vorta_trt.model.random_checkpoint import make_checkpoint, make_router

    family, shape = {
        "wan-1.3b": ("wan", WAN_1_3B),
        "wan-14b": ("wan", WAN_14B),
        "wan-2.2-a14b": ("wan", WAN_14B),
        "hunyuan-video": ("hunyuan_video", HUNYUAN_VIDEO),
        "hunyuan-video-15": ("hunyuan_video_15", HUNYUAN_VIDEO_15),
    }[architecture]
    shape = shape if layers is None else {**shape, "layers": layers}
    experts = {"boundary_ratio": EXPERTS[architecture]} if architecture in EXPERTS else {}
    options: dict[str, Any] = {**experts, "dtype": torch.bfloat16}
    if hollow:
        one_block = {name: 1 for name in ("layers", "single_layers") if name in shape}
        make_checkpoint(work / "checkpoint", family, **shape | one_block, **options)
        for folder in (work / "checkpoint").glob("transformer*"):
            make_hollow(folder, {"num_layers": shape["layers"], "num_single_layers": shape.get("single_layers")})
    else:
        make_checkpoint(work / "checkpoint", family, **shape, **options)
    video = VIDEO[architecture]
    blocks: dict[str, Any] = {
        name: shape[name] for name in ("layers", "single_layers", "heads", "head_dim") if name in shape
    }
    geometry = AttentionGeometry.for_video(*video, family)
    make_router(work / "router", geometry, family, **blocks, video=video)


def make_hollow(folder: Path, layers: dict[str, int | None]) -> None:
    """Makes a transformer's folder that of one with more layers, whose weights are zeros that take no space."""
    import torch

    from vorta_trt.model.families import family_of_config

    config = json.loads((folder / "config.json").read_text()) | {k: v for k, v in layers.items() if v is not None}
    with torch.device("meta"):
        model = family_of_config(config, str(folder)).diffusers_transformer().from_config(config)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    shards: list[dict[str, Any]] = [{}]
    offset = 0
    for name, parameter in model.named_parameters():
        if offset > SHARD_BYTES:
            shards.append({})
            offset = 0
        end = offset + parameter.numel() * torch.bfloat16.itemsize
        shards[-1][name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [offset, end]}
        offset = end
    weight_map: dict[str, str] = {}
    for number, header in enumerate(shards, start=1):
        path = folder / WEIGHTS.replace(".safetensors", f"-{number:05d}-of-{len(shards):05d}.safetensors")
        text = json.dumps(header).encode()
        with path.open("wb") as shard:
            shard.write(len(text).to_bytes(8, "little") + text)
            shard.truncate(8 + len(text) + max(entry["data_offsets"][1] for entry in header.values()))
        weight_map |= dict.fromkeys(header, path.name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def parse(path: Path, report: Path) -> None:
    """Parses the ONNX file into a network and counts the layers."""
    from vorta_trt.engines.flavours import get_flavour
    from vorta_trt.engines.network import layers, parse_onnx
    from vorta_trt.engines.plugin import load_plugin
    from vorta_trt.export.onnx_file import read_onnx

    flavour = get_flavour("rtx")
    load_plugin(flavour)
    parsed = parse_onnx(flavour, flavour.module.Builder(flavour.logger), read_onnx(path))
    report.write_text(json.dumps({"layers": len(layers(parsed.network)), "plugin_layers": len(parsed.plugin_layers)}))


if __name__ == "__main__":
    main()
