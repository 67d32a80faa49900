# SPDX-License-Identifier: Apache-2.0
"""Reading what the exporter wrote, and files that it did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vorta_trt.export import ModelMetadata, OnnxFileError, read_metadata, routed_attention_nodes
from vorta_trt.export.metadata import KEY
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

Exported = Callable[[str], Path]


def test_round_trip(exported: Exported) -> None:
    metadata = read_metadata(exported("fp32"))
    assert ModelMetadata.from_metadata_props(metadata.to_metadata_props()) == metadata
    assert ModelMetadata.model_validate_json(metadata.model_dump_json()) == metadata


def test_no_such_file(tmp_path: Path) -> None:
    for reader in (read_metadata, routed_attention_nodes):
        with pytest.raises(FileNotFoundError, match="none.onnx: does not exist.*.onnx"):
            reader(tmp_path / "none.onnx")
        with pytest.raises(FileNotFoundError, match="is a folder"):
            reader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model\n" * 50, bytes(range(256)) * 20])
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(OnnxFileError, match="not an ONNX file, or a damaged one"):
        read_metadata(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_file(exported: Exported, tmp_path: Path, share: float) -> None:
    content = exported("fp32").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(OnnxFileError, match="model.onnx: "):
        read_metadata(tmp_path / "model.onnx")


def test_somebody_elses_model(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [info], [out])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(OnnxFileError, match="vorta-trt did not export it.*`vorta-trt export`"):
        read_metadata(tmp_path / "relu.onnx")
    assert routed_attention_nodes(tmp_path / "relu.onnx") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this vorta-trt reads up to 1; update vorta-trt"),
        ({"precision": "fp8"}, "precision 'fp8': must be"),
        ({"attention_precision": "fp4"}, "attention_precision 'fp4': must be"),
        ({"num_layers": 0}, "num_layers 0: must be greater"),
        ({"geometry": {"grid": [4, 6, 8]}}, "geometry with keys"),
        ({"surprise": 1}, "surprise: is not known"),
        ({"inputs": [{"name": "x", "dtype": "float128", "shape": [1]}]}, "inputs.0.dtype 'float128': must be"),
    ],
)
def test_damaged_metadata(exported: Exported, change: dict[str, Any], message: str) -> None:
    properties = read_metadata(exported("fp32")).to_metadata_props()
    properties[KEY] = json.dumps(json.loads(properties[KEY]) | change)
    with pytest.raises(OnnxFileError, match=message):
        ModelMetadata.from_metadata_props(properties, "model x.onnx")


def test_metadata_from_before_attention_precision(exported: Exported) -> None:
    metadata = read_metadata(exported("fp32"))
    content = json.loads(metadata.model_dump_json())
    assert content.pop("attention_precision") == "same"
    assert ModelMetadata.from_metadata_props({KEY: json.dumps(content)}) == metadata


def with_attention_precision(source: Path, target: Path, value: str | int | None) -> str:
    """Writes a copy of a model whose first node has another attention precision, or none; gives the node's name."""
    model = onnx.load(source)
    node = next(node for node in model.graph.node if node.op_type == ROUTED_ATTENTION.name)
    (attribute,) = (a for a in node.attribute if a.name == "attention_precision")
    node.attribute.remove(attribute)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute("attention_precision", value))
    onnx.save(model, target)
    return str(node.name)


def test_a_node_from_before_attention_precision(exported: Exported, tmp_path: Path) -> None:
    with_attention_precision(exported("fp32"), tmp_path / "model.onnx", None)
    assert routed_attention_nodes(tmp_path / "model.onnx") == routed_attention_nodes(exported("fp32"))


@pytest.mark.parametrize(("given", "shown"), [("fp4", "'fp4'"), (8, "''")])
def test_a_node_with_an_unknown_attention_precision(
    exported: Exported, tmp_path: Path, given: str | int, shown: str
) -> None:
    name = with_attention_precision(exported("fp32"), tmp_path / "model.onnx", given)
    message = f"{name}: attention_precision {shown}: must be 'same' or 'fp8'; export it again"
    with pytest.raises(OnnxFileError, match=message):
        routed_attention_nodes(tmp_path / "model.onnx")


