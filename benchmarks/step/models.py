# SPDX-License-Identifier: Apache-2.0
"""The transformer of a case, made on the GPU with random weights, and the ways to run it.

The routed transformer and diffusers' own share their parameters, so both fit where one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vorta_trt.benchmarks.step.cases import StepCase
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.block_operators import quantize_rows
from vorta_trt.model.families.hunyuan_video_15 import IMAGE_ROWS
from vorta_trt.model.fp8_linear import Fp8Linear
from vorta_trt.model.linear_choice import choose_linears
from vorta_trt.model.random_checkpoint import random_router_state, random_weight
from vorta_trt.model.transformer import NATIVE_OPS, AttentionMode, routed_class
from vorta_trt.plugins.operator_schema import SAME_PRECISION

# cuDNN wherever it can: not for the masked attention of HunyuanVideo's few text tokens.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
OURS, TORCH, DIFFUSERS = "vorta-trt", "torch cuDNN", "diffusers cuDNN"
EAGER, COMPILED, ENGINE = "eager", "compiled", "engine"
Run = Callable[..., Tensor]
"""Called with a timestep; gives the sample."""


class Variant(NamedTuple):
    """How our blocks are computed.

    Attributes:
        attention_precision: "same" or "fp8".
        block_ops: "native" or "plugin".
        linear_precision: "same" or "fp8".
    """

    attention_precision: str = SAME_PRECISION
    block_ops: str = NATIVE_OPS
    linear_precision: str = SAME_PRECISION

    @property
    def exact(self) -> bool:
        """Whether its results are the native ones, except for rounding to 16 bits."""
        return self.attention_precision == self.linear_precision == SAME_PRECISION

    def named(self, implementation: str) -> str:
        """The implementation's name, with what differs from the default variant."""
        parts = [implementation]
        parts += ["fp8"] * (self.attention_precision != SAME_PRECISION)
        parts += ["plugin"] * (self.block_ops != NATIVE_OPS)
        parts += ["fp8 linears"] * (self.linear_precision != SAME_PRECISION)
        first, rest = " ".join(parts[:2]), parts[2:]
        return ", ".join((first, *rest))


