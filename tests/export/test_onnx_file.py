# SPDX-License-Identifier: Apache-2.0
"""Reading what the exporter wrote, and files that it did not write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from vorta_trt.export import ModelMetadata, OnnxFileError, read_metadata, routed_attention_nodes
from vorta_trt.export.metadata import KEY
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

Exported = Callable[[str], Path]


def test_round_trip(exported: Exported) -> None:
    metadata = read_metadata(exported("fp32"))
    assert ModelMetadata.from_metadata_props(metadata.to_metadata_props()) == metadata
    assert ModelMetadata.model_validate_json(metadata.model_dump_json()) == metadata


def test_no_such_file(tmp_path: Path) -> None:
    for reader in (read_metadata, routed_attention_nodes):
        with pytest.raises(FileNotFoundError, match="none.onnx: does not exist; give an .onnx file"):
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
    with pytest.raises(OnnxFileError, match="vorta-trt did not export it; export it with `vorta-trt export`"):
        read_metadata(tmp_path / "relu.onnx")
    assert routed_attention_nodes(tmp_path / "relu.onnx") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this vorta-trt reads up to 1; update vorta-trt"),
        ({"precision": "fp8"}, "precision: "),
        ({"attention_precision": "fp4"}, "attention_precision: "),
        ({"num_layers": 0}, "num_layers: "),
        ({"geometry": {"grid": [4, 6, 8]}}, "geometry with keys"),
        ({"surprise": 1}, "surprise: "),
        ({"inputs": [{"name": "x", "dtype": "float128", "shape": [1]}]}, "inputs.0.dtype: "),
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
