# SPDX-License-Identifier: Apache-2.0
"""Writing a model into a repository of Triton's Python backend: NAME/config.pbtxt and NAME/1/model.py."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.export.onnx_file import DATA_SUFFIX
from vorta_trt.model.files import absence, check_sources, new_folder
from vorta_trt.serving.catalogue import ServedModel
from vorta_trt.serving.settings import ModelSettings, ServeSettings
from vorta_trt.serving.triton.tensors import INPUTS, OUTPUTS, Tensor

CONFIG, MODEL, VERSION = "config.pbtxt", "model.py", "1"
ENVIRONMENT = "environment.tar.gz"
MODEL_SCRIPT = """# Written by `vorta-trt triton`; its environment must have vorta-trt.
from vorta_trt.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


@dataclass(frozen=True)
class TritonSettings:
    """How Triton runs the model.

    Attributes:
        name: Name of the model in the repository; None takes the name of the bundle.
        gpus: Numbers of the GPUs, each of which gets an instance; none: one instance on the CPU.
        decoupled: Whether responses with the progress come before the video. Triton offers such models over gRPC
            streams alone, others over gRPC and HTTP.
        queue: How many requests may wait; more are refused.
        environment: An archive of conda-pack or venv-pack2 with vorta-trt, which is copied into the repository, or a
            folder with an environment; None takes the one that the backend finds.
        copy: Whether bundle and pipeline folder are copied into the repository; if not, it names their places.
    """

    name: str | None = None
    gpus: Sequence[int] = (0,)
    decoupled: bool = True
    queue: int = 64
    environment: Path | None = None
    copy: bool = False


def write_model(repository: Path, model: ModelSettings, settings: TritonSettings) -> Path:
    """Writes the model into a repository, whole or not at all; an existing model of the same name is replaced.

    Args:
        repository: Folder of the repository, made if it does not exist.
        model: Model that is served.
        settings: How Triton runs the model.

    Returns:
        The model's folder.

    Raises:
        ValueError: A name that Triton does not take, an environment that is neither an archive nor a folder, no such
            preset, or one for other models; a bundle for several GPUs; a repository in a folder that is copied into it.
        FileNotFoundError: There is no such bundle or environment.
        CheckpointError: The bundle lacks its pipeline folder, and it is not found.
        WriteError: The folder cannot be written, or something else is there, or it would replace what it is made from.
    """
    name = settings.name or re.sub(r"[^A-Za-z0-9_.-]", "_", model.name)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name {name!r}: must be letters, digits, _, . and -; use e.g. video")
    _check_environment(settings.environment)
    served = ServedModel(model)
    if served.gpus > 1:
        raise ValueError(
            f"{model.source}: is built for {served.gpus} GPUs that share every pass, and an instance of a model in "
            f"Triton has one; serve it with `vorta-trt serve` or Ray, or build it without --ulysses"
        )
    checkpoint = served.planner.require_checkpoint()
    places = {"source": model.source}
    if model.source not in checkpoint.parents:  # the bundle does not carry it
        places["checkpoint"] = checkpoint
    check_sources(repository / name, [*places.values(), settings.environment])
    if settings.copy:
        for path in places.values():
            if path.is_dir() and Path(os.path.realpath(repository / name)).is_relative_to(os.path.realpath(path)):
                raise ValueError(
                    f"repository {repository}: lies in {path}, which is copied into it; give another folder"
                )
    with new_folder(repository / name, replaces=CONFIG) as folder:
        version = folder / VERSION
        version.mkdir()
        values = model.model_dump(mode="json", exclude_defaults=True) | {"name": name}
        for key, path in places.items():
            values[key] = _copied(path.absolute(), folder) if settings.copy else _text(path.absolute())
        (version / MODEL).write_text(MODEL_SCRIPT, encoding="utf-8")
        parameters = {
            "model": json.dumps(values),
            "most_image_pixels": str(ServeSettings.model_fields["most_image_pixels"].default),
        }
        if settings.environment is not None:
            parameters["EXECUTION_ENV_PATH"] = _text(settings.environment.absolute())
            if settings.environment.is_file():
                shutil.copy(settings.environment, folder / ENVIRONMENT)
                parameters["EXECUTION_ENV_PATH"] = f"$$TRITON_MODEL_DIRECTORY/{ENVIRONMENT}"
        (folder / CONFIG).write_text(_config(name, parameters, settings), encoding="utf-8")
    return repository / name


def _config(name: str, parameters: dict[str, str], settings: TritonSettings) -> str:
    """The model's configuration, a message of protocol buffers as text."""
    instances = [f"{{ kind: KIND_GPU gpus: [ {gpu} ] count: 1 }}" for gpu in settings.gpus]
    lines = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        *(f"input {_tensor(tensor)}" for tensor in INPUTS),
        *(f"output {_tensor(tensor)}" for tensor in OUTPUTS),
        *(f"instance_group {instance}" for instance in instances or ["{ kind: KIND_CPU count: 1 }"]),
        f"model_transaction_policy {{ decoupled: {str(settings.decoupled).lower()} }}",
        f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {settings.queue} }} }}",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor) -> str:
    optional = " optional: true" if tensor in INPUTS and tensor.optional else ""
    return f"{{ name: {_quoted(tensor.name)} data_type: {tensor.kind} dims: {list(tensor.dims)}{optional} }}"


def _quoted(text: str) -> str:
    """A string of protocol buffers: UTF-8, in which JSON's escapes of quotes, backslashes and line ends are valid."""
    return json.dumps(text, ensure_ascii=False)


def _copied(path: Path, folder: Path) -> str:
    """Copies a bundle, a pipeline folder, or an ONNX file with all that belongs to it; returns its name there."""
    if path.is_dir():
        shutil.copytree(path, folder / path.name)
    else:
        for file in path.parent.glob(f"{glob.escape(path.stem)}.*"):  # a second expert, parts, and the weights of each
            if file.name.endswith((path.suffix, path.suffix + DATA_SUFFIX)):
                shutil.copy(file, folder / file.name)
    return path.name


def _text(path: Path) -> str:
    text = str(path)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"path {ascii(text)}: is no UTF-8 text, as Triton needs it; rename it")
    return text


def _check_environment(path: Path | None) -> None:
    if path is None:
        return
    if not path.exists():
        raise FileNotFoundError(
            f"environment {path}: {absence(path, 'no such archive or folder')}; pack one with conda-pack or venv-pack2"
        )
    if path.is_file() and not path.name.endswith((".tar.gz", ".tgz")):
        raise ValueError(f"environment {path}: is no .tar.gz; pack one with conda-pack or venv-pack2")
    if path.is_dir() and not os.access(path / "bin" / "activate", os.R_OK):
        raise ValueError(f"environment {path}: has no bin/activate, so it is no environment; give a venv or an archive")
