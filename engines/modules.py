# SPDX-License-Identifier: Apache-2.0
"""A layer graph seen from further away: layers gathered into the model's modules, repeated blocks drawn once.

"blocks.0.attn1.to_q/MatMul" ... "blocks.29.attn1.to_q/MatMul" all belong to the module "blocks.*.attn1", 30 times. A
module that the data leaves and enters again (a block's residuals, the output projection behind the plugin) appears once
per visit, so that the view has no cycles and reads from top to bottom.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from vorta_trt.engines.layers import CONSTANT, Layer, LayerGraph, scope_of_name
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTIONS

MOST_MODULES = 32  # more boxes than this cannot be read in one picture

_NODE = re.compile(r"[\w.]*(?:/[\w.]+)+")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


@dataclass
class Module:
    """Layers of one visit to a module, over all blocks that repeat it."""

    name: str  # "blocks.*.attn1"; "" for what belongs to no module
    visit: int = 0
    layers: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    weight_bytes: int = 0
    blocks: set[int] = field(default_factory=set)  # numbers of the blocks that have it

    @property
    def repeats(self) -> int:
        """How many blocks have this module."""
        return max(len(self.blocks), 1)

    @property
    def is_plugin(self) -> bool:
        """Whether it is our plugin."""
        return len(self.kinds) == 1 and set(self.kinds) <= {*ROUTED_ATTENTIONS}

    @property
    def container(self) -> str | None:
        """The repeated block it lies in ("blocks.*"), if any."""
        head, star, _ = self.name.partition("*")
        return head + star if star else None


@dataclass(frozen=True)
class Edge:
    """Data flows from module to module (indices); `next_block`: into the following repetition of the block."""

    source: int
    target: int
    next_block: bool


@dataclass(frozen=True)
class ModuleGraph:
    """Modules in order of first execution, and the data flow between them."""

    modules: list[Module]
    edges: list[Edge]


@dataclass(frozen=True)
class Place:
    """Where a layer belongs: the module's name, and the number of the outermost block (None outside of any)."""

    name: str
    block: int | None


def collapse(graph: LayerGraph, most: int = MOST_MODULES) -> ModuleGraph:
    """The finest view with at most `most` modules, or the coarsest there is."""
    scopes = _filled_scopes(graph)
    deepest = max((scope.count(".") + 1 for scope in scopes), default=1)
    for depth in range(deepest, 0, -1):
        view = _collapse_to(graph, scopes, depth)
        if len(view.modules) <= most:
            break
    return view


def module_of_layer(names: Sequence[str]) -> str:
    """The innermost module that holds all of a layer, e.g. "blocks.*.attn1"; "" if there is none.

    names: the ONNX nodes in the layer, or its own name, in which TensorRT lists them ("a/MatMul + a/Add").
    """
    nodes = [node for name in names for node in _NODE.findall(name.replace("...", " "))]  # "first...last"
    scopes = [_INDEX.sub("*", scope_of_name(node)).split(".") for node in nodes]
    common = os.path.commonprefix(scopes)  # on lists it compares part by part
    name = _truncated(".".join(common), len(common))
    for kind in ROUTED_ATTENTIONS:
        if any(node.endswith(f"/{kind}") for node in nodes):
            return f"{name}/{kind}" if name else kind
    return name


def _collapse_to(graph: LayerGraph, scopes: list[str], depth: int) -> ModuleGraph:
    places = [_place(layer, scope, depth) for layer, scope in zip(graph.layers, scopes, strict=True)]
    producers = _producers(graph)
    visits = _visits(graph, places, producers)
    modules: dict[tuple[str, int], Module] = {}
    constants = []
    for position, layer in enumerate(graph.layers):
        if layer.kind == CONSTANT:
            constants.append(position)  # later: some files list them first
            continue
        key = (places[position].name, visits[position])
        _add_layer(modules.setdefault(key, Module(*key)), graph, layer, places[position].block)
    users = _users(graph)
    for position in constants:  # weights belong to the visit that uses them
        home = next((users[name][0] for name in graph.layers[position].outputs if users[name]), position)
        key = (places[home].name, visits[home])
        module = modules.setdefault(key, Module(*key))
        outputs = graph.layers[position].outputs
        module.weight_bytes += sum(graph.tensors[name].bytes for name in outputs if name in graph.tensors)
    order = {key: index for index, key in enumerate(modules)}
    edges: dict[Edge, None] = {}
    for position, layer in enumerate(graph.layers):
        for source in (producers[name] for name in layer.inputs if name in producers):
            ends = [order[places[end].name, visits[end]] for end in (source, position)]
            crosses = None not in (a := places[source].block, b := places[position].block) and a != b
            if ends[0] != ends[1] or crosses:
                edges[Edge(ends[0], ends[1], crosses)] = None
    return ModuleGraph(list(modules.values()), list(edges))


