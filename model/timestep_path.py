# SPDX-License-Identifier: Apache-2.0
"""`TimestepPath`: the timestep embedder and the routers of a model, without its transformer.

Everything that is known of a schedule before sampling comes from here: the routes (the router sees the timestep alone),
and the embeddings whose distances tell TeaCache which steps change little.

It is a `RoutedTransformer` of which only these weights are real, so its routes are those of the model: same code, same
weights, same rounding. A runtime that adds up in another order can take another branch where two scores are equal but
for rounding.

Letters: P denoising steps, L layers, N heads, E inner dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.configs import typed_config
from vorta_trt.model.constants import DEFAULT_TAU
from vorta_trt.model.families import get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.route_table import RouteTable
from vorta_trt.model.router import hard_routes
from vorta_trt.model.transformer import RoutedTransformer, routed_class
from vorta_trt.model.transformer_flops import other_flops
from vorta_trt.plugins.host_memory import mapping

if TYPE_CHECKING:
    from typing import TypeAlias

Signal: TypeAlias = Literal["embedding", "modulation"]
SIGNALS: tuple[str, ...] = get_args(Signal)
ROUTER = ".router.linear."


class TimestepPath:
    """The timestep path of one model; see `from_model` and `load`.

    Attributes:
        checkpoint: Name of the folder of the checkpoint whose weights these are, None if it is not known, or if a LoRA
            was fused into them.
        signals: Names of the signals that `embedding` can give: "embedding", and "modulation" where that depends on the
            timestep alone.
        family: Name of the model family; config, geometry, tau, num_layers, num_heads, head_dim and has_router are
            those of the model, too.
    """

    def __init__(self, model: RoutedTransformer, load: Callable[[str], Tensor], checkpoint: str | None = None) -> None:
        self._model = model
        self._load = load
        self.family = model.family
        self.config = model.config
        self.geometry = model.geometry
        self.tau = model.tau
        self.num_layers, self.num_heads, self.head_dim = model.num_layers, model.num_heads, model.head_dim
        self.has_router = model.has_router
        self.checkpoint = checkpoint
        self.signals = SIGNALS if model.facts().modulation_projection else SIGNALS[:1]

    @classmethod
    def from_model(cls, model: RoutedTransformer) -> TimestepPath:
        """The path of a model at hand, whose weights may lie on disk; they are shared, not copied."""
        return cls(model, model.load_parameter, None if model.lora else model.checkpoint_name)

    @classmethod
    def load(cls, path: str | Path, **model: Any) -> TimestepPath:
        """Loads the path from a file of `save_timestep_path`, e.g. of a bundle; `model`: see `from_weights`."""
        from safetensors import SafetensorError, safe_open

        def read(name: str) -> Tensor:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor

        try:
            with mapping(Path(path)), safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not readable as safetensors ({error}); build the bundle again") from error
        return cls.from_weights(names, read, source=str(path), **model)

    @classmethod
    def from_weights(
        cls,
        names: Iterable[str],
        load: Callable[[str], Tensor],
        *,
        family: str,
        config: Mapping[str, Any],
        geometry: AttentionGeometry,
        dtype: torch.dtype,
        tau: float = DEFAULT_TAU,
        checkpoint: str | None = None,
        source: str = "weights",
    ) -> TimestepPath:
        """The path made of weights by the names of `timestep_parameters`.

        Args:
            names: Names of the weights.
            load: Loads the weight of a name; that of the modulation is loaded when it is needed.
            family: Family of the model, as its metadata has it.
            config: Config of the model, as its metadata has it.
            geometry: Geometry of the model, as its metadata has it.
            tau: Default threshold of the model, as its metadata has it.
            dtype: Type of the model's activations, to which the timestep embedding may be rounded.
            checkpoint: Name of the checkpoint, as the metadata has it.
            source: Where the weights are from, for errors.

        Raises:
            ValueError: The weights are not the timestep path of such a model.
        """
        kind = routed_class(family)
        names = set(names)
        typed_config(get_family(family).diffusers_transformer(), config, Path(source))
        diffusers_model: Any = kind.empty_diffusers_model(config)
        diffusers_model.proj_out.to(dtype)  # where a routed model reads its dtype; the weights below keep their own
        for name, parameter in list(diffusers_model.named_parameters()):
            if not name.startswith(kind.facts().always_loaded):
                continue
            if name not in names or (weight := load(name)).shape != parameter.shape:
                raise ValueError(
                    f"{source}: lacks {name} of shape {tuple(parameter.shape)}, so it is not the timestep path of this "
                    f"{family} model; export or build it again"
                )
            owner, _, leaf = name.rpartition(".")
            setattr(diffusers_model.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
        routers = {name: load(name) for name in sorted(names) if ROUTER in name}
        if routers:
            kind.check_router_state(diffusers_model, routers, source)
        shell = kind(diffusers_model, routers or None, tau=tau)  # the geometry is set below: no rotary tables are made
        shell.geometry = geometry
        return cls(shell.eval(), load, checkpoint)

    def embedding(self, timesteps: Iterable[float], signal: Signal = "embedding") -> Tensor:
        """The embedding of each timestep: float32 [P, E], or [P, 6 E] for "modulation", on the CPU.

        "embedding" is what the routers see, unrounded. "modulation" is its projection to the shifts, scales and gates
        of the blocks; there is none where those depend on the prompt as well.
        """
        if signal not in self.signals:
            raise ValueError(
                f"signal {signal!r}: must be {' or '.join(map(repr, self.signals))} for a {self.family} model"
            )
        with torch.no_grad():
            embedding = self._model.unrounded_timestep_embedding(self._tensor(timesteps)).float()  # [P, E]
            if signal == "modulation":
                projection = (f"{self._model.facts().modulation_projection}.{leaf}" for leaf in ("weight", "bias"))
                weight, bias = (self._load(name).to(embedding.device, torch.float32) for name in projection)
                embedding = functional.linear(functional.silu(embedding), weight, bias)  # [P, 6 E]
            return embedding.cpu()

    def route_scores(self, timesteps: Iterable[float]) -> Tensor:
        """The routers' scores: float32 [P, L, N, 3], on the CPU."""
        with torch.no_grad():
            scores = self._model.route_scores(self._tensor(timesteps))  # [L, P, N, 3]
            return scores.transpose(0, 1).to("cpu", torch.float32).contiguous()

    def route_table(
        self, timesteps: Iterable[float], tau: float | None = None, route_override: Tensor | None = None
    ) -> RouteTable:
        """The routes of a schedule, with the FLOPs that they save.

        Args:
            timesteps: P timesteps, as the scheduler gives them.
            tau: Routing threshold; None takes the model's own.
            route_override: int32 [L, N], or [P, L, N] with one per step.
        """
        given = tuple(float(step) for step in timesteps)
        if not given:
            raise ValueError("timesteps []: must hold at least one; use scheduler.timesteps")
        if self.geometry is None:
            raise ValueError("geometry None: the route table needs it for its FLOPs; build the model with geometry=")
        tau = self.tau if tau is None else float(tau)
        scores = self.route_scores(given)  # [P, L, N, 3]
        return RouteTable(
            given,
            hard_routes(scores, tau, route_override).to(torch.int8),  # [P, L, N]
            scores,
            tau,
            self.geometry,
            self.head_dim,
            other_flops=other_flops(self.family, self.config, self.geometry, has_router=self.has_router),
        )

    def _tensor(self, timesteps: Iterable[float]) -> Tensor:
        device = self._model.timestep_device
        return torch.tensor([float(step) for step in timesteps], dtype=torch.float32, device=device)  # [P]


def timestep_parameters(family: str, names: Iterable[str]) -> list[str]:
    """Which of a model's parameters are its timestep path."""
    facts = get_family(family)
    prefixes = (*facts.always_loaded, *([f"{facts.modulation_projection}."] if facts.modulation_projection else []))
    return [name for name in names if name.startswith(prefixes) or ROUTER in name]


def save_timestep_path(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights named by `timestep_parameters`, as `TimestepPath.load` reads them."""
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
