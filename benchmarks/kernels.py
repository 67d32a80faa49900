# SPDX-License-Identifier: Apache-2.0
"""How fast is each branch of the routed-attention kernels, beside torch's dense attention in the same run?

    python benchmarks/kernels.py [--geometry wan|hunyuan ...] [--junit junit.xml] --output result.json

Each case is checked against the reference before it is timed. Times are medians over CUDA events; query, key and value
of a case are several times larger than any L2, so that no run finds them in the cache. `--junit` adds the errors that
`pytest -m gpu tests/plugins --junit-xml junit.xml -o junit_family=legacy` recorded.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import environment
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vorta_trt.model import AttentionGeometry, Branch, routed_attention, routed_attention_reference
from vorta_trt.plugins import load_library

GEOMETRIES = {
    "wan": AttentionGeometry((20, 45, 80), (5, 9, 8), (3, 3, 3), (2, 3, 2), 6, "query", 0),
    "hunyuan": AttentionGeometry((30, 45, 80), (6, 9, 8), (3, 3, 3), (2, 3, 2), 6, "key", 256),
}
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
BRANCHES = {"full": Branch.FULL, "coreset": Branch.CORESET, "sliding": Branch.SLIDING}


def median_milliseconds(run: Callable[[], Tensor], repeats: int = 10, warm_up: int = 2) -> float:
    """Median time of `run` on the GPU."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for _ in range(warm_up):
        run()
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def relative_error(output: Tensor, wanted: Tensor) -> float:
    return ((output.double() - wanted.double()).norm() / wanted.double().norm()).item()


def time_case(name: str, heads: int, head_dim: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row for each branch, and one for each of torch's dense backends."""
    geometry = GEOMETRIES[name]
    shape = (1, geometry.tokens, heads, head_dim)
    query, key, value = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3))  # [B, S+T, N, D]
    length = None
    if geometry.text_tokens:
        length = torch.full((1,), geometry.text_tokens, dtype=torch.int32, device="cuda")  # [B]
    common = {"geometry": name, "grid": geometry.grid, "heads": heads, "head_dim": head_dim, "dtype": str(dtype)[6:]}
    rows = []

    def add(what: str, branch: str, error: float, run: Callable[[], Tensor]) -> None:
        milliseconds = median_milliseconds(run)
        flops = heads * geometry.attention_flops(branch, head_dim)
        rows.append(
            {**common, "what": what, "branch": branch, "relative_error": error, "milliseconds": round(milliseconds, 3)}
            | {"useful_tflops": round(flops / milliseconds * 1e-9, 1), "density": round(geometry.density(branch), 4)}
        )
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)

    for branch, route in BRANCHES.items():
        routes = torch.full((1, heads), int(route), dtype=torch.int32, device="cuda")  # [B, N]
        one = [tensor[:, :, :1].float() for tensor in (query, key, value)]  # a head suffices to check: [B, S+T, 1, D]
        wanted = routed_attention_reference(*one, routes[:, :1], geometry, length)
        output = routed_attention(query, key, value, routes, geometry, length)
        error = relative_error(output[:, :, :1], wanted)
        if not error < 1e-2:
            raise RuntimeError(f"{common} {branch}: relative error {error}; not timed because it is wrong")
        add("vorta", branch, error, lambda routes=routes: routed_attention(query, key, value, routes, geometry, length))
        if branch == "full":
            exact = wanted
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]  # [B, N, S+T, D], without a copy
    for backend, which in BACKENDS.items():
        with sdpa_kernel(which):
            output = functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
            error = relative_error(output[:, :, :1], exact)
            add(f"torch {backend}", "full", error, lambda: functional.scaled_dot_product_attention(*heads_first))
    return rows


def recorded_errors(junit: Path) -> list[dict[str, Any]]:
    """The errors that the GPU tests recorded as properties."""
    properties = ElementTree.parse(junit).getroot().iter("property")
    return [{"case": item.get("name"), **ast.literal_eval(item.get("value", ""))} for item in properties]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=["wan"])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--junit", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    result = {
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "library": f"{load_library().version} for {';'.join(load_library().cuda_architectures)}",
        "cases": [
            row
            for name in options.geometry
            for row in time_case(name, options.heads, options.head_dim, getattr(torch, options.dtype))
        ],
    }
    if options.junit:
        result["errors"] = recorded_errors(options.junit)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
