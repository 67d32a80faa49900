# SPDX-License-Identifier: Apache-2.0
"""One call as a CUDA graph: what an engine replays, without the host's part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class GraphReplay:
    """Captures `run` once; each call replays it and returns the same output tensor.

    A `run` that waits for the host or reads a device value cannot be captured, and torch raises RuntimeError.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # lazily made things are made before the capture
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = run()

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._output
