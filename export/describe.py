# SPDX-License-Identifier: Apache-2.0
"""Metadata of a model about to be exported: its contract (inputs and outputs) and where it came from."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from vorta_trt.export.metadata import ModelMetadata, TensorInfo
from vorta_trt.export.tracing import BATCH, OUTPUTS, UNBATCHED_INPUTS, rank_inputs
from vorta_trt.model.parallel.rank_input import RankInput
from vorta_trt.model.precision import dtype_name
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer


def describe(skeleton: RoutedTransformer, model: RoutedTransformer, precision: str, opset: int) -> ModelMetadata:
    """Makes the metadata; `skeleton` is the copy of `model` that is traced, in the precision of the export."""
    assert model.geometry is not None
    inputs = _inputs(skeleton)
    by_name = {info.name: info for info in inputs}
    latents, text = by_name["hidden_states"], by_name["encoder_hidden_states"]
    sample, routes = OUTPUTS
    batch, _, *sizes = latents.shape
    outputs = (
        TensorInfo(
            name=sample, dtype=latents.dtype, shape=(batch, model.facts().latent_channels(model.config), *sizes)
        ),
        TensorInfo(name=routes, dtype="int32", shape=(model.num_layers, BATCH, model.num_heads)),
    )
    return ModelMetadata.model_validate(
        {
            "vorta_trt_version": version("vorta-trt"),
            "torch_version": torch.__version__,
            "onnx_version": version("onnx"),
            "onnxscript_version": version("onnxscript"),
            "family": model.family,
            "config": plain_config(model.config),
            "checkpoint": model.checkpoint_name,
            "component": model.component,
            "boundary_ratio": model.boundary_ratio,
            "precision": precision,
            "attention_precision": model.attention_precision,
            "linear_precision": model.linear_precision,
            "linear_keep": () if model.linears is None else model.linears.keep,
            "fp8_layers": () if model.linears is None else model.linears.fp8,
            "input_scales": model.static_input_scales(),
            "geometry": model.geometry.to_dict(),
            "operator_version": int(ROUTED_ATTENTION.version),
            **ROUTED_ATTENTION.selection,
            "opset": opset,
            "tau": model.tau,
            "num_layers": model.num_layers,
            "num_heads": model.num_heads,
            "head_dim": model.head_dim,
            "latent_shape": latents.shape[1:],
            "text_length": text.shape[1],
            "ulysses": skeleton.parallel.ranks if isinstance(skeleton.parallel, RankInput) else 1,
            "float8_weights": model.float8_weights,
            "lora": [{"name": it.name, "sha256": it.sha256, "strength": it.strength} for it in model.lora],
            "router_sha256": router_sha256(model),
            "inputs": inputs,
            "outputs": outputs,
        }
    )


def _inputs(skeleton: RoutedTransformer) -> tuple[TensorInfo, ...]:
    def info(name: str, tensor: torch.Tensor) -> TensorInfo:
        shape: list[int | str] = list(tensor.shape)
        if name not in UNBATCHED_INPUTS:
            shape[0] = BATCH
        return TensorInfo.model_validate({"name": name, "dtype": dtype_name(tensor.dtype), "shape": shape})

    return tuple(info(name, tensor) for name, tensor in {**skeleton.inputs(1), **rank_inputs(skeleton)}.items())


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The diffusers config in plain JSON types, without its private entries, which hold paths of this machine."""
    public = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    plain: dict[str, Any] = json.loads(json.dumps(public))
    return plain


def router_sha256(model: RoutedTransformer) -> str | None:
    """SHA-256 over name, shape and float32 bytes of each router parameter, in the order of the names."""
    if not model.has_router:
        return None
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "router" in name.split("."):
            value = parameter.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()
