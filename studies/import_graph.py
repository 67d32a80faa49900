# SPDX-License-Identifier: Apache-2.0
"""How is the house built: rooms, floors, circles, lines, and the files that a generation step passes through?

    python studies/import_graph.py --commit abc1234                          # the vorta_trt that Python finds
    python studies/import_graph.py --commit abc1234 --step demo/wan-fp32.onnx

Imports that only type checkers see are left out. A floor is a place in the longest chain of imports: a module stands
one floor above the highest that it imports; modules that import one another stand on one floor and are a circle. With
`--step`, `vorta-trt generate` runs four steps, and the files whose code runs from the second call of the drop-in
transformer to the third are listed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import grimp
import networkx  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from vorta_trt.benchmarks.harness import write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PACKAGE = "vorta_trt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="what is looked at, for the result's name")
    parser.add_argument("--step", type=Path, help="a bundle or ONNX file; its checkpoint lies beside it")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()
    figures = describe()
    if arguments.step is not None:
        figures["step"] = files_of_a_step(arguments.step)
    show(figures)
    name = "import-graph" + (f"-{arguments.commit}" if arguments.commit else "")
    print(f"written: {write_result(arguments.output, name, figures)}")


def describe() -> dict[str, Any]:
    """Rooms with modules, lines, floors and the rooms that they import; circles of modules and of rooms."""
    found = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    graph = networkx.DiGraph()
    graph.add_nodes_from(found.modules)
    graph.add_edges_from(
        (module, imported) for module in found.modules for imported in found.find_modules_directly_imported_by(module)
    )
    rooms: dict[str, list[str]] = defaultdict(list)
    for module in sorted(found.modules - {PACKAGE, f"{PACKAGE}.public"}):  # a link of development trees
        rooms[_room(module)].append(module)
    between = networkx.DiGraph((_room(a), _room(b)) for a, b in graph.edges if PACKAGE not in (a, b))
    between.remove_edges_from([(room, room) for room in rooms])
    lines = {module: _lines(module) for module in found.modules}
    return {
        "rooms": [
            {
                "room": room,
                "modules": len(modules),
                "lines": sum(lines[module] for module in modules),
                "floors": _floors(graph.subgraph(modules)),
                "imports": sorted(between.successors(room)) if room in between else [],
            }
            for room, modules in rooms.items()
        ],
        "modules": len(found.modules),
        "lines": sum(lines.values()),
        "floors": _floors(graph),
        "circles": _circles(graph),
        "circles_of_rooms": _circles(between),
    }


def _room(module: str) -> str:
    return module.split(".")[1]


def _floors(graph: networkx.DiGraph) -> int:
    return int(networkx.dag_longest_path_length(networkx.condensation(graph))) + 1


def _circles(graph: networkx.DiGraph) -> list[list[str]]:
    return sorted(sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1)


def _lines(module: str) -> int:
    import importlib.util

    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return 0
    return len(Path(spec.origin).read_text(encoding="utf-8").splitlines())


def files_of_a_step(target: Path) -> list[str]:
    """The files of the package, in the order in which a step enters them."""
    from typer.testing import CliRunner

    import vorta_trt.plugins
    from vorta_trt.cli import app

    package = Path(vorta_trt.plugins.__file__).parents[1]
    calls, entered = 0, dict[str, None]()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        if event != "call" or not frame.f_code.co_filename.startswith(str(package)):
            return
        file = str(Path(frame.f_code.co_filename).relative_to(package))
        calls += file == "runtime/pipelines/transformer.py" and frame.f_code.co_name == "forward"
        if calls == 2:
            entered[file] = None

    with tempfile.TemporaryDirectory() as folder:
        options = ["--prompt", "a red wall", "--steps", "4", "--seed", "1", "-o", f"{folder}/video.npy"]
        sys.setprofile(watch)
        try:
            result = CliRunner().invoke(app, ["generate", str(target), *options])
        finally:
            sys.setprofile(None)
    if result.exit_code or calls < 3:
        raise SystemExit(f"generate: exit code {result.exit_code}, {calls} calls of the transformer\n{result.output}")
    return list(entered)


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['modules']} modules, {figures['lines']} lines, {figures['floors']} floors")
    for name in ("room", "modules", "lines", "floors", "imports"):
        table.add_column(name, justify="right" if name in ("modules", "lines", "floors") else "left")
    for room in figures["rooms"]:
        table.add_row(*(", ".join(v) if isinstance(v, list) else str(v) for v in room.values()))
    console = Console(width=140)
    console.print(table)
    console.print(f"circles of modules: {json.dumps(figures['circles'])}; of rooms: {figures['circles_of_rooms']}")
    if "step" in figures:
        console.print(f"{len(figures['step'])} files in a step: {', '.join(figures['step'])}")


if __name__ == "__main__":
    main()
