# SPDX-License-Identifier: Apache-2.0
"""`Rates`: how fast a GPU computes and exchanges data. Times that were not measured are predicted from them.

`H100` holds what was measured on an H100 80 GB at 72,000 and 108,256 tokens (docs/measurements.md), inside whole
passes, where the clock is lower than in an operator on its own. A pass of the two published models in 16 bits, and of
the larger with fp8, is predicted within 5 % of what an H100 took (tests/runtime/parallel/test_rank_plan.py). An H200
takes 1 and 6 % less in 16 bits, and 7 and 12 % less with fp8. On two H200 a pass was predicted within 0.1 %, though its
exchanges took 42 % longer than predicted. No other size was compared, and no more GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.parallel.placement import BranchCosts
from vorta_trt.model.precision import BITS, PRECISIONS, dtype_name
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.model.transformer_flops import other_flops
from vorta_trt.plugins.operator_schema import SAME_PRECISION, AttentionPrecision, LinearPrecision
from vorta_trt.runtime.sampling.cost import StepProfile


@dataclass(frozen=True)
class PassWork:
    """What a pass of one sample computes and moves.

    Attributes:
        geometry: Geometry of the attention.
        layers: Number of layers L.
        heads: Number of heads N.
        head_dim: Head dimension D.
        other_flops: FLOPs outside the routed attention.
        dtype: Type of the activations.
        attention_precision: Precision of the attention: "same" as the activations, or "fp8".
        linear_precision: Precision of the linear layers: "same" as the activations, or "fp8".
    """

    geometry: AttentionGeometry
    layers: int
    heads: int
    head_dim: int
    other_flops: float
    dtype: str = "bfloat16"
    attention_precision: AttentionPrecision = SAME_PRECISION
    linear_precision: LinearPrecision = SAME_PRECISION

    @classmethod
    def of(cls, model: ModelMetadata | RoutedTransformer) -> PassWork:
        """The work of a pass of an exported model, or of a model in torch whose geometry is set."""
        if isinstance(model, ModelMetadata):
            geometry, dtype = model.attention_geometry, str(PRECISIONS[model.precision])
        else:
            assert model.geometry is not None
            geometry, dtype = model.geometry, dtype_name(model.dtype)
        flops = other_flops(model.family, model.config, geometry, has_router=model.has_router)
        return cls(
            geometry,
            model.num_layers,
            model.num_heads,
            model.head_dim,
            float(sum(flops.values())),
            dtype,
            cast("AttentionPrecision", model.attention_precision),
            model.linear_precision,
        )

    @property
    def width(self) -> int:
        """Number of channels, N * D."""
        return self.heads * self.head_dim

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of an activation."""
        return BITS[self.dtype] // 8

    def rows(self, ranks: int) -> int:
        """Number of tokens on a rank: its shard of the video tokens, and all text tokens."""
        return -(-self.geometry.video_tokens // ranks) + self.geometry.text_tokens

    def sent_bytes(self, ranks: int) -> tuple[int, int]:
        """Bytes that a rank sends to the other ranks in a layer: for Q, K and V together, and for the output.

        A rank does not send the share of its own heads. For Q, K and V no text rows are sent, since every rank has
        them; for the output, each rank sends the text rows of its heads to all others.
        """
        shard = -(-self.geometry.video_tokens // ranks) * self.width * self.element_bytes * (ranks - 1) // ranks
        text = self.geometry.text_tokens * self.width * self.element_bytes * (ranks - 1) // ranks
        return 3 * shard, shard + text

    def exchange_bytes(self, ranks: int) -> int:
        """Upper bound in bytes of an exchange's buffers: Q, K, V and the output, each sent and received."""
        return 0 if ranks == 1 else 8 * self.rows(ranks) * self.width * self.element_bytes


@dataclass(frozen=True)
class Rates:
    """The rates that a GPU reaches.

    Attributes:
        name: Name of the GPU, for reports.
        products: FLOP/s of matrix products, by precision of the linear layers.
        attention: FLOP/s of full heads, by precision of the attention. The times of heads of the other branches follow
            from these and `BranchCosts.of`.
        elementwise: Seconds per token, channel and layer of all operations that are neither a matrix product nor routed
            attention.
        link: Bytes/s that a GPU sends to others in an all-to-all.
        exchange_start: Seconds that an all-to-all takes in addition to the transfer, including packing.
    """

    name: str
    products: Mapping[LinearPrecision, float]
    attention: Mapping[AttentionPrecision, float]
    elementwise: float
    link: float
    exchange_start: float

    def profile(self, work: PassWork) -> StepProfile:
        """Predicted seconds of a pass by part, in the form of a measured profile."""
        full = work.geometry.attention_flops(Branch.FULL, work.head_dim) / self.attention[work.attention_precision]
        costs = BranchCosts.of(work.geometry, work.attention_precision)
        products = work.other_flops / self.products[work.linear_precision]
        elementwise = self.elementwise * work.geometry.tokens * work.width * work.layers
        return StepProfile(
            other=products + elementwise,
            full=full * costs.full,
            coreset=full * costs.coreset,
            sliding=full * costs.sliding,
        )

    def exchange(self, sent: float) -> float:
        """Seconds of an all-to-all in which every GPU sends `sent` bytes."""
        return self.exchange_start + sent / self.link


# A layer takes 102 ms in 16 bits at 72,000 tokens: 58 to 60 ms for matrix products, 30 ms for attention, 12 ms for the
# rest. With fp8 it takes 75.5 ms. The all-to-all of Q, K and V takes 1.8 ms between 2 GPUs and 1.3 ms between 4, that
# of the output 0.7 and 0.5 ms (one run on H100, without a result file).
H100 = Rates(
    name="H100 80 GB, NVLink",
    products={"same": 735e12, "fp8": 1250e12},
    attention={"same": 715e12, "fp8": 700e12},
    elementwise=3e-11,
    link=340e9,
    exchange_start=0.12e-3,
)
