# SPDX-License-Identifier: Apache-2.0
"""Runs a file for several GPUs in ONNX Runtime, except for its exchanges, which are done here between the ranks.

The exchange nodes are cut out of the graph: their inputs become outputs of the graph, their outputs inputs of it. The
graph then runs once for each of them, one rank after the other, until the last exchange is done, and a last time for
the sample.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.model.constants import HEAD_ORDERS, RANK
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.plugins.operator_schema import GATHER_TOKENS, ULYSSES_ATTENTION


class CutFile:
    """The file, open in ONNX Runtime."""

    def __init__(self, path: Path, ranks: int, geometry: AttentionGeometry) -> None:
        self.ranks, self.geometry = ranks, geometry
        self._shards = [TokenShards(geometry.video_tokens, ranks, rank) for rank in range(ranks)]
        model = onnx.load(path)
        graph = model.graph
        cut = [node for node in graph.node if node.op_type in (ULYSSES_ATTENTION.name, GATHER_TOKENS.name)]
        self._nodes = copy.deepcopy(cut)
        types = {value.name: value.type for value in (*graph.value_info, *graph.input)}
        self._shapes = {name: [dim.dim_value for dim in type.tensor_type.shape.dim] for name, type in types.items()}
        known = {value.name for value in graph.output} | {value.name for value in graph.input}
        for node in cut:
            graph.node.remove(node)
        for node in self._nodes:
            given = graph.input.add()
            given.name = node.output[0]
            given.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            for name in node.input:
                if name and name not in known:
                    known.add(name)
                    graph.output.add().CopyFrom(onnx.helper.make_value_info(name, types[name]))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: dict[str, Tensor], head_orders: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The sample and the routes of every rank."""
        outputs = [value.name for value in self._session.get_outputs()]
        feeds: list[dict[str, Any]] = [
            {name: tensor.numpy() for name, tensor in inputs.items()}
            | {RANK: np.array([rank], np.int32), HEAD_ORDERS: head_orders.numpy()}
            | {node.output[0]: self._placeholder(node, len(inputs["timestep"])) for node in self._nodes}
            for rank in range(self.ranks)
        ]
        for node in self._nodes:
            wanted = [name for name in node.input if name and name in outputs]
            found = []
            for feed in feeds:
                found.append({**feed, **dict(zip(wanted, self._session.run(wanted, feed), strict=True))})
            given = [[torch.from_numpy(each[name]) for name in node.input if name] for each in found]
            exchange = self._attend if node.op_type == ULYSSES_ATTENTION.name else self._gather
            for feed, made in zip(feeds, exchange(given), strict=True):
                feed[node.output[0]] = made.numpy()
        ends = [self._session.run(outputs[:2], feed) for feed in feeds]
        return [(torch.from_numpy(sample), torch.from_numpy(routes)) for sample, routes in ends]

    def _placeholder(self, node: onnx.NodeProto, batch: int) -> Any:
        """Zeros that stand for the output of an exchange that has not been done yet."""
        _, rows, *sizes = self._shapes[node.input[0]]
        if node.op_type == GATHER_TOKENS.name:
            rows = self.geometry.video_tokens
        return np.zeros((batch, rows, *sizes), np.float32)

    def _attend(self, given: list[list[Tensor]]) -> list[Tensor]:
        """Every rank's attention output, from each rank's query, key, value, routes, head order (, text length)."""
        _, _, _, routes, order, *text_length = given[0]
        assert sorted(order.tolist()) == list(range(routes.shape[1]))
        for other in given[1:]:
            assert all(mine.equal(theirs) for mine, theirs in zip(given[0][3:], other[3:], strict=True))
        behind = self._shards[0].rows
        whole = [
            torch.cat([*(each[part][:, : s.count] for each, s in zip(given, self._shards, strict=True)),
                       given[0][part][:, behind:]], dim=1)
            for part in range(3)
        ]  # fmt: skip
        out = routed_attention(whole[0], whole[1], whole[2], routes, self.geometry, *text_length)  # [B, S + T, N, D]
        return [shards.own(out).contiguous() for shards in self._shards]

    def _gather(self, given: list[list[Tensor]]) -> list[Tensor]:
        """For every rank, the rows of all ranks without their padding."""
        whole = torch.cat([rows[:, : s.count] for (rows,), s in zip(given, self._shards, strict=True)], dim=1)
        return [whole] * self.ranks
