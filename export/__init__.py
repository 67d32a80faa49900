# SPDX-License-Identifier: Apache-2.0
"""From a routed model to one ONNX file: custom operator, its portable function, metadata.

Names are loaded on first use: reading metadata costs no import of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.export.errors import ExportError as ExportError
    from vorta_trt.export.errors import OnnxFileError as OnnxFileError
    from vorta_trt.export.function_body import routed_attention_function as routed_attention_function
    from vorta_trt.export.metadata import ModelMetadata as ModelMetadata
    from vorta_trt.export.metadata import TensorInfo as TensorInfo
    from vorta_trt.export.onnx_export import export_onnx as export_onnx
    from vorta_trt.export.onnx_file import RoutedAttentionNode as RoutedAttentionNode
    from vorta_trt.export.onnx_file import read_metadata as read_metadata
    from vorta_trt.export.onnx_file import routed_attention_nodes as routed_attention_nodes
    from vorta_trt.export.reference_form import for_reference_evaluator as for_reference_evaluator

_HOME = {
    "ExportError": "errors",
    "ModelMetadata": "metadata",
    "OnnxFileError": "errors",
    "RoutedAttentionNode": "onnx_file",
    "TensorInfo": "metadata",
    "export_onnx": "onnx_export",
    "read_metadata": "onnx_file",
    "for_reference_evaluator": "reference_form",
    "routed_attention_function": "function_body",
    "routed_attention_nodes": "onnx_file",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
