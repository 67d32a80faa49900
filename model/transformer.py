# SPDX-License-Identifier: Apache-2.0
"""`RoutedTransformer`: a diffusers video transformer whose self-attention is routed.

It is built by composition: it holds the diffusers modules themselves, so it shares their parameters, names included,
and no class is patched. This file has what the families share: loading, and weights that stay on disk.

Weights that stay on disk. `from_pretrained(..., materialize=False)` makes parameters of the right shape and dtype that
take no memory (all elements share one), for torch.export of models larger than memory. The exporter reads the real ones
one at a time:

    model.materialized            False
    model.load_parameter(name)    the real tensor, in the parameter's dtype; works on materialized models too
    model.parameter_source(name)  the same, deferred: a callable without arguments

The timestep path and the routers are always real, so that `RouteTable` works on such a model.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.checkpoint import CheckpointError, CheckpointReader, RouterCheckpoint, check_router, load_router
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import SAME_PRECISION, check_attention_precision
from vorta_trt.model.router import BRANCHES, Router

logger = logging.getLogger(__name__)

DEFAULT_TAU = 0.3  # of the paper
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# First bit pattern of a placeholder's value; the n-th placeholder has the n-th number from there. All are normal
# numbers, and all differ, so that no exporter takes two parameters of one shape for the same constant.
_PLACEHOLDER_BITS = {
    torch.float32: (torch.int32, 0x3F000000),
    torch.float16: (torch.int16, 0x3800),
    torch.bfloat16: (torch.int16, 0x3F00),
}


class RoutedTransformer(nn.Module, abc.ABC):
    """Base of the routed families; use `from_pretrained` or `from_model`, which pick the family.

    Attributes:
        family: "wan". config: the diffusers config. geometry: None until known. tau: default routing threshold.
        attention_precision: "same" or "fp8", of every routed attention (see `routed_attention`); may be assigned.
        num_layers, num_heads, head_dim, dtype, checkpoint (its path, or None), has_router.
    """

    family: str

    def __init__(
        self,
        config: Mapping[str, Any],
        geometry: AttentionGeometry | None,
        tau: float,
        attention_precision: str = SAME_PRECISION,
    ) -> None:
        super().__init__()
        self.config = dict(config)
        self.geometry = geometry
        self.tau = float(tau)
        self.attention_precision = attention_precision  # checked, see below
        self.checkpoint: Path | None = None
        self.num_layers = int(self.config["num_layers"])
        self.num_heads = int(self.config["num_attention_heads"])
        self.head_dim = int(self.config["attention_head_dim"])
        self.has_router = False
        self._reader: CheckpointReader | None = None
        self._on_disk: frozenset[str] = frozenset()

    @property
    def attention_precision(self) -> str:
        """ "same" or "fp8": what every routed attention of this model may be multiplied in."""
        return self._attention_precision

    @attention_precision.setter
    def attention_precision(self, value: str) -> None:
        check_attention_precision(value)
        self._attention_precision = value

    # -- construction --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        router: str | Path | RouterCheckpoint | None = None,
        geometry: AttentionGeometry | None = None,
        tau: float = DEFAULT_TAU,
        dtype: torch.dtype = torch.float32,
        *,
        materialize: bool = True,
        attention_precision: str = SAME_PRECISION,
    ) -> RoutedTransformer:
        """Loads a diffusers checkpoint and, if given, a router.

        Args:
            checkpoint: a diffusers pipeline folder or its `transformer/` folder.
            router: a training folder, a router.pt, or a loaded one. Without it every head is full attention unless
                `route_override` says otherwise.
            geometry: wins over the router's config.json. Needed for a router.pt without a config.json; without any
                router it is derived from the latents at the first forward pass.
            tau: default routing threshold.
            dtype: of weights and activations. As in diffusers, the modules that it keeps in float32 stay float32.
            materialize: False leaves the weights on disk (see the module's text).
            attention_precision: "fp8" lets the GPU kernels multiply in 8 bits; torch on the CPU is exact either way.

        Raises:
            FileNotFoundError, CheckpointError: the folder, weights or router are not what they should be.
            ValueError: a model that is not routed yet (image-to-video), dtype, no geometry for a router, or an unknown
                attention_precision.
        """
        check_attention_precision(attention_precision)
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype}: must be one of {', '.join(map(str, DTYPES))}; use torch.bfloat16")
        with ExitStack() as until_loaded:
            reader = until_loaded.enter_context(CheckpointReader(checkpoint))
            family = _family(reader.family, f"checkpoint {reader.path}")
            family.check_config(reader.config, f"checkpoint {reader.folder}")
            model = family.empty_diffusers_model(reader.config)
            loaded = load_router(router) if isinstance(router, (str, Path)) else router
            if loaded is not None:
                family.check_router_state(model, loaded.state_dict, f"router {loaded.path}")
                geometry = geometry or loaded.geometry()
                if geometry is None:
                    raise ValueError(
                        f"router {loaded.path}: has no config.json beside it, so its geometry is unknown; pass "
                        f"geometry=, e.g. AttentionGeometry.for_video(77, 720, 1280, 'wan')"
                    )
            on_disk = _load(model, reader, dtype, None if materialize else family.always_loaded)
            state = loaded.state_dict if loaded else None
            routed = family.from_model(model, state, geometry, tau, attention_precision=attention_precision)
            routed.checkpoint = reader.path
            if on_disk:
                routed._reader, routed._on_disk = reader, on_disk
                until_loaded.pop_all()  # the reader stays open, with the model
            return routed.eval()

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        router_state: Mapping[str, Tensor] | None = None,
        geometry: AttentionGeometry | None = None,
        tau: float = DEFAULT_TAU,
        *,
        attention_precision: str = SAME_PRECISION,
    ) -> RoutedTransformer:
        """Routes a loaded diffusers transformer, which is left as it is; both share their parameters.

        Args:
            model: a diffusers WanTransformer3DModel.
            router_state: `blocks.{i}.router.linear.{weight,bias}` -> tensor, for every block; needs `geometry`.
        """
        from vorta_trt.model.checkpoint import TRANSFORMER_CLASSES

        name = type(model).__name__
        if name not in TRANSFORMER_CLASSES:
            raise TypeError(
                f"model of type {name}: must be a diffusers transformer, one of {', '.join(TRANSFORMER_CLASSES)}; "
                f"for a pipeline use pipeline.transformer"
            )
        family = _family(TRANSFORMER_CLASSES[name], f"model {name}")
        return family.from_model(model, router_state, geometry, tau, attention_precision=attention_precision)

    # -- what a family provides ----------------------------------------------------------------------------------------

    always_loaded: tuple[str, ...] = ()  # prefixes of parameters that are never left on disk

    @classmethod
    @abc.abstractmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None:
        """Raises ValueError if a diffusers config describes a model that is not routed."""

    @classmethod
    @abc.abstractmethod
    def empty_diffusers_model(cls, config: Mapping[str, Any]) -> nn.Module:
        """The diffusers model with parameters on the meta device and real buffers."""

    @classmethod
    def check_router_state(cls, model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
        """Raises CheckpointError unless `state` is a router of `model`."""
        config: Mapping[str, Any] = model.config  # type: ignore[assignment]
        heads = config["num_attention_heads"]
        check_router(
            state,
            family=cls.family,
            layers=config["num_layers"],
            heads=heads,
            embedding_dim=heads * config["attention_head_dim"],
            source=source,
        )

    @abc.abstractmethod
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        tau: Tensor | float | None = None,
        route_override: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One denoising step: the sample, and the routes taken, int32 [L, B, N]."""

    @abc.abstractmethod
    def inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Random example inputs, by the exported names and in their order."""

    @abc.abstractmethod
    def route_scores(self, timestep: Tensor) -> Tensor:
        """Router scores of timesteps [B], float32 [L, B, N, 3], from the timestep path alone."""

    # -- weights -------------------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the activations (some parameters stay float32)."""

    @property
    def materialized(self) -> bool:
        """False if parameters are placeholders whose values stay on disk."""
        return not self._on_disk

    def load_parameter(self, name: str) -> Tensor:
        """The real value of a parameter or buffer, in its dtype here."""
        held = dict(self.named_parameters()) | dict(self.named_buffers())
        if name not in held:
            raise KeyError(f"parameter {name!r}: not in this model; see model.named_parameters()")
        if name in self._on_disk and self._reader is not None:
            return self._reader.tensor(name).to(held[name].dtype)
        return held[name].detach()

    def parameter_source(self, name: str) -> Callable[[], Tensor]:
        """A callable that loads the parameter when called."""
        return lambda: self.load_parameter(name)

    def unmap_checkpoint(self) -> None:
        """Lets go of the checkpoint's files, whose pages count as this process's memory; a load maps them again."""
        if self._reader is not None:
            self._reader.close()

    # -- helpers of the families ---------------------------------------------------------------------------------------

    def _scores(self, block: Any, temb: Tensor) -> Tensor:
        """The block's router's scores of timestep embeddings [B, E]; certainly full if it has none. [B, N, 3]"""
        if block.router is not None:
            scores: Tensor = block.router(temb)
            return scores
        full = torch.tensor([1.0] + [0.0] * (BRANCHES - 1), device=temb.device)  # [3]
        return full.expand(temb.shape[0], self.num_heads, BRANCHES)

    def _make_routers(self, router_state: Mapping[str, Tensor] | None, blocks: str, dim: int) -> list[Router | None]:
        if router_state is None:
            return [None] * self.num_layers
        routers = []
        for layer in range(self.num_layers):
            router = Router(dim, self.num_heads)
            prefix = f"{blocks}.{layer}.router."
            router.load_state_dict({key: router_state[prefix + key] for key in ("linear.weight", "linear.bias")})
            routers.append(router)
        return [*routers]


def _family(name: str, source: str) -> type[RoutedTransformer]:
    if name == "wan":
        from vorta_trt.model.wan import RoutedWanTransformer

        return RoutedWanTransformer
    raise CheckpointError(f"{source}: family {name!r} is not routed yet; use a Wan 2.1 text-to-video checkpoint")


def _load(
    model: nn.Module, reader: CheckpointReader, dtype: torch.dtype, always_loaded: tuple[str, ...] | None
) -> frozenset[str]:
    """Gives `model` (on meta) its parameters; those not under `always_loaded` (None: all) become placeholders.

    Returns the names of the placeholders.
    """
    keep_float32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    parameters = dict(model.named_parameters())
    missing = [name for name in parameters if name not in reader]
    if missing:
        raise CheckpointError(
            f"checkpoint {reader.folder}: lacks {len(missing)} of {len(parameters)} tensors, first {missing[0]!r}; its "
            f"config.json and weights must belong together; download it again"
        )
    unexpected = [
        name for name in reader.names() if name not in parameters and not any(part in name for part in ignored)
    ]
    if unexpected:
        raise CheckpointError(
            f"checkpoint {reader.folder}: has {len(unexpected)} tensors that its config.json does not describe, first "
            f"{unexpected[0]!r}; its config.json and weights must belong together"
        )
    on_disk = []
    for index, (name, parameter) in enumerate(parameters.items()):
        if reader.shape(name) != tuple(parameter.shape):
            raise CheckpointError(
                f"checkpoint {reader.folder}: {name} has shape {reader.shape(name)}, its config.json asks for "
                f"{tuple(parameter.shape)}; its config.json and weights must belong together"
            )
        # diffusers' rule: a module it names keeps its parameters in float32 whatever dtype was asked for.
        target = torch.float32 if keep_float32.intersection(name.split(".")) else dtype
        if always_loaded is None or name.startswith(always_loaded):
            value = nn.Parameter(reader.tensor(name).to(target))
        else:
            value = nn.Parameter(_placeholder(tuple(parameter.shape), target, index), requires_grad=False)
            on_disk.append(name)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, value)
    return frozenset(on_disk)


def _placeholder(shape: tuple[int, ...], dtype: torch.dtype, index: int) -> Tensor:
    bits, first = _PLACEHOLDER_BITS[dtype]
    return torch.tensor(first + index, dtype=bits).view(dtype).expand(shape)
