# SPDX-License-Identifier: Apache-2.0
"""The peers of our kernels, all measured on the same tensors in the same run.

A peer prepares a run for a case, or raises `Unavailable`, which becomes a row with the reason: no peer is left out
silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vorta_trt.benchmarks import flash4_peer, flex_peer, gather_peer
from vorta_trt.benchmarks.cases import Case, Inputs
from vorta_trt.benchmarks.peer import Peer, Prepare, Prepared


def sdpa(backend: SDPBackend) -> Prepare:
    """Runs torch's scaled_dot_product_attention on every valid token, through one backend."""

    def prepare(case: Case, inputs: Inputs) -> Prepared:
        tensors = inputs.heads_first(case.valid)  # [1, N, S+V, D]

        def run() -> Tensor:
            with sdpa_kernel(backend):
                output: Tensor = functional.scaled_dot_product_attention(*tensors)
            return output

        return Prepared(run, lambda result: result.transpose(1, 2))

    return prepare


CUDNN = Peer("torch cuDNN", "cudnn", "full", sdpa(SDPBackend.CUDNN_ATTENTION))
PEERS = (
    CUDNN,
    Peer("torch FlashAttention-2", "flash2", "full", sdpa(SDPBackend.FLASH_ATTENTION)),
    Peer("flash-attn-4", "flash4", "full", flash4_peer.prepare_dense),
    Peer("flash-attn-4, tile order", "flash4", "sliding", flash4_peer.prepare_sparse),
    Peer("FlexAttention", "flex", "sliding", flex_peer.prepare),
    Peer("FlexAttention, tile order", "flex", "sliding", partial(flex_peer.prepare, reorder=False)),
    Peer(
        "gather + cuDNN + scatter",
        "gather",
        "coreset",
        partial(gather_peer.prepare, backend=SDPBackend.CUDNN_ATTENTION),
    ),
)
PEER_OPTIONS = tuple(dict.fromkeys(peer.option for peer in PEERS))


def select_peers(options: Sequence[str] = ()) -> tuple[Peer, ...]:
    """The peers of the given options, default all. cuDNN comes along unless "none" is given: speedups are over it."""
    for option in options:
        if option not in (*PEER_OPTIONS, "none"):
            raise ValueError(f"peer {option!r}: must be one of {', '.join(PEER_OPTIONS)}, or none")
    if not options:
        return PEERS
    return tuple(peer for peer in PEERS if peer.option in options or (peer is CUDNN and "none" not in options))
