# SPDX-License-Identifier: Apache-2.0
"""Is a video behind HTTP as fast as one of `VortaPipeline`? The same requests in a process, behind a server, and again.

    python studies/serving_latency.py model.bundle --checkpoint CHECKPOINT            # 50 requests behind HTTP
    python studies/serving_latency.py --make /tmp/small --requests 50                 # makes a small Wan first
    python studies/serving_latency.py --make /tmp/tiny --tiny --executor onnxruntime  # the same way on a CPU

A: half of the requests through `VortaPipeline` in a process of its own, each from the prompt to the mp4, as `vorta-trt
generate` does it. B: all requests, one after the other, behind `vorta-trt serve`, each from the POST until the job is
completed. The client begins to poll after nine tenths of the last video's time, every few milliseconds, since polling
takes processor time from encoding. Then A again, which shows whether the machine drifts. Prompt, seeds, size and
settings are the same everywhere. The study counts how many files are the same, byte for byte (on a CPU, the last bits
of two processes may differ). The first `WARM_UP` videos of every process do not count.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from running_server import RunningServer

from vorta_trt.benchmarks.harness import write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PROMPT = "a red wall, a blue wall"
WARM_UP = 3  # videos
ASK_SECONDS = 0.005  # between two polls of the client
QUIET = 0.9  # share of the last video's time after which the client begins to poll
PATIENCE = 600.0  # seconds for a video
THREADS = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}  # the same for everyone
# The model of --make: Wan 1.3B's width and few layers; the video is large enough to keep a GPU busy in a step.
SMALL: dict[str, Any] = {"layers": 6, "heads": 12, "head_dim": 128, "ffn_dim": 8960}
SMALL_VIDEO = (33, 480, 832)
TINY: dict[str, Any] = {"layers": 2, "heads": 2, "head_dim": 32, "ffn_dim": 64}
TINY_VIDEO = (9, 64, 96)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, nargs="?", help="bundle or ONNX file; or give --make")
    parser.add_argument("--checkpoint", type=Path, help="the pipeline folder")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make a small Wan with random weights there")
    parser.add_argument("--tiny", action="store_true", help="with --make: a tiny one")
    parser.add_argument("--flavour", default="tensorrt8", help="with --make, for which it is built [tensorrt8]")
    parser.add_argument("--executor", help="as of `generate`; with --make, onnxruntime builds no engine")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0, help="scale; 1 computes no second pass")
    parser.add_argument("--name", default="serving-latency", help="of the result")
    parser.add_argument("--direct", type=int, metavar="N", help=argparse.SUPPRESS)  # A, in its process
    arguments = parser.parse_args()
    if (arguments.target is None) != (arguments.make is not None):
        parser.error("give a target, or --make without one")
    if arguments.make is not None:
        make(arguments)
    if arguments.direct is not None:
        print(json.dumps(direct(arguments)))
        return 0
    half = (arguments.requests + 1) // 2
    parts = {"before": alone(arguments, half), "behind_http": behind_http(arguments)}
    parts["after"] = alone(arguments, half)
    figures = compare(arguments, parts)
    print(json.dumps({name: value for name, value in figures.items() if name != "seconds"}, indent=2))
    print(f"written: {write_result(RESULTS, arguments.name, figures)}")
    return 0


def make(arguments: argparse.Namespace) -> None:
    """A pipeline folder and what runs it, once; they become the target and the checkpoint."""
    from vorta_trt.engines import build_engine
    from vorta_trt.export import export_onnx
    from vorta_trt.export.names import OPSET, OPSET_17
    from vorta_trt.model import AttentionGeometry, RoutedTransformer
    from vorta_trt.model.precision import torch_dtype
    from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
    from vorta_trt.model.random_pipeline import complete_pipeline

    sizes, video = (TINY, TINY_VIDEO) if arguments.tiny else (SMALL, SMALL_VIDEO)
    builds = arguments.executor is None
    folder = arguments.make / "pipeline"
    onnx, bundle = arguments.make / "small.onnx", arguments.make / "small.bundle"
    if not onnx.exists():
        complete_pipeline(make_checkpoint(folder, "wan", **sizes))
        geometry = AttentionGeometry.for_video(*video, "wan")
        of_router = {name: sizes[name] for name in ("layers", "heads", "head_dim")}
        make_router(folder / "router", geometry, "wan", **of_router)
        model = RoutedTransformer.from_pretrained(
            folder, router=folder / "router", geometry=geometry, dtype=torch_dtype("float32")
        )
        opset = OPSET_17 if builds and arguments.flavour == "tensorrt8" else OPSET
        export_onnx(model, onnx, "fp16" if builds else "fp32", opset=opset)
    if builds and not bundle.exists():
        built = build_engine(onnx, bundle, arguments.flavour, batch=(1, 1, 2))
        print(f"built in {built.manifest.engine.build_seconds:.0f} s", file=sys.stderr, flush=True)
    arguments.target, arguments.checkpoint = bundle if builds else onnx, folder


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sampling settings of every request."""
    return {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance}


