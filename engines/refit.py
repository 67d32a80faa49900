# SPDX-License-Identifier: Apache-2.0
"""Refit of a built bundle: writes new weights for its engines, and sets them when an engine is loaded.

The plan stays as it was built. Beside it lies a safetensors file with the weights that are set after the plan is
loaded, under their names in the ONNX file. It holds every weight that any refit of the bundle has changed, so the next
refit needs nothing of the one before. ONNX copies in the bundle refer to it. The timestep path gets the new values.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.errors import BundleError
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.hashed_file import CHUNK_BYTES, HashedFile, hash_file
from vorta_trt.engines.manifest import MANIFEST, EngineFiles, FileEntry
from vorta_trt.engines.onnx_copies import set_external
from vorta_trt.export.metadata import LoraRecord
from vorta_trt.export.names import TRANSPOSED
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.precision import DATA_TYPES
from vorta_trt.model.unfinished import temporary_folder
from vorta_trt.plugins.errors import VortaError

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}  # as safetensors has them


@dataclass(frozen=True)
class NewWeights:
    """The new weights of one component.

    Attributes:
        weights: Name in the exported file and value of each weight, read one at a time.
        parameters: Torch names of the changed parameters.
        lora: LoRA files that are fused into the weights; empty: the weights are the checkpoint's own.
    """

    weights: Iterable[tuple[str, Tensor]]
    parameters: Sequence[str]
    lora: Sequence[LoraRecord]


def check_refit(bundle: Bundle) -> None:
    """Raises BundleError unless every engine of a bundle can be given other weights."""
    problems = []
    for view in bundle.views():
        if view.manifest.refit is None:
            problems.append(f"{view.key} was built without --refit, and takes no other weights; build it again with it")
        metadata = view.manifest.metadata
        if metadata is not None and metadata.get("lora"):
            problems.append(
                f"{view.key} was built with LoRA files in its weights; build it without them and with --refit, and "
                "give them here"
            )
    if problems:
        raise BundleError(bundle.path, problems)


def write_refit(
    bundle: Bundle, components: Mapping[str, NewWeights], check: Callable[[], None] = lambda: None
) -> Bundle:
    """Gives the engines of a bundle other weights, at all sizes. A failure leaves the bundle as it was.

    Args:
        bundle: The opened bundle.
        components: New weights by component.
        check: Called between weights and chunks of a file; it may raise to stop.

    Raises:
        BundleError: An engine of the bundle cannot be refitted.
        WriteError: The bundle cannot be written.
    """
    check_refit(bundle)
    whole = bundle.whole
    files, old = dict(whole.files), set[str]()
    names = {view.key: view.names for view in bundle.views()}
    records = {view.key: view.manifest.refit for view in bundle.views()}
    with temporary_folder(bundle.path / MANIFEST) as folder:
        made: dict[str, FileEntry] = {}
        for component, new in components.items():
            weights, entry = _save(folder, component, new.weights, check)
            made[weights.name] = entry
            for view in bundle.views():
                if view.key.component == component and view.manifest.refit is not None:
                    changed, left = _engine(view, weights, folder, made)
                    given = {"parameters": list(new.parameters), "lora": list(new.lora)}
                    names[view.key], records[view.key] = changed, view.manifest.refit.model_copy(update=given)
                    old |= left
        files = {name: entry for name, entry in files.items() if name not in old} | made
        first, *others = bundle.engines
        manifest = whole.model_copy(
            update={
                "files": files,
                "names": names[first],
                "refit": records[first],
                "engines": [
                    engine.model_copy(update={"names": names[key], "refit": records[key]})
                    for key, engine in zip(others, whole.engines, strict=True)
                ],
            }
        )
        check()
        for name in made:
            (folder / name).replace(bundle.path / name)
        manifest.write(bundle.path / MANIFEST)
    for name in old - set(files):
        (bundle.path / name).unlink(missing_ok=True)
    return Bundle.open(bundle.path, verify=False, runtime=False)


def _save(
    folder: Path, component: str, weights: Iterable[tuple[str, Tensor]], check: Callable[[], None]
) -> tuple[Path, FileEntry]:
    """Streams weights into a safetensors file whose name carries a hash of its content."""
    header: dict[str, Any] = {}
    at = 0
    with HashedFile(folder / f"{component}.body") as body:
        for name, tensor in weights:
            check()
            content = bytes(tensor.contiguous().flatten().view(_uint8()).numpy())
            dtype = str(tensor.dtype).removeprefix("torch.")
            header[name] = {
                "dtype": _TYPES[dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + len(content)],
            }
            at += len(content)
            body.write(content)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    mark = hashlib.sha256(head + body.entry.sha256.encode()).hexdigest()[:12]
    target = folder / f"refit.{component}.{mark}.safetensors"
    with HashedFile(target) as file, body.path.open("rb") as reader:
        file.write(struct.pack("<Q", len(head)) + head)
        while chunk := reader.read(CHUNK_BYTES):
            check()
            file.write(chunk)
    body.path.unlink()
    return target, file.entry


def _uint8() -> Any:
    import torch

    return torch.uint8


def _engine(view: Bundle, weights: Path, folder: Path, made: dict[str, FileEntry]) -> tuple[EngineFiles, set[str]]:
    """Writes the new files of one engine. Returns its new file names, and the old files that it no longer needs."""
    mark = weights.name.removesuffix(".safetensors").rpartition(".")[2]
    changes: dict[str, str] = {"refit": weights.name}
    if view.onnx_path is not None:
        name = _marked(view.names.onnx, mark)
        made[name] = _refer(view.onnx_path, weights, folder / name)
        changes["onnx"] = name
    if view.timestep_path is not None:
        name = _marked(view.names.timestep_path, mark)
        if name not in made:
            made[name] = _timestep_path(view.timestep_path, weights, folder / name)
        changes["timestep_path"] = name
    own = view.names.model_dump()
    left = {own[role] for role, name in changes.items() if own[role] not in (None, name)}
    return view.names.model_copy(update=changes), left


def _marked(name: str, mark: str) -> str:
    """Puts the mark of the new weights into a file name, in place of the mark of an earlier refit."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem.partition('.refit-')[0]}.refit-{mark}.{suffix}"


