# SPDX-License-Identifier: Apache-2.0
"""Where does a layer of Wan 14B spend its time in TensorRT 8.6? By kind of operator, before block operators and after.

Nothing is timed here: it reads the profiles in the results of `tensorrt8_chain_14b.py`. Times are of TensorRT's
profiler, a pass divided by the layers that were run, so embeddings and the last projection count as well. Before block
operators, TensorRT fused layers under names that say nothing; those parts are the shares of the GPU's kernels.

    python studies/layer_parts.py [--plot layer-parts.svg]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from vorta_trt.model.tables import table_lines

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
RUNS = {  # what the bar says: result
    "before block operators,\nfp16, H100": "2026-11-26-h100-tensorrt8-chain-wan-14b-2-layers.json",
    "block operators,\nfp16, H100": "2026-11-28-h100-tensorrt8-chain-wan-14b-2.json",
    "block operators,\nfp16, H200": "2026-11-28-h200-tensorrt8-chain-wan-14b-4.json",
    "block operators,\nfp8, H100": "2026-11-28-h100-tensorrt8-chain-wan-14b-2-fp8.json",
    "block operators,\nfp8, H200": "2026-11-28-h200-tensorrt8-chain-wan-14b-4-fp8.json",
}
ROUTES = "50/50"
PRODUCTS, ATTENTION, REST = "matrix products", "routed attention", "copies and the rest"
PARTS = {
    PRODUCTS: ("Linear", "Fp8Linear", "MatMul", "Gemm", "Conv"),
    ATTENTION: ("RoutedAttention",),
    "cross-attention": ("CrossAttention",),
    "norms, modulation, rotary": ("HeadNorm", "QKNormRotary", "NormModulate", "ResidualNormModulate"),
    "quantisation": ("Quantize",),  # norms that quantise count as norms
    REST: (),
}
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#999999")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, help="draw the parts into this file")
    options = parser.parse_args()
    parts = {name: parts_of_layer(file) for name, file in RUNS.items()}
    rows = [
        (" ".join(name.split()), *(f"{value:.1f}" for value in part.values()), f"{sum(part.values()):.1f}")
        for name, part in parts.items()
    ]
    print("\n".join(table_lines(("ms a layer", *PARTS, "all"), rows, left=1)))
    if options.plot is not None:
        draw(parts, options.plot)


def parts_of_layer(file: str) -> dict[str, float]:
    """Milliseconds of a layer by part, of a result of `tensorrt8_chain_14b.py`."""
    result: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    parts = dict.fromkeys(PARTS, 0.0)
    profile = result["profiles"][ROUTES]
    if "block_operators" not in result:
        (row,) = (row for row in result["rows"] if (row["implementation"], row["routes"]) == ("TensorRT 8.6", ROUTES))
        shares = row["kernel_shares"]
        names = {PRODUCTS: "matrix products", ATTENTION: "attention", REST: "other"}
        for part, share in names.items():
            parts[part] = shares[share] * profile["milliseconds"] / result["layers"]
        return parts
    for layer in profile["layers"]:
        parts[part_of(layer["name"])] += layer["milliseconds"] / result["layers"]
    return parts


def part_of(layer: str) -> str:
    """The part of an engine's layer, by the operator at the end of its name: "blocks.0.attn1.to_q/Linear"."""
    operator = re.sub(r"_\d+$", "", layer.rpartition("/")[2])
    if layer.startswith("Reformatting"):
        return REST
    fused = operator.removesuffix("Quantize") or operator  # NormModulateQuantize
    return next((part for part, names in PARTS.items() if operator in names or fused in names), REST)


def draw(parts: dict[str, dict[str, float]], file: Path) -> None:
    """A bar for each run, the parts above each other."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same file from the same figures, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "layer-parts", "svg.fonttype": "none"})
    figure: Any = Figure(figsize=(8.4, 4.4), layout="constrained")
    panel = figure.subplots()
    heights = [0.0] * len(parts)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        values = [each[part] for each in parts.values()]
        bars = panel.bar(range(len(parts)), values, bottom=heights, color=colour, width=0.65, label=part)
        panel.bar_label(
            bars, [f"{value:.0f}" if value > 8 else "" for value in values], label_type="center", fontsize="small"
        )
        heights = [height + value for height, value in zip(heights, values, strict=True)]
    for place, height in enumerate(heights):
        panel.text(place, height + 3, f"{height:.0f} ms", ha="center", fontsize="small", fontweight="bold")
    panel.set_xticks(range(len(parts)), list(parts), fontsize="x-small")
    panel.set_ylabel("ms a layer, TensorRT's profiler")
    panel.set_title(
        "A layer of Wan 14B in TensorRT 8.6, 72,000 tokens, half coreset and half sliding", fontsize="small"
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize="small", frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