def test_metadata_that_is_not_json() -> None:
    for text in ("{", "[]", "7"):
        with pytest.raises(OnnxFileError, match="model x.onnx: its 'vorta_trt' metadata is"):
            ModelMetadata.from_metadata_props({KEY: text}, "model x.onnx")


# --- External data behind links ----------------------------------------------

LINKS = ["cache", "data only", "model only", "chain", "hard links", "folder", "beside the target"]


def linked(source: Path, folder: Path, how: str) -> Path:
    """Lays an exported model with external data out as caches and users do; returns the model's path."""
    model, data = "m.onnx", "m.onnx.data"
    blobs, links = folder / "blobs", folder / "snapshot"
    blobs.mkdir()
    links.mkdir()
    onnx.save(onnx.load(source), links / model, save_as_external_data=True, location=data, size_threshold=0)
    if how == "folder":
        (folder / "link").symlink_to(links)
        return folder / "link" / model
    if how == "beside the target":
        (folder / model).symlink_to(links / model)
        return folder / model
    moved = {"data only": (data,), "model only": (model,), "none": ()}.get(how, (model, data))
    for name in moved:
        blob = blobs / f"of {name}.blob"
        (links / name).rename(blob)
        if how == "hard links":
            os.link(blob, links / name)
        elif how == "chain":
            (blobs / f"to {name}").symlink_to(blob)
            (links / name).symlink_to(f"../blobs/to {name}")
        else:
            (links / name).symlink_to(f"../blobs/{blob.name}")
    return links / model


@pytest.mark.parametrize("how", LINKS)
def test_weights_behind_links(exported: Exported, tmp_path: Path, how: str) -> None:
    from vorta_trt.runtime import Engine

    path, whole = linked(exported("fp32"), tmp_path, how), onnx.load(exported("fp32"))
    file = read_onnx(path)
    assert [data.name for data in file.data_files] == ["m.onnx.data"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    for tensor in file.model.graph.initializer:
        np.testing.assert_array_equal(file.read_weight(tensor), weights[tensor.name])
    with Engine(path) as through_links, Engine(exported("fp32")) as engine:
        shapes = {spec.name: [1 if isinstance(size, str) else size for size in spec.shape] for spec in engine.inputs}
        inputs = {spec.name: np.ones(shapes[spec.name], spec.dtype) for spec in engine.inputs}
        np.testing.assert_array_equal(through_links(**inputs)["sample"], engine(**inputs)["sample"])
    loaded = file.load_weights()
    assert all(tensor.data_location != tensor.EXTERNAL for tensor in loaded.graph.initializer)


def test_links_that_lead_nowhere(exported: Exported, tmp_path: Path) -> None:
    path, blob = linked(exported("fp32"), tmp_path, "cache"), tmp_path / "blobs/of m.onnx.data.blob"
    blob.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"m.onnx.data: is a pointer of Git LFS.*git lfs pull"):
        read_onnx(path)
    blob.unlink()
    with pytest.raises(OnnxFileError, match=f"its weights m.onnx.data are a link to .*{blob.name}, which is missing"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "many", "says wrongly where it lies"),
        ("offset", "-4", "must lie beside the model"),
        ("length", "3", "has 3 bytes instead of"),
        ("location", "../m.onnx.data", "must lie beside the model"),
        ("location", "other.data", "its weights other.data are missing"),
    ],
)
def test_damaged_external_data(exported: Exported, tmp_path: Path, key: str, value: str, message: str) -> None:
    path = linked(exported("fp32"), tmp_path, "none")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match=message):
        read_onnx(path)


def test_a_weight_of_the_wrong_size(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported("fp32"))
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[:-4]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(OnnxFileError, match=f"weight {weight.name} of shape .* bytes instead of"):
        read_onnx(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"model .*m.onnx: is a pointer of Git LFS"):
        read_metadata(tmp_path / "m.onnx")
