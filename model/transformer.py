# SPDX-License-Identifier: Apache-2.0
"""`RoutedTransformer`: a diffusers video transformer whose self-attention is routed.

It is built by composition: it holds the diffusers modules themselves, so it shares their parameters, names included,
and no class is patched. This file has what the families share: construction, geometry, routers, and weights that stay
on disk.

Weights that stay on disk. `from_pretrained(..., materialize=False)` makes parameters of the right shape and dtype that
take no memory (all elements share one), for torch.export of models larger than memory. The exporter reads the real ones
one at a time:

    model.materialized            False
    model.load_parameter(name)    the real tensor, in the parameter's dtype; works on materialized models too
    model.parameter_source(name)  a callable without arguments that loads this tensor

The timestep path and the routers are always real, so that `RouteTable` works on such a model.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from vorta_trt.model.boxes import Shape
from vorta_trt.model.branch_attention import full_attention, mixed_attention
from vorta_trt.model.checkpoint import CheckpointReader
from vorta_trt.model.checkpoint_place import checkpoint_name
from vorta_trt.model.constants import DEFAULT_TAU, ROUTER_DECIDES, TRANSFORMER
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import ModelFamily, ModelInput, families, family_of_class, get_family
from vorta_trt.model.fp8_linear import take_fp8
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.inputs import check_route_override, token_grid
from vorta_trt.model.linear_choice import LinearChoice, check_linear_precision, choose_linears
from vorta_trt.model.lora.report import LoraReport
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.operator import Attention, check_attention_precision, routed_attention
from vorta_trt.model.parallel.exchange_choice import AUTO
from vorta_trt.model.parallel.group_communicator import TIMEOUT
from vorta_trt.model.parallel.groups import EVERYONE
from vorta_trt.model.parallel.placement import BranchCosts
from vorta_trt.model.parallel.rank_input import RankInput
from vorta_trt.model.parallel.ranks import Ranks
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.model.precision import PRECISIONS, precision_name
from vorta_trt.model.quantised_reader import QuantisedReader
from vorta_trt.model.router import BRANCHES, Router, check_tau, hard_routes
from vorta_trt.model.router_checkpoint import RouterCheckpoint, check_router, load_router
from vorta_trt.model.weights import load_weights
from vorta_trt.plugins.operator_schema import SAME_PRECISION, BlockOps, LinearPrecision

logger = logging.getLogger(__name__)

NATIVE_OPS: BlockOps = "native"
PLUGIN_OPS: BlockOps = "plugin"


class AttentionMode(Enum):
    """The attention that the heads of a routed transformer compute.

    Attributes:
        ROUTED: The branch that the router chose, or the override.
        MIXED: The sum of all branches, weighted with the router's scores.
        FULL: Full attention through torch, what a MIXED pass is trained to reproduce.
    """

    ROUTED = "routed"
    MIXED = "mixed"
    FULL = "full"


class RoutedTransformer(nn.Module, abc.ABC):
    """Base of the routed families; use `from_pretrained` or `from_model`, which pick the family.

    Attributes:
        family: Name of the model family.
        config: The diffusers config.
        geometry: Geometry of the attention; None until it is known.
        tau: Default routing threshold.
        patch_size: Latent voxels per token.
        num_layers: L, over all stacks of blocks.
        num_heads: N.
        head_dim: D.
        checkpoint: Path of the checkpoint, or None.
        lora: Reports of the LoRA files that were fused into the checkpoint's weights.
        float8_weights: How many of the checkpoint's tensors are stored in float8.
        linears: Which linear layers have fp8 products, and which not; None where none has.
        input_scales: Static scales of the inputs of linear layers, by layer: the checkpoint's, or a calibration's.
        component: "transformer", or "transformer_2" for the second of two experts.
        boundary_ratio: Where the second of two experts takes over, see `model/experts.py`; None for a model alone.
        has_router: Whether routers decide; without one every head is full.
        attention_mode: ROUTED, or one of the two modes of router training, MIXED and FULL, in which `forward` gives the
            routers' scores [L, B, N, 3] in place of routes.
        gradient_checkpointing: Whether backward passes recompute blocks.
        parallel: The processes that share the work, see `parallelize`; a `RankInput` while a model is exported for
            several GPUs; None where this process does it all.
    """

    family: str
    attention_mode: AttentionMode = AttentionMode.ROUTED
    gradient_checkpointing: bool = False
    parallel: Ranks | RankInput | None = None
    patch_size: Shape
    proj_out: Any
    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self,
        model: Any,
        router_state: Mapping[str, Tensor] | None = None,
        geometry: AttentionGeometry | None = None,
        tau: float = DEFAULT_TAU,
        *,
        attention_precision: str = SAME_PRECISION,
        block_ops: str = NATIVE_OPS,
    ) -> None:
        super().__init__()
        self.config = dict(model.config)
        self.patch_size = self.facts().patch_of(self.config)
        self.geometry = geometry
        self.tau = check_tau(tau)
        self.attention_precision = attention_precision  # checked, see below
        self.block_ops = block_ops  # checked, see below
        self.checkpoint: Path | None = None
        self.lora: tuple[LoraReport, ...] = ()
        self.float8_weights = 0
        self.linears: LinearChoice | None = None
        self.input_scales: dict[str, float] = {}
        self.component = TRANSFORMER
        self.boundary_ratio: float | None = None
        stacks = self.facts().stacks(self.config)
        self.num_layers = sum(stacks.values())
        self.num_heads = int(self.config["num_attention_heads"])
        self.head_dim = int(self.config["attention_head_dim"])
        self.has_router = router_state is not None
        self.proj_out = model.proj_out
        self._geometry_is_given = geometry is not None
        self._reader: CheckpointReader | None = None
        self._on_disk: frozenset[str] = frozenset()
        if geometry is not None:
            self.check_geometry(geometry)
        self._take_modules(model, {stack: self._make_routers(router_state, stack) for stack in stacks})
        if geometry is not None:
            self._prepare_rope(geometry)

    @property
    def attention_precision(self) -> str:
        """The precision of routed attention's products, "same" or "fp8" (see `routed_attention`); may be assigned."""
        return self._attention_precision

    @attention_precision.setter
    def attention_precision(self, value: str) -> None:
        check_attention_precision(value)
        self._attention_precision = value

    @property
    def block_ops(self) -> str:
        """How blocks are computed; may be assigned.

        "native": torch's own operators, as diffusers does, bit for bit. "plugin": the fused operators of
        `model/block_operators`, on CUDA the kernels of libvorta_trt in float16 and bfloat16: float32 inside each and
        rounded once at its outputs, so less is rounded than natively. They have no gradient.
        """
        return self._block_ops

    @block_ops.setter
    def block_ops(self, value: str) -> None:
        check_block_ops(value)
        self._block_ops = value

    @property
    def linear_precision(self) -> LinearPrecision:
        """Is "fp8" if some linear layers have fp8 products."""
        return "same" if self.linears is None else "fp8"

    def static_input_scales(self) -> dict[str, float]:
        """The `input_scales` of the layers with fp8 products."""
        layers = () if self.linears is None else self.linears.fp8
        return {layer: self.input_scales[layer] for layer in layers if layer in self.input_scales}

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
        lora: Sequence[LoraSpec] = (),
        component: str = TRANSFORMER,
        materialize: bool = True,
        attention_precision: str = SAME_PRECISION,
        block_ops: str = NATIVE_OPS,
        linear_precision: str = SAME_PRECISION,
        linear_keep: Sequence[str] | None = None,
        variant: str | None = None,
    ) -> RoutedTransformer:
        """Loads a checkpoint and, if given, a router.

        Args:
            checkpoint: A diffusers pipeline folder, its `transformer/` folder, or weights in another layout; see
                `checkpoint_place`.
            router: A training folder, a router.pt, or a loaded one. Without it every head is full attention unless
                `route_override` says otherwise.
            geometry: Wins over the router's config.json. Needed for a router.pt without a config.json; without any
                router it is derived from the latents at the first forward pass.
            tau: Default routing threshold. The default is that of the authors' inference script.
            dtype: Type of weights and activations. As in diffusers, the modules that it keeps in float32 stay float32.
            lora: LoRA files to fuse into the weights, in the order in which they are added.
            component: "transformer", or "transformer_2" for the second of two experts.
            materialize: False leaves the weights on disk (see the module's text).
            attention_precision: "fp8" lets the GPU kernels multiply in 8 bits; torch on the CPU is exact either way.
            block_ops: "plugin" computes blocks by fused operators, see the attribute; "native" as diffusers does.
            linear_precision: "fp8" rounds the weights of linear layers to e4m3, a scale for each output feature, and
                the layers' inputs on the fly, a scale for each token. Weights are rounded one at a time.
            linear_keep: Patterns of the layers that stay as they are; None is the family's list, see `linear_choice`.
            variant: Variant in the names of the weight files, as in diffusers, e.g. "fp16".

        Raises:
            FileNotFoundError: There is no such folder or file.
            CheckpointError: Folder, weights, router or LoRA files are not what they should be.
            ValueError: A model that is not routed yet, a dtype, no geometry for a router, a tau that is not finite, or
                an unknown attention_precision or block_ops.
        """
        check_attention_precision(attention_precision)
        check_block_ops(block_ops)
        check_linear_precision(linear_precision, linear_keep)
        check_tau(tau)  # before the weights are loaded
        if precision_name(dtype) is None:
            known = ", ".join(f"torch.{name}" for name in PRECISIONS.values())
            raise ValueError(f"dtype {dtype}: must be one of {known}; use torch.bfloat16")
        with ExitStack() as until_loaded:
            reader = QuantisedReader(checkpoint, lora, component=component, variant=variant)
            until_loaded.callback(reader.close)
            family = routed_class(reader.family)
            model = family.from_config(reader.config, reader)
            loaded = load_router(router) if isinstance(router, (str, Path)) else router
            if loaded is not None:
                loaded.check_component(component, reader.experts)
                family.check_router_state(model, loaded.state_dict, f"router {loaded.path}")
                geometry = geometry or loaded.geometry(reader.config)
                if geometry is None:
                    raise ValueError(
                        f"router {loaded.path}: has no config.json beside it, so its geometry is unknown; pass "
                        f"geometry=, e.g. AttentionGeometry.for_video(77, 720, 1280, {family.family!r})"
                    )
            linears = None
            if linear_precision == "fp8":
                linears = choose_linears(model, family.facts(), linear_keep, reader.unquantised)
                take_fp8(model, linears.fp8)
                reader.quantise(linears.fp8)
            on_disk = load_weights(model, reader, dtype, None if materialize else family.facts().always_loaded)
            state = loaded.state_dict if loaded else None
            options = {"attention_precision": attention_precision, "block_ops": block_ops}
            routed = family.from_model(model, state, geometry, tau, **options)
            routed.checkpoint, routed.lora = reader.path, reader.reports
            routed.float8_weights, routed.linears = reader.float8_count, linears
            routed.input_scales = reader.input_scales
            routed.component, routed.boundary_ratio = component, reader.boundary_ratio
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
        block_ops: str = NATIVE_OPS,
    ) -> RoutedTransformer:
        """Routes a loaded diffusers transformer, which is left as it is; both share their parameters.

        Args:
            model: A diffusers transformer of a family in `model.families`.
            router_state: `<stack>.{i}.router.linear.{weight,bias}` -> tensor, for every block; needs `geometry`.
            geometry: Geometry of the attention; see `from_pretrained`.
            tau: Default routing threshold.
            attention_precision: "same" or "fp8"; see `from_pretrained`.
            block_ops: "native" or "plugin"; see `from_pretrained`.

        Raises:
            TypeError: The model is of no family.
            ValueError: It is not routed yet, or a router comes without geometry.
        """
        options = {"attention_precision": attention_precision, "block_ops": block_ops}
        name = type(model).__name__
        if cls is RoutedTransformer:
            family = family_of_class(name)
            if family is None:
                known = ", ".join(known.transformer_class for known in families())
                raise TypeError(
                    f"model of type {name}: must be a diffusers transformer, one of {known}; for a pipeline use "
                    f"pipeline.transformer"
                )
            kind = routed_class(family.name)
            return kind.from_model(model, router_state, geometry, tau, **options)
        if name != cls.facts().transformer_class:
            raise TypeError(
                f"model {name}: must be a {cls.facts().transformer_class}; for a pipeline use pipeline.transformer"
            )
        source = f"model {name}"
        cls.facts().check_config(model.config, source)  # type: ignore[arg-type]
        if any(getattr(module, "fused_projections", False) for module in model.modules()):
            raise ValueError(f"{source}: fused projections are not routed; call model.unfuse_qkv_projections() first")
        if router_state is not None:
            cls.check_router_state(model, router_state, "router_state")
            if geometry is None:
                raise ValueError("geometry None: required with a router; pass AttentionGeometry.for_video(...)")
        routed = cls(model, router_state, geometry, tau, **options)
        return routed.train(model.training)

    # -- what a family provides ----------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any], reader: CheckpointReader) -> nn.Module:
        """`empty_diffusers_model` of a checkpoint, or a CheckpointError that says why diffusers cannot make it."""
        file, tensors = reader.config_source, len(reader.names())
        for stack, length in cls.facts().stacks(config).items():
            if length > tensors:
                raise CheckpointError(
                    f"{file}: {length} blocks in {stack}, but the weights are {tensors} tensors in all; config.json "
                    f"and weights must belong together; download the checkpoint again"
                )
        try:
            return cls.empty_diffusers_model(config)
        except Exception as error:  # of diffusers' code, on numbers that are not ours
            raise CheckpointError(
                f"{file}: diffusers makes no {cls.facts().transformer_class} of it ({type(error).__name__}: {error}); "
                f"restore the original file of the checkpoint"
            ) from error

    @classmethod
    def facts(cls) -> ModelFamily:
        """The facts of the family, which do not depend on the checkpoint."""
        return get_family(cls.family)

    @classmethod
    def empty_diffusers_model(cls, config: Mapping[str, Any]) -> nn.Module:
        """The diffusers model with parameters on the meta device, and real buffers, made by families that have some."""
        with torch.device("meta"):
            model: nn.Module = cls.facts().diffusers_transformer().from_config(dict(config))
        return model

    @abc.abstractmethod
    def _take_modules(self, model: Any, routers: Mapping[str, list[Router | None]]) -> None:
        """Takes over the modules of the diffusers model, and gives each block its router."""

    @classmethod
    def check_geometry(cls, geometry: AttentionGeometry) -> None:
        """Raises ValueError if a geometry does not suit the family."""
        family = cls.facts()
        if bool(geometry.text_tokens) != family.joint_attention:
            rule = "some, its self-attention is over video and text" if family.joint_attention else "none"
            raise ValueError(
                f"geometry with {geometry.text_tokens} text tokens: must have {rule}; make it for family "
                f"{family.name!r}"
            )

    @classmethod
    def check_router_state(cls, model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
        """Raises CheckpointError unless `state` is a router of `model`."""
        config: Mapping[str, Any] = model.config  # type: ignore[assignment]
        heads = config["num_attention_heads"]
        check_router(
            state,
            family=cls.family,
            stacks=cls.facts().stacks(config),
            heads=heads,
            embedding_dim=heads * config["attention_head_dim"],
            source=source,
        )

    @abc.abstractmethod
    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """One denoising step: the sample, and the routes taken, int32 [L, B, N]. The inputs are the family's own."""

    @abc.abstractmethod
    def timestep_embedding(self, timestep: Tensor) -> Tensor:
        """The timestep embedding that the routers see: timesteps [B] -> [B, E]."""

    def unrounded_timestep_embedding(self, timestep: Tensor) -> Tensor:
        """The embedding of `timestep_embedding` before it is rounded to the model's dtype."""
        return self.timestep_embedding(timestep)

    @abc.abstractmethod
    def routed_blocks(self) -> list[Any]:
        """The blocks in the order that they run in, L of them.

        Each has a `router` and an `observer`, which may be None, and `output_weights()`.
        """

    @abc.abstractmethod
    def _rope_tables(self, geometry: AttentionGeometry) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a geometry's tokens, float32 [1, S (+ T), 1, D/2], on the CPU."""

    # -- several GPUs --------------------------------------------------------------------------------------------------

    def parallelize(
        self,
        group: dist.ProcessGroup | None = None,
        placement: str = "balanced",
        costs: BranchCosts | None = None,
        *,
        exchange: str = AUTO,
        overlap: bool | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Shares the work of `forward` with the other processes of a group, one GPU each (Ulysses).

        Every process has the whole model, with the same weights, and calls `forward` with the same whole inputs, under
        `torch.no_grad()`; each gets the whole sample and all routes. Video tokens are sharded from the patch embedding
        to the projection after the blocks; around every self-attention each rank has all tokens of N / P heads. Text
        and timestep are computed by every rank. Routes may change from step to step, and the ranks' heads with them.

        Args:
            group: Process group of torch.distributed that this process is in; None is the default group of all
                processes. A process that is not in a new group must not call this with what `new_group` gave it, which
                may be None, too.
            placement: "balanced" gives every rank about the same work, by the routes of each layer; "in_order" gives
                rank p the heads from p * N / P on.
            costs: Measured times of a head in each branch, the same on every rank; None takes relative work from the
                geometry.
            exchange: Code that exchanges queries, keys, values and outputs: "library", kernels of libvorta_trt and a
                communicator of its own over NCCL; "torch", torch.distributed; or "auto", the library where every rank
                computes on a GPU in a group of NCCL. `parallel.exchange` then says which it is, and
                `parallel.choice.reason` why. All ranks give the same.
            overlap: Whether the exchanges of one half of a rank's heads run beside the attention of the other; None:
                where the library exchanges. The sample is the same, bit for bit.
            timeout: Seconds that an exchange of the library may take, after which the process ends; with "torch" it is
                the group's own.

        Raises:
            RuntimeError: There is no default group.
            TypeError: `group` is no process group.
            ValueError: The process is not in the group, its size does not divide N, the placement is unknown, the costs
                are not valid, or the exchange is unknown or a rank cannot use it.
            VortaError: The library's communicator cannot be made.
        """
        self.parallel = Ranks.of(
            EVERYONE if group is None else group,
            placement,
            self.num_heads,
            costs,
            device=self.proj_out.weight.device,
            exchange=exchange,
            overlap=overlap,
            timeout=timeout,
        )

    # -- routes and example inputs -------------------------------------------------------------------------------------

    def route_scores(self, timestep: Tensor) -> Tensor:
        """Router scores of timesteps [B], float32 [L, B, N, 3], from the timestep path alone."""
        temb = self.timestep_embedding(timestep)  # [B, E]
        return torch.stack([self._scores(block, temb) for block in self.routed_blocks()])  # [L, B, N, 3]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[channels, frames, height, width] of `hidden_states` in the model's geometry."""
        if self.geometry is None:
            raise ValueError("geometry None: latents have its size; pass geometry= when building the model")
        return self.facts().latent_shape(self.config, self.geometry.grid)

    @property
    def timestep_device(self) -> torch.device:
        """Where the timestep path is computed."""
        return next(
            value for name, value in self.named_parameters() if name.startswith(self.facts().always_loaded)
        ).device

    def inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Random example inputs of the model's geometry and dtype, by the exported names and in their order."""
        if self.geometry is None:
            raise ValueError("geometry None: example inputs need it; pass geometry= when building the model")
        generator = torch.Generator().manual_seed(seed)
        device = self.proj_out.weight.device
        inputs = {spec.name: self._example(spec, batch, generator) for spec in self.facts().inputs(self.config)}
        inputs["tau"] = torch.tensor([self.tau])  # [1]
        inputs["route_override"] = torch.full((self.num_layers, self.num_heads), ROUTER_DECIDES, dtype=torch.int32)
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def _example(self, spec: ModelInput, batch: int, generator: torch.Generator) -> Tensor:
        """Random values of an input, the same ones for every dtype of the model but for rounding."""
        assert self.geometry is not None
        shape: tuple[int, ...]
        if spec.kind == "uniform":
            shape = (batch, *spec.shape(0))
            return spec.low + torch.rand(shape, generator=generator) * (spec.high - spec.low)  # [B, ...]
        if spec.kind == "latents":
            shape = self.latent_shape
        else:
            shape = spec.shape(self.facts().text_rows(self.geometry.text_tokens))
        if spec.kind == "mask":
            lengths = torch.randint(1, shape[0] + 1, (batch, 1), generator=generator)  # [B, 1]
            return (torch.arange(shape[0]) < lengths).to(torch.int32)  # [B, T]
        return torch.randn((batch, *shape), generator=generator).to(self.dtype)  # [B, ...]

    # -- weights -------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The type of the activations (some parameters stay float32)."""
        return self.proj_out.weight.dtype  # type: ignore[no-any-return]

    @property
    def checkpoint_name(self) -> str | None:
        """Name of the folder or file that the weights come from; of a Hugging Face cache, the repository's."""
        return None if self.checkpoint is None else checkpoint_name(self.checkpoint)

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

    def _geometry_for(self, hidden_states: Tensor, text_tokens: int = 0) -> AttentionGeometry:
        """The geometry of latents [B, C, F, H, W] and T text tokens; derived from them if the model was given none."""
        grid = token_grid(hidden_states, self.patch_size)
        geometry = self.geometry
        if geometry is not None and (geometry.grid, geometry.text_tokens) == (grid, text_tokens):
            return geometry
        if geometry is not None and self._geometry_is_given:
            raise ValueError(self._misfit(geometry, grid, text_tokens))
        if torch.compiler.is_exporting():
            raise ValueError("geometry None: must be known before export; pass geometry= when building the model")
        self.geometry = AttentionGeometry.for_grid(grid, self.family, text_tokens=text_tokens)
        self._prepare_rope(self.geometry)
        return self.geometry

    def _misfit(self, geometry: AttentionGeometry, grid: Shape, text_tokens: int) -> str:
        if geometry.grid != grid:
            fitting = tuple(axis * patch for axis, patch in zip(geometry.grid, self.patch_size, strict=True))
            return (
                f"hidden_states with token grid {grid}: must match the model's geometry, grid {geometry.grid}; "
                f"pass latents of frames, height, width {fitting}, or build the model with "
                f"geometry=AttentionGeometry.for_grid({grid}, {self.family!r})"
            )
        return (
            f"encoder_hidden_states with {text_tokens} tokens: must be at most the geometry's {geometry.text_tokens}; "
            f"shorten it, or build the model with a geometry of text_tokens={text_tokens}"
        )

    def _prepare_rope(self, geometry: AttentionGeometry) -> None:
        device = self.proj_out.weight.device
        for name, table in zip(("rope_cos", "rope_sin"), self._rope_tables(geometry), strict=True):
            self.register_buffer(name, table.to(device), persistent=False)

    def _check_call(self, route_override: Tensor | None) -> None:
        """The checks that every family makes first in a call."""
        if not self.materialized and not torch.compiler.is_exporting():
            raise RuntimeError("model with materialize=False: its weights are on disk, for export; load it with True")
        check_route_override(route_override, self.num_layers, self.num_heads)
        if self.parallel is not None:
            self._check_parallel()

    def _check_parallel(self) -> None:
        """Raises RuntimeError for what a parallelized model does not support."""
        if torch.compiler.is_exporting() and isinstance(self.parallel, Ranks):
            raise RuntimeError(
                "parallelize was called on this model, and an export is made of a whole one, for several GPUs with "
                "ulysses=P; export it before, or load it again"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "grad mode is on: a parallelized model has no gradients; call it under torch.no_grad(), or train with "
                "one whole model on each GPU"
            )
        if self.attention_mode is not AttentionMode.ROUTED:
            raise RuntimeError(
                f"attention_mode {self.attention_mode}: a parallelized model is ROUTED; for full attention use tau=2"
            )
        if any(block.observer is not None for block in self.routed_blocks()):
            raise RuntimeError(
                "observer: a block of a parallelized model has but a shard of the tokens to show; calibrate with one "
                "whole model on each GPU"
            )

    def _shards(self, geometry: AttentionGeometry) -> TokenShards:
        """Which video tokens are computed here: all of them, or this rank's."""
        return TokenShards(geometry.video_tokens) if self.parallel is None else self.parallel.shards(geometry)

    def _rope(self, shards: TokenShards) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens that are computed here, and of the text: [1, R (+ T), 1, D/2]."""
        return shards.own(self.rope_cos), shards.own(self.rope_sin)

    def _whole(self, rows: Tensor, geometry: AttentionGeometry) -> Tensor:
        """Gathers all video tokens [B, S, C] from those that are computed here, [B, R, C]."""
        return rows if self.parallel is None else self.parallel.whole(rows, geometry)

    def _scores(self, block: Any, temb: Tensor) -> Tensor:
        """The scores [B, N, 3] of timestep embeddings [B, E] by the block's router; full has score 1 without one."""
        if block.router is not None:
            scores: Tensor = block.router(temb)
            return scores
        full = torch.tensor([1.0] + [0.0] * (BRANCHES - 1), device=temb.device)  # [3]
        return full.expand(temb.shape[0], self.num_heads, BRANCHES)

    def _attentions(
        self, temb: Tensor, tau: Tensor | float, route_override: Tensor | None, **tokens: Any
    ) -> tuple[list[Attention], Tensor]:
        """The attention function that each block calls, and the routes or scores that `forward` returns.

        Args:
            temb: [B, E], the timestep embedding that routers see.
            tau: Routing threshold.
            route_override: Int32 [L, N], or None.
            tokens: `geometry` of the tokens, and `text_length` if there is text among them.

        Returns:
            The attentions, L; and the routes int32 [L, B, N] or, unless heads are routed, the scores [L, B, N, 3].
        """
        attentions, told = [], []
        for layer, block in enumerate(self.routed_blocks()):
            override = None if route_override is None else route_override[layer]  # [N]
            attention, of_block = self._attention(self._scores(block, temb), tau, override, **tokens)
            attentions.append(attention)
            told.append(of_block)
        taken = torch.stack(told)
        if self.parallel is not None:
            attentions = self.parallel.attentions(taken, attention_precision=self.attention_precision, **tokens)
        return attentions, taken

    def _attention(
        self, scores: Tensor, tau: Tensor | float, override: Tensor | None, **tokens: Any
    ) -> tuple[Attention, Tensor]:
        """The attention function of one block with scores [B, N, 3], and its routes or scores; see `_attentions`."""
        if self.attention_mode is AttentionMode.MIXED:
            return partial(mixed_attention, scores=scores, **tokens), scores
        if self.attention_mode is AttentionMode.FULL:
            return partial(full_attention, **tokens), scores
        routes = hard_routes(scores, tau, override)  # [B, N]
        return partial(routed_attention, routes=routes, attention_precision=self.attention_precision, **tokens), routes

    def _run_block(self, block: nn.Module, *arguments: Any) -> Any:
        """The block's output; with `gradient_checkpointing`, what is inside is computed again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return recomputed(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)

    def _make_routers(self, router_state: Mapping[str, Tensor] | None, stack: str) -> list[Router | None]:
        """The routers of one stack of blocks."""
        blocks = self.facts().stacks(self.config)[stack]
        if router_state is None:
            return [None] * blocks
        routers = []
        for block in range(blocks):
            router = Router(self.num_heads * self.head_dim, self.num_heads)
            prefix = f"{stack}.{block}.router."
            router.load_state_dict({key: router_state[prefix + key] for key in ("linear.weight", "linear.bias")})
            routers.append(router)
        return [*routers]


def check_block_ops(value: str) -> None:
    """Raises ValueError unless `value` is a way to compute blocks."""
    if value not in get_args(BlockOps):
        known = " or ".join(map(repr, get_args(BlockOps)))
        raise ValueError(f"block_ops {value!r}: must be {known}; use {NATIVE_OPS!r} for torch's own operators")


def routed_class(family: str) -> type[RoutedTransformer]:
    """The routed transformer of a family."""
    facts = get_family(family)
    kind: type[RoutedTransformer] = getattr(facts.load("transformer"), facts.routed_class)
    return kind
