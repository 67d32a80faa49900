# SPDX-License-Identifier: Apache-2.0
"""Does anything grow in a soak of `vorta-trt serve`? Draws memory, open files, threads and the folder of jobs.

Nothing is measured here: it reads the result of `serving_load.py --minutes`.

    python studies/soak_picture.py benchmarks/results/2026-11-29-serving-soak.json -o docs/serving-soak.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PANELS = {  # title: what is drawn of each look, with its name
    "memory, MiB": {"workers_mib": "worker", "server_mib": "server"},
    "open files": {"server_files": "server", "workers_files": "worker"},
    "threads": {"server_threads": "server"},
    "folder of jobs, MiB": {"jobs_mib": "database, its log, reserve and results"},
}
MOST = 150  # looks that are drawn
COLOURS = ("#0072B2", "#D55E00")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture, e.g. .svg")
    arguments = parser.parse_args()
    draw(json.loads(arguments.result.read_text(encoding="utf-8")), arguments.output)


def draw(result: dict[str, Any], file: Path) -> None:
    """A panel for each kind, from 0 on, over the minutes."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same file from the same figures, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "soak", "svg.fonttype": "none"})
    figure: Any = Figure(figsize=(8.4, 4.6), layout="constrained")
    looks = result["memory"][:: 1 + len(result["memory"]) // MOST]
    minutes = [look["second"] / 60 for look in looks]
    for panel, (title, lines) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True):
        for (name, label), colour in zip(lines.items(), COLOURS, strict=False):
            panel.plot(minutes, [look[name] for look in looks], color=colour, label=label, linewidth=1)
        panel.set_ylim(bottom=0)
        panel.set_title(title, fontsize="small")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize="x-small", frameon=False, loc="lower right")
        panel.tick_params(labelsize="x-small")
    figure.supxlabel(f"minutes; {result['jobs']} jobs", fontsize="small")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
