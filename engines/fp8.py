# SPDX-License-Identifier: Apache-2.0
"""Checks of where fp8 can run, made before a build and before a run: fp8 attention, and fp8 products of linear layers.

For attention the answer comes from the library's table of kernel families. The kernels refuse, too, but only at run
time, when it is too late to choose otherwise. The kernels of linear layers run on every GPU of the library, but
TensorRT takes e4m3 weights only for GPUs that have this type. Files of opset 17 are exempt: they hold e4m3 weights as
int32, so TensorRT does not see the type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.gpu import Target
from vorta_trt.plugins.gpu import ComputeCapability, Device, architectures_cover
from vorta_trt.plugins.kernel_support import architectures_remedy
from vorta_trt.plugins.library import KernelFamily, load_library

logger = logging.getLogger(__name__)

LINEARS_FROM = ComputeCapability(8, 9)  # oldest GPUs with e4m3; TensorRT builds no engine with e4m3 weights for others
_REMEDY = "use --attention-precision same"


def _families() -> list[KernelFamily]:
    return [family for family in load_library().kernel_families if family.attention_precision == "fp8"]


def _served_gpus(families: Iterable[KernelFamily]) -> str:
    """The GPUs that the families serve, such as "8.9 or newer"."""
    texts: list[str] = []
    newest = None
    for family in sorted(families, key=lambda family: (family.oldest_gpu, family.newest_gpu)):
        if newest is not None and family.newest_gpu <= newest:
            continue  # served by the family before it, too
        newest = family.newest_gpu
        if newest.major > 99:
            texts.append(f"{family.oldest_gpu} or newer")
        else:
            texts.append(str(newest) if newest == family.oldest_gpu else f"{family.oldest_gpu} to {newest}")
    return " or ".join(texts)


def _is_compiled(families: Iterable[KernelFamily], capability: ComputeCapability) -> bool:
    """Says whether the library holds a family that runs on GPUs of this compute capability."""
    return any(
        family.serves(capability) and architectures_cover(family.architectures, capability) for family in families
    )


def _not_compiled(capabilities: Iterable[ComputeCapability]) -> str:
    """Words of an error about GPUs whose kernels the library lacks: the reason and the remedy."""
    library, missing = load_library(), sorted(capabilities)
    return (
        f"needs kernels that {library.path} does not hold for compute capability {', '.join(map(str, missing))}: it "
        f"was compiled for {', '.join(library.cuda_architectures)}; {architectures_remedy(*missing)}, or {_REMEDY}"
    )


def check_build(source: Path, attention_precision: str, target: Target, head_dims: Iterable[int], strict: bool) -> None:
    """Refuses an engine with fp8 attention that some GPU of its target could not run.

    Args:
        source: ONNX file that the engine is built from, for messages.
        attention_precision: Precision that the RoutedAttention nodes ask for: "same" or "fp8".
        target: GPUs that the engine is built for.
        head_dims: Head dimensions of the RoutedAttention layers.
        strict: Whether to raise BuildError; otherwise the reasons are logged as warnings.

    Raises:
        BuildError: There are no fp8 kernels for a GPU or a head dimension, or the library was compiled without them.
    """
    if attention_precision != "fp8":
        return
    missing = []
    families = _families()
    served = [capability for capability in target.capabilities if any(f.serves(capability) for f in families)]
    if len(served) < len(target.capabilities):
        built_for = ", ".join(map(str, target.capabilities)) + (" and newer" if target.and_newer else "")
        options = " ".join(f"--compute-capability {capability}" for capability in served)
        alone = f"for GPUs that have it alone ({options})" if served else "for GPUs that have it"
        missing.append(
            f"needs GPUs of compute capability {_served_gpus(families)}, and this engine is built for {built_for}; "
            f"build {alone}, or {_REMEDY}"
        )
    if lacking := [capability for capability in served if not _is_compiled(families, capability)]:
        missing.append(_not_compiled(lacking))
    known_dims = {head_dim for family in families for head_dim in family.head_dims}
    if unknown := sorted(set(head_dims) - known_dims):
        known = " or ".join(map(str, sorted(known_dims)))
        missing.append(f"needs head_dim {known}, and this model has {', '.join(map(str, unknown))}; {_REMEDY}")
    for reason in missing:
        message = f"{source}: attention_precision fp8 {reason}"
        if strict:
            raise BuildError(f"{message}; or pass strict=False (--no-strict) to build it as it is")
        logger.warning("%s", message)


def check_linears(
    source: Path, linear_precision: str, float8_weights: bool, target: Target, *, refit: bool, strict: bool
) -> None:
    """Refuses an engine with fp8 linear layers that TensorRT cannot build for its GPUs, or that is to be refitted.

    Args:
        source: ONNX file or checkpoint that the engine is built from, for messages.
        linear_precision: "same" or "fp8".
        float8_weights: Whether the ONNX file stores, or will store, the weights in ONNX's e4m3 type.
        target: GPUs that the engine is built for.
        refit: Whether the engine is to take other weights later.
        strict: Whether to raise BuildError for a GPU that is too old; otherwise a warning is logged.

    Raises:
        BuildError: One of the GPUs has no e4m3, or the engine is to be refitted.
    """
    if linear_precision == "fp8" and refit:
        raise BuildError(
            f"{source}: linear_precision fp8 with refit: a LoRA file changes the scales of e4m3 weights as well, which "
            f"`vorta-trt refit` does not write; fuse it with --lora in place of --refit, or use --linear-precision same"
        )
    if linear_precision != "fp8" or not float8_weights:
        return
    too_old = [capability for capability in target.capabilities if capability < LINEARS_FROM]
    if not too_old:
        return
    served = [capability for capability in target.capabilities if capability >= LINEARS_FROM]
    options = " ".join(f"--compute-capability {capability}" for capability in served)
    alone = f"for GPUs that have it alone ({options})" if served else "for a GPU that has it"
    message = (
        f"{source}: linear_precision fp8 needs GPUs of compute capability {LINEARS_FROM} or newer, and this engine is "
        f"built for {', '.join(map(str, target.capabilities))}; build {alone}, or use --linear-precision same"
    )
    if strict:
        raise BuildError(f"{message}; or pass strict=False (--no-strict) to build it as it is")
    logger.warning("%s", message)


def run_problems(attention_precision: str, device: Device) -> list[str]:
    """Says why an engine with this attention precision does not run on `device`; nothing if it does."""
    if attention_precision != "fp8":
        return []
    families = _families()
    if not any(family.serves(device.capability) for family in families):
        return [
            f"attention_precision fp8 needs a GPU of compute capability {_served_gpus(families)}, but this GPU is "
            f"{device}; build for it with --attention-precision same"
        ]
    if not _is_compiled(families, device.capability):
        return [f"attention_precision fp8 {_not_compiled([device.capability])}"]
    return []
