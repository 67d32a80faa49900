# SPDX-License-Identifier: Apache-2.0
"""Does the memory of a process grow with the requests that it serves?

    python studies/repeated_requests.py demo/wan-fp32.onnx              # 200 requests of 3 steps
    python studies/repeated_requests.py wan.bundle --checkpoint FOLDER --requests 50

Resident memory after every tenth request, each with another seed, guidance, a skipped step and a decoded video. The
first tenth is left out of the growth: libraries fill their pools then.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

from memory import resident_mib

from vorta_trt.benchmarks.harness import write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
EVERY = 10  # requests between two looks


def main() -> None:
    from vorta_trt.runtime import SamplingParams, VortaPipeline
    from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="bundle or ONNX file")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--name", default="repeated-requests", help="of the result")
    arguments = parser.parse_args()
    if arguments.requests < 2 * EVERY:
        parser.error(f"--requests {arguments.requests}: must be at least {2 * EVERY}, for two looks at the memory")

    params = SamplingParams(num_inference_steps=arguments.steps, cache=StepBroadcast(2, (0, 1000)))
    memory: list[float] = []
    with VortaPipeline.from_pretrained(arguments.target, arguments.checkpoint) as pipe:
        start = time.perf_counter()
        for request in range(arguments.requests):
            video = pipe("a red wall", params, seed=request)
            if request % EVERY == EVERY - 1:
                gc.collect()
                memory.append(round(resident_mib(), 1))
                print(f"{request + 1:5} requests: {memory[-1]:.1f} MiB", flush=True)
        seconds = time.perf_counter() - start
        figures = {
            "target": arguments.target.name,
            "executor": pipe.executor,
            "video": list(video.frames.shape[:3]),
            "steps": arguments.steps,
            "launches_per_request": video.launches,
            "requests": arguments.requests,
            "seconds": round(seconds, 1),
            "resident_mib": memory,
        }
    settled = memory[max(1, len(memory) // 10) :]
    figures["growth_mib"] = round(settled[-1] - settled[0], 1)
    print(f"growth from {settled[0]} MiB: {figures['growth_mib']} MiB")
    print(write_result(RESULTS, arguments.name, figures))


if __name__ == "__main__":
    main()
