# SPDX-License-Identifier: Apache-2.0
"""`UlyssesCall`: a call of the library's `vorta_ulysses_attention`, whole or part by part.

Letters: B batch, S video tokens, T padded text tokens, X = S / P rounded up for P ranks, N heads of the tensors, D head
dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import aligned, checked_scale, kernel_tensors
from vorta_trt.model.precision import dtype_name
from vorta_trt.plugins.kernel_support import prepare_gpu
from vorta_trt.plugins.library import KERNEL_DTYPES, PluginLibrary, Problem, load_library
from vorta_trt.plugins.operator_calls import enqueue
from vorta_trt.plugins.ulysses_attention import Part, UlyssesAttentionParams, workspace_size

WHOLE = Part(0)


class UlyssesCall:
    """Tensors and memory of a call. It has to live until all of its parts are enqueued.

    Args:
        query: [B, X + T, N, D] of this rank, on a GPU.
        key: Keys, of the shape and dtype of `query`.
        value: Values, of the shape and dtype of `query`.
        routes: Int32 [B, N].
        head_order: Int32, the heads that this call computes; their number is a multiple of P.
        output: [B, X + T, N, D], contiguous; the call writes those heads.
        text_length: Int32 [B], if there is text.
        geometry: Geometry of all tokens.
        ranks: P.
        scale: Factor of the logits; None is 1/sqrt(D).
        attention_precision: "same" or "fp8"; see `routed_attention`.

    Raises:
        TypeError: The kernels do not compute in this dtype.
        LibraryError: The library does not take the call.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        routes: Tensor,
        head_order: Tensor,
        output: Tensor,
        text_length: Tensor | None,
        geometry: AttentionGeometry,
        ranks: int,
        scale: float | None,
        attention_precision: str,
    ) -> None:
        check_kernel_dtype(query)
        self._device = query.device
        self._library = ready_library(query)
        query, key, value = (aligned(tensor) for tensor in (query, key, value))
        routes, head_order = routes.contiguous(), head_order.contiguous()
        text_length = None if text_length is None else text_length.contiguous()
        heads = query.shape[2]
        self._params = UlyssesAttentionParams(
            ranks=ranks,
            attention=Problem(
                dtype=dtype_name(query.dtype),
                batch=query.shape[0],
                heads=head_order.shape[0],
                head_dim=query.shape[3],
                **geometry.to_dict(),
                scale=checked_scale(scale, query),
                attention_precision=attention_precision,
            ),
            head_order=head_order.data_ptr(),
            tensor_heads=heads,
        )
        size = workspace_size(self._library, self._params)
        # The workspace may be freed on return: torch's allocator hands it out again on this stream only.
        workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)  # torch aligns to 512
        self._params.tensors = kernel_tensors(query, key, value, routes, text_length, output, workspace, size)
        self._alive = (query, key, value, routes, head_order, text_length, output, workspace)

    def enqueue(self, part: Part = WHOLE) -> None:
        """Puts the call, or a part of it, on the current stream.

        Raises:
            LibraryError: This process has no communicator of P ranks on this GPU, or NCCL fails.
        """
        self._params.parts = part
        with torch.cuda.device(self._device):
            enqueue(self._library, self._params, torch.cuda.current_stream(self._device).cuda_stream)


def check_kernel_dtype(tensor: Tensor) -> None:
    """Raises TypeError unless the kernels compute in the tensor's dtype."""
    if dtype_name(tensor.dtype) not in KERNEL_DTYPES:
        raise TypeError(
            f"query of dtype {tensor.dtype}: the kernels compute in float16 and bfloat16; convert the model"
        )


def ready_library(tensor: Tensor) -> PluginLibrary:
    """The library, ready for the tensor's GPU."""
    library = load_library()
    prepare_gpu(library, tensor.device.index)
    return library