def _place(layer: Layer, scope: str, depth: int) -> Place:
    match = _INDEX.search(scope)
    # A block's number and its name are one step: "blocks.3.attn1" has depth 2.
    name = _truncated(_INDEX.sub("*", scope), depth)
    if layer.kind in ROUTED_ATTENTIONS:
        name = f"{name}/{layer.kind}" if name else layer.kind
    return Place(name, int(match[0]) if match else None)


def _producers(graph: LayerGraph) -> dict[str, int]:
    """Tensor name -> position of the layer that computes it; constants are not computed."""
    return {
        tensor: position
        for position, layer in enumerate(graph.layers)
        if layer.kind != CONSTANT
        for tensor in layer.outputs
    }


def _users(graph: LayerGraph) -> dict[str, list[int]]:
    """Tensor name -> positions of the layers that read it."""
    users: dict[str, list[int]] = defaultdict(list)
    for position, layer in enumerate(graph.layers):
        for tensor in layer.inputs:
            users[tensor].append(position)
    return users


def _visits(graph: LayerGraph, places: list[Place], producers: dict[str, int]) -> list[int]:
    """For each layer, how often the data had left its module before; counted anew in every block."""
    visits = [0] * len(places)
    seen: list[dict[str, int]] = [{} for _ in places]  # module name -> its last visit on the way to the layer
    for position, layer in enumerate(graph.layers):
        place = places[position]
        for source in (producers[name] for name in layer.inputs if name in producers):
            before = places[source]
            same_block = before.block == place.block
            for name, visit in seen[source].items():
                if same_block or "*" not in name:
                    seen[position][name] = max(visit, seen[position].get(name, 0))
            if before == place:
                visits[position] = max(visits[position], visits[source])
            elif same_block and place.name in seen[source]:
                visits[position] = max(visits[position], seen[source][place.name] + 1)
        seen[position][place.name] = visits[position]
    return visits


def _add_layer(module: Module, graph: LayerGraph, layer: Layer, block: int | None) -> None:
    if block is not None:
        module.blocks.add(block)
    module.layers += 1
    module.kinds[layer.kind] += 1
    module.dtypes[graph.dtype(layer)] += 1


def _filled_scopes(graph: LayerGraph) -> list[str]:
    """Each layer's scope; constants, and layers without a scope (TensorRT's own reshapes), join their user."""
    scopes = [layer.scope for layer in graph.layers]
    consumers = _users(graph)
    for position in range(len(scopes) - 1, -1, -1):  # consumers first
        if not scopes[position] or graph.layers[position].kind == CONSTANT:
            users = (user for tensor in graph.layers[position].outputs for user in consumers[tensor])
            scopes[position] = next((scopes[user] for user in users if scopes[user]), scopes[position])
    producers = _producers(graph)
    for position, layer in enumerate(graph.layers):
        if not scopes[position]:  # nobody uses it: an output of the model
            sources = (producers[name] for name in layer.inputs if name in producers)
            scopes[position] = next((scopes[source] for source in sources if scopes[source]), "")
    return scopes


def _truncated(scope: str, depth: int) -> str:
    parts: list[str] = []
    for part in scope.split("."):
        if part == "*" and parts:
            parts[-1] += ".*"
        else:
            parts.append(part)
    return ".".join(parts[:depth])