@dataclass
class Subject:
    """A case's models on a device.

    Attributes:
        case: The case that the models are of.
        routed: Our transformer.
        dense: diffusers' own transformer, with the same parameters.
        inputs: Inputs of our transformer, by name, batch 1.
        fp8: Linear layers with fp8 products beside the original ones, by name, once they have been asked for.
    """

    case: StepCase
    routed: RoutedTransformer
    dense: Any
    inputs: dict[str, Tensor]
    fp8: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def make(cls, case: StepCase, device: str, dtype: torch.dtype, seed: int = 0) -> Subject:
        """Makes the models, with a random router, and random weights that keep activations near 1."""
        kind = routed_class(case.family)
        model: Any = kind.empty_diffusers_model(case.config)
        generator = torch.Generator(device).manual_seed(seed)
        keep_float32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
        for name, parameter in list(model.named_parameters()):
            weight = random_weight(name, tuple(parameter.shape), generator)
            target = torch.float32 if keep_float32.intersection(name.split(".")) else dtype
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(weight.to(target), requires_grad=False))
        heads, head_dim = model.config["num_attention_heads"], model.config["attention_head_dim"]
        state = random_router_state(kind.facts().stacks(model.config), heads, heads * head_dim, seed=seed)
        routed = kind.from_model(model.eval(), state, case.geometry).to(device).eval()
        model.rope.to(device)
        return cls(case, routed, model, routed.inputs(seed=seed))

    def runs(self, implementation: str, routes: Tensor | None) -> Run:
        """A function that runs one pass by an implementation. Only ours uses `routes`, int32 [L, N]."""
        inputs = {name: value for name, value in self.inputs.items() if name != "timestep"}

        def ours(timestep: float) -> Tensor:
            given = {**inputs, "route_override": routes}
            sample: Tensor = self.routed(**given, timestep=self._timestep(timestep))[0]
            return sample

        def torch_dense(timestep: float) -> Tensor:
            self.routed.attention_mode = AttentionMode.FULL
            try:
                sample: Tensor = self.routed(**inputs, timestep=self._timestep(timestep))[0]
                return sample
            finally:
                self.routed.attention_mode = AttentionMode.ROUTED

        def diffusers_dense(timestep: float) -> Tensor:
            own = {name: value for name, value in inputs.items() if name not in ("tau", "route_override")}
            own["timestep"] = self._timestep_of_diffusers(timestep)
            if self.case.family == "hunyuan_video_15":  # as its pipeline of text to video calls it
                latents, width = own["hidden_states"], self.dense.config.image_embed_dim
                own["timestep"] = own["timestep"].to(latents.dtype)
                own["image_embeds"] = latents.new_zeros(1, IMAGE_ROWS, width)
            sample: Tensor = self.dense(**own, return_dict=False)[0]
            return sample

        chosen = {OURS: ours, TORCH: torch_dense, DIFFUSERS: diffusers_dense}[implementation]

        def run(timestep: float) -> Tensor:
            with torch.no_grad(), sdpa_kernel(BACKENDS, set_priority=True):  # Wan's cross-attention, too
                return chosen(timestep)

        return run

    @contextmanager
    def compiled(self, implementation: str) -> Iterator[None]:
        """Has torch.compile compile each block of the model at its first run, until the context ends."""
        blocks = self._dense_blocks() if implementation == DIFFUSERS else self.routed.routed_blocks()
        torch.compiler.reset()
        for block in blocks:
            block.compile(dynamic=False)
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None
            torch.compiler.reset()

    @contextmanager
    def computed_by(self, variant: Variant) -> Iterator[None]:
        """Computes our blocks as a variant says, until the context ends; fp8 layers make diffusers' model unusable."""
        routed = self.routed
        before = routed.attention_precision, routed.block_ops
        originals: dict[str, nn.Module] = {}
        try:
            routed.attention_precision, routed.block_ops = variant.attention_precision, variant.block_ops
            if variant.linear_precision != SAME_PRECISION:
                self.fp8 = self.fp8 or fp8_layers_of(routed)
                originals = replaced(routed, self.fp8)
            yield
        finally:
            routed.attention_precision, routed.block_ops = before
            replaced(routed, originals)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.routed.proj_out.weight.device  # type: ignore[no-any-return]

    def _dense_blocks(self) -> list[nn.Module]:
        stacks = self.routed.facts().stacks(self.routed.config)
        return [block for stack in stacks for block in getattr(self.dense, stack)]

    def _timestep(self, value: float) -> Tensor:
        """A timestep as the routed model takes it."""
        return torch.full_like(self.inputs["timestep"], value)  # [B] or [B, 2]

    def _timestep_of_diffusers(self, value: float) -> Tensor:
        """A timestep as diffusers' pipeline gives it: one for every token where the routed model takes two."""
        by_token = (self.case.geometry.video_tokens,) if self.inputs["timestep"].ndim > 1 else ()
        return torch.full((1, *by_token), value, device=self.device)  # [B] or [B, S]


def fp8_layers_of(routed: RoutedTransformer) -> dict[str, nn.Module]:
    """The linear layers that have fp8 products by default, quantised: by name, sharing their bias."""
    layers: dict[str, nn.Module] = {}
    for name in choose_linears(routed, routed.facts(), None).fp8:
        layer: Any = routed.get_submodule(name)
        weight, scale = quantize_rows(layer.weight.detach())  # [O, K], [O, 1]
        made = Fp8Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        made.weight, made.weight_scale = (
            nn.Parameter(tensor, requires_grad=False) for tensor in (weight, scale.flatten())
        )
        made.bias = layer.bias
        layers[name] = made
    return layers


def replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Puts layers into a model by name; returns those that were there."""
    before = {name: model.get_submodule(name) for name in layers}
    for name, layer in layers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
    return before