def _refer(onnx: Path, weights: Path, target: Path) -> FileEntry:
    """Writes a copy of an ONNX file whose changed weights refer to the safetensors file."""
    places, start = _places(weights)
    model = read_onnx(onnx).model
    for tensor in model.graph.initializer:
        if (place := places.get(tensor.name)) is not None:
            begin, end = place["data_offsets"]
            set_external(tensor, weights.name, start + begin, end - begin)
    with HashedFile(target) as file:
        file.write(model.SerializeToString())
    return file.entry


def _timestep_path(old: Path, weights: Path, target: Path) -> FileEntry:
    from safetensors import safe_open
    from safetensors.torch import load_file

    from vorta_trt.model.timestep_path import save_timestep_path

    values = load_file(old)
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            parameter = name.removesuffix(TRANSPOSED)
            if parameter in values:
                value = file.get_tensor(name)
                values[parameter] = value.t() if name.endswith(TRANSPOSED) else value
    save_timestep_path(target, values)
    return hash_file(target)


def _places(weights: Path) -> tuple[dict[str, Any], int]:
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def apply_refit(flavour: Flavour, engine: Any, bundle: Bundle) -> None:
    """Sets the weights of a bundle's refit in a plan that has just been loaded.

    Raises:
        VortaError: TensorRT refuses; the message says what it logged.
    """
    from safetensors import safe_open

    trt, weights = flavour.module, bundle.refit_path
    if weights is None:
        return
    kept = []
    with flavour.hub.collect() as collected, safe_open(weights, "pt") as file:
        refitter = trt.Refitter(engine, flavour.logger)
        refused = []
        for name in file.keys():  # noqa: SIM118  (no mapping)
            value = file.get_tensor(name).contiguous()
            dtype = getattr(trt.DataType, DATA_TYPES[str(value.dtype).removeprefix("torch.")].tensorrt)
            kept.append(value)  # TensorRT reads it in `refit_cuda_engine`
            if not refitter.set_named_weights(name, trt.Weights(dtype, value.data_ptr(), value.numel())):
                refused.append(name)
        done = not refused and refitter.refit_cuda_engine()
    if not done:
        said = "; ".join(collected.errors) or (f"no such weights: {', '.join(refused[:5])}" if refused else "no reason")
        raise VortaError(
            f"{bundle.path}: {flavour.title_and_version} cannot set the weights of {weights.name} ({said}); "
            "build the bundle again with the LoRA in it"
        )
