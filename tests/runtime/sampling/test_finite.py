# SPDX-License-Identifier: Apache-2.0
"""A sample that is not finite stops the run, and the error names the step and the module where it began."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vorta_trt.model import RoutedTransformer
from vorta_trt.runtime import Engine
from vorta_trt.runtime.sampling.finite import FiniteCheck, NonFiniteError
from vorta_trt.runtime.sampling.locate_non_finite import locate_in_onnx, locate_in_torch
from vorta_trt.runtime.target import read_target


def planted(source: Path, target: Path, parameter: str) -> Path:
    """A copy of an ONNX file with an infinity in a weight."""
    model = onnx.load(source)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith(parameter))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[7] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, target)
    return target


def load(made: Any, dtype: torch.dtype = torch.float32) -> RoutedTransformer:
    return RoutedTransformer.from_pretrained(made.checkpoint, made.router, dtype=dtype)


def test_finite_samples_pass_and_one_bad_value_does_not(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    check = FiniteCheck()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        sample = torch.randn(2, 4, 5, generator=generator).to(dtype)
        check(sample, 3, 500.0)
        for bad in (float("nan"), float("inf"), -float("inf")):
            sample = sample.clone()
            sample.view(-1)[int(torch.randint(40, (), generator=generator))] = bad
            with pytest.raises(NonFiniteError) as failure:
                check(sample, 3, 501.5, "uncond")
            assert (failure.value.step, failure.value.timestep, failure.value.context) == (3, 501.5, "uncond")
            assert 0 < failure.value.share <= 3 / 40
            assert "step 3, timestep 501.5, context 'uncond': " in str(failure.value)
            assert "--keep-onnx" in str(failure.value)
            check.finish()  # raised once
            sample = torch.nan_to_num(sample, 0, 0, 0)


def test_the_locator_gets_the_inputs_of_the_bad_step_only() -> None:
    asked: list[Any] = []

    def locate(inputs: Any) -> str:
        asked.append(inputs)
        return "it began in block 7"

    check = FiniteCheck(locate)
    check(torch.ones(3), 0, 9.0, inputs={"timestep": 9.0})
    with pytest.raises(NonFiniteError, match="it began in block 7"):
        check(torch.tensor([1.0, float("nan")]), 1, 8.0, inputs={"timestep": 8.0})
    assert asked == [{"timestep": 8.0}]


@pytest.mark.gpu
def test_on_a_gpu_the_last_sample_is_checked_at_the_end() -> None:
    bad = torch.full((1 << 20,), float("inf"), device="cuda")
    check = FiniteCheck()
    check(torch.ones(3, device="cuda"), 0, 9.0)
    check(bad, 1, 8.0)  # its count is on the way
    bad.zero_()  # the buffer is used again
    with pytest.raises(NonFiniteError, match="step 1"):
        check.finish()
    with pytest.raises(NonFiniteError, match="step 0"):
        check = FiniteCheck()
        check(torch.full((3,), float("nan"), device="cuda"), 0, 9.0)
        check(torch.ones(3, device="cuda"), 1, 8.0)


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("blocks.1.ffn.net.0.proj.weight", "blocks.1.ffn"),
        ("blocks.1.attn1.to_v.weight", "blocks.1.attn1.to_v"),
        ("blocks.0.attn2.to_k.weight", "blocks.0.attn2.to_out.0"),
        ("condition_embedder.time_proj.weight", "condition_embedder.time_proj"),
    ],
)
def test_the_block_is_found_in_an_onnx_file(
    wan: Any, fp32: Path, tmp_path: Path, parameter: str, module: str, seed: int
) -> None:
    path = planted(fp32, tmp_path / "bad.onnx", parameter)
    inputs = load(wan).inputs(1, seed)
    with Engine(path) as engine:
        sample = torch.as_tensor(engine(**inputs)["sample"])
    with pytest.raises(NonFiniteError) as failure:
        FiniteCheck(partial(locate_in_onnx, read_target(path)))(sample, 0, 999.0, inputs=inputs)
    assert failure.value.step == 0
    assert f"it began in {module}: the first module of bad.onnx" in failure.value.place


def test_the_block_is_found_in_bf16(wan: Any, bf16: Path, tmp_path: Path, seed: int) -> None:
    path = planted(bf16, tmp_path / "bad.onnx", "blocks.1.attn1.to_out.0.weight")
    inputs = load(wan, torch.bfloat16).inputs(1, seed)
    assert "it began in blocks.1.attn1.to_out.0: " in locate_in_onnx(read_target(path), inputs)


def test_the_block_is_found_in_a_single_stream(hunyuan_video: Any, tmp_path: Path, seed: int) -> None:
    path = planted(hunyuan_video.onnx, tmp_path / "bad.onnx", "single_transformer_blocks.0.proj_mlp.weight")
    inputs = load(hunyuan_video).inputs(1, seed)
    assert "it began in single_transformer_blocks.0.proj_out: " in locate_in_onnx(read_target(path), inputs)


def test_the_module_is_found_in_torch(wan: Any, hunyuan_video: Any, seed: int) -> None:
    for made, module in ((wan, "blocks.1.attn2.to_v"), (hunyuan_video, "transformer_blocks.1.attn.add_k_proj")):
        model = load(made)
        inputs = model.inputs(1, seed)
        assert "every module's output is finite" in locate_in_torch(model, inputs)
        with torch.no_grad():
            weight: Any = model.get_submodule(module).weight
            weight[1, 2] = float("inf")
            sample, _ = model(**inputs)
        with pytest.raises(NonFiniteError, match=f"it began in {module}: "):
            FiniteCheck(partial(locate_in_torch, model))(sample, 0, 999.0, inputs=inputs)
        assert not any(submodule._forward_hooks for submodule in model.modules())


def test_inputs_that_are_not_finite_themselves(wan: Any, fp32: Path, seed: int) -> None:
    model = load(wan)
    inputs = model.inputs(1, seed)
    inputs["encoder_hidden_states"][0, 3, 4] = float("nan")
    for place in (locate_in_torch(model, inputs), locate_in_onnx(read_target(fp32), inputs)):
        assert place.startswith("its input encoder_hidden_states had such values already")


def test_a_bundle_whose_onnx_file_is_fine(wan: Any, bundle: Path, seed: int) -> None:
    inputs = load(wan, torch.float16).inputs(1, seed)
    assert "look at the engine and its kernels" in locate_in_onnx(read_target(bundle), inputs)