def alone(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """`direct` in a process of its own, so that nothing of it is left on the GPU."""
    command = [sys.executable, __file__, str(arguments.target), "--direct", str(count)]
    command += ["--steps", str(arguments.steps), "--guidance", str(arguments.guidance)]
    for option in ("checkpoint", "executor"):
        if (value := getattr(arguments, option)) is not None:
            command += [f"--{option}", str(value)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **THREADS})
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def direct(arguments: argparse.Namespace) -> dict[str, Any]:
    """Videos of a pipeline that is loaded once: seconds from the prompt to the mp4."""
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
    from vorta_trt.runtime.video_file import BackgroundWriter

    seconds: list[float] = []
    hashes: list[str] = []
    stages: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        VortaPipeline.from_pretrained(arguments.target, arguments.checkpoint, executor=arguments.executor) as pipeline,
    ):
        for number in range(WARM_UP + arguments.direct):
            began = time.perf_counter()
            path = Path(folder) / f"{number}.mp4"
            with BackgroundWriter(path, pipeline.planner.frames_per_second) as writer:
                write = lambda _, frames, writer=writer: writer(frames)  # noqa: E731
                video = pipeline(PROMPT, seed=number, on_frames=write, **settings(arguments))
            seconds.append(time.perf_counter() - began)
            stages.append(dict(video.stage_seconds))
            hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return {
        "seconds": seconds[WARM_UP:],
        "hashes": hashes,
        "stages": {name: statistics.median(each[name] for each in stages[WARM_UP:]) for name in stages[0]},
    }


def behind_http(arguments: argparse.Namespace) -> dict[str, Any]:
    """Requests of one client, one after the other: seconds from the POST until the job is completed."""
    seconds: list[float] = []
    in_worker: list[float] = []
    hashes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        options: list[str] = []
        for option in ("checkpoint", "executor"):
            if (value := getattr(arguments, option)) is not None:
                options += [f"--{option}", str(value)]
        with RunningServer(
            Path(folder) / "jobs", str(arguments.target), *options, log=log, environment=THREADS
        ) as server:
            server.wait_until_ready()
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)

            def ask(method: str, path: str, body: Any = None) -> Any:
                sent = None if body is None else json.dumps(body)
                connection.request(method, path, sent, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{method} {path}: {answer.status} {content[:1000]!r}; {log.read_text()[-3000:]}")
                return content if path.endswith("/content") else json.loads(content)

            for number in range(WARM_UP + arguments.requests):
                began = time.perf_counter()
                job = ask("POST", "/v1/videos", {"prompt": PROMPT, "seed": number, **settings(arguments)})["id"]
                time.sleep(QUIET * seconds[-1] if seconds else 0)
                while (video := ask("GET", f"/v1/videos/{job}"))["status"] in ("queued", "in_progress"):
                    if time.perf_counter() - began > PATIENCE:
                        raise SystemExit(f"request {number}: not completed in {PATIENCE:g} s: {video}")
                    time.sleep(ASK_SECONDS)
                seconds.append(time.perf_counter() - began)
                if video["status"] != "completed":
                    raise SystemExit(f"request {number}: {video}; {log.read_text()[-3000:]}")
                in_worker.append(video["inference_time_s"])
                hashes.append(hashlib.sha256(ask("GET", f"/v1/videos/{job}/content")).hexdigest())
            connection.close()
            server.stop()
    return {"seconds": seconds[WARM_UP:], "in_worker": in_worker[WARM_UP:], "hashes": hashes}


def compare(arguments: argparse.Namespace, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians, their ratio, and where the difference goes."""
    medians = {name: statistics.median(part["seconds"]) for name, part in parts.items()}
    both = parts["before"]["seconds"] + parts["after"]["seconds"]
    direct_median, in_worker = statistics.median(both), statistics.median(parts["behind_http"]["in_worker"])
    known = parts["before"]["hashes"]
    equal = {
        name: sum(one == other for one, other in zip(known, part["hashes"], strict=False))
        for name, part in parts.items()
    }
    return {
        "target": arguments.target.name,
        "requests": arguments.requests,
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "medians": {name: round(value, 4) for name, value in medians.items()},
        "direct_median": round(direct_median, 4),
        "http_to_direct": round(medians["behind_http"] / direct_median, 4),
        "in_worker_to_direct": round(in_worker / direct_median, 4),
        "around_worker_ms": round(1000 * (medians["behind_http"] - in_worker), 2),
        "drift": round(medians["after"] / medians["before"], 4),
        "p90": {
            name: round(sorted(part["seconds"])[int(0.9 * len(part["seconds"]))], 4) for name, part in parts.items()
        },
        "stages": {name: round(value, 4) for name, value in parts["before"]["stages"].items()},
        "files_equal_to_those_before": {name: f"{count} of {len(known)}" for name, count in equal.items()},
        "seconds": {name: [round(value, 4) for value in part["seconds"]] for name, part in parts.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
