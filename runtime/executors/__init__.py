# SPDX-License-Identifier: Apache-2.0
"""The executors, which run an engine: TensorRT on a GPU, ONNX Runtime and ONNX's reference evaluator on the CPU."""

ON_CPU = ("onnxruntime", "reference")
EXECUTORS = ("tensorrt", *ON_CPU)
