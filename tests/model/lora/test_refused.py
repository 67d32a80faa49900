# SPDX-License-Identifier: Apache-2.0
"""LoRA files that are refused, each by its message, and what a user may write for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.files import PointerError
from vorta_trt.model.lora.spec import LoraSpec

from .files import HUNYUAN_VIDEO, WAN, Tensors, Writer, fused, lora_file, model, save, seeded

QUERY = "diffusion_model.blocks.0.self_attn.q"
DOWN, UP = f"{QUERY}.lora_down.weight", f"{QUERY}.lora_up.weight"
ALPHA = f"{QUERY}.alpha"


@pytest.fixture
def generator() -> torch.Generator:
    return seeded()


@pytest.fixture
def wan(generator: torch.Generator) -> Any:
    return model("WanTransformer3DModel", generator, **WAN)


def good() -> Tensors:
    return {DOWN: torch.randn(4, 32), UP: torch.randn(32, 4)}


def with_nan() -> Tensors:
    tensors = good()
    tensors[UP][3, 1] = float("nan")
    return tensors


CASES: dict[str, tuple[Callable[[], Tensors], str]] = {
    "NaN": (with_nan, rf"{UP} has values that are NaN or infinite; download the file again"),
    "infinite": (lambda: {**good(), f"{QUERY}.diff_b": torch.full((32,), torch.inf)}, "diff_b has values that are NaN"),
    "no up": (lambda: {DOWN: torch.randn(4, 32)}, rf"'{DOWN}' has no 'up' matrix beside it"),
    "no down": (lambda: {UP: torch.randn(32, 4)}, "has no 'down' matrix beside it"),
    "alpha alone": (lambda: {ALPHA: torch.tensor(4.0)}, f"'{ALPHA}' has no 'down' matrix beside it"),
    "ranks": (
        lambda: {DOWN: torch.randn(4, 32), UP: torch.randn(32, 8)},
        r"\(32, 8\), and .* \(4, 32\): their ranks must be",
    ),
    "rank 0": (lambda: {DOWN: torch.randn(0, 32), UP: torch.randn(32, 0)}, "their ranks must be equal"),
    "inputs": (
        lambda: {DOWN: torch.randn(4, 40), UP: torch.randn(32, 4)},
        r"has shape \(4, 40\), which does not fit blocks.0.attn1.to_q.weight \(32, 32\) of the model, so it is the "
        r"LoRA of a model of another size",
    ),
    "outputs": (lambda: {DOWN: torch.randn(4, 32), UP: torch.randn(64, 4)}, r"has shape \(64, 4\), which does not fit"),
    "difference": (lambda: {f"{QUERY}.diff": torch.randn(32, 31)}, r"has shape \(32, 31\), which does not fit"),
    "bias": (lambda: {f"{QUERY}.diff_b": torch.randn(33)}, r"has shape \(33,\), which does not fit"),
    "scalar": (lambda: {f"{QUERY}.diff_b": torch.tensor(1.0)}, r"has shape \(\), which does not fit"),
    "alphas": (lambda: {**good(), ALPHA: torch.ones(2)}, r"alpha has shape \(2,\); must be one number"),
    "huge alpha": (lambda: {**good(), ALPHA: torch.tensor(1e30)}, r"alpha is 1e\+30, which is no alpha of rank 4"),
    "integers": (lambda: {**good(), ALPHA: torch.tensor(4)}, r"alpha is stored as I64; must be one of F64, F32"),
    "more layers": (
        lambda: {key.replace("blocks.0", "blocks.7"): value for key, value in good().items()},
        r"1 of the 1 modules that it changes are none of the model \(diffusion_model.blocks.7.self_attn.q\), so it is "
        r"the LoRA of another model",
    ),
    "twice": (
        lambda: {**good(), "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.randn(4, 32)},
        "keys .* and .* are for the same",
    ),
    "both endings": (lambda: {**good(), f"{QUERY}.lora_A.weight": torch.randn(4, 32)}, "are for the same"),
    "LoKr": (lambda: {f"{QUERY}.lokr_w1": torch.randn(4, 4)}, "is of LoKr, which is not fused"),
    "DoRA": (lambda: {**good(), f"{QUERY}.dora_scale": torch.randn(32)}, "is of DoRA, which is not fused"),
    "unknown": (lambda: {**good(), "hello": torch.randn(1)}, r"1 of its 3 keys are of no known kind \(hello\)"),
    "weights": (
        lambda: {"blocks.0.attn1.to_q.weight": torch.randn(32, 32)},
        "is no LoRA of a transformer: of its 1 keys",
    ),
    "text encoder": (lambda: {"lora_te_a.lora_up.weight": torch.randn(4, 4)}, "is no LoRA of a transformer"),
    "empty": (dict, "is no LoRA of a transformer: of its 0 keys"),
    "image alone": (
        lambda: {
            "diffusion_model.img_emb.proj.1.lora_down.weight": torch.randn(4, 32),
            "diffusion_model.img_emb.proj.1.lora_up.weight": torch.randn(32, 4),
        },
        "changes nothing of the model, which has none of its modules",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files(wan: Any, tmp_path: Path, case: str) -> None:
    make, message = CASES[case]
    path = save(tmp_path / "lora.safetensors", make())
    with pytest.raises(CheckpointError, match=message) as error:
        lora_file(path, wan)
    assert str(error.value).startswith(f"LoRA {path}: ") and "; " in str(error.value)


def test_a_file_of_another_family(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    other = model("HunyuanVideoTransformer3DModel", generator, **HUNYUAN_VIDEO)
    tensors = Writer(other, generator).low_rank(["double_blocks.0.img_attn_qkv"], ".lora_A.weight", ".lora_B.weight")
    path = save(tmp_path / "lora.safetensors", tensors, "transformer.")
    with pytest.raises(CheckpointError, match=r"none of the model \(transformer.double_blocks.0.img_attn_qkv\)"):
        lora_file(path, wan)
    tensors = Writer(wan, generator).low_rank(["blocks.0.self_attn.q"], ".lora_A.weight", ".lora_B.weight")
    path = save(tmp_path / "lora.safetensors", tensors, "diffusion_model.")
    with pytest.raises(CheckpointError, match="so it is the LoRA of another model"):
        lora_file(path, other)


def test_what_is_no_file_of_safetensors(wan: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors: does not exist; give a LoRA file"):
        lora_file(tmp_path / "nothing.safetensors", wan)
    with pytest.raises(CheckpointError, match=r"is a folder; give the .safetensors file in it"):
        lora_file(tmp_path, wan)
    file = tmp_path / "lora.safetensors"
    torch.save(good(), file)
    with pytest.raises(CheckpointError, match=r"not readable as safetensors \(.*\); download it again"):
        lora_file(file, wan)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PointerError, match="is a pointer of Git LFS"):
        lora_file(file, wan)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[", "its lora_adapter_metadata is no JSON"),
        ("[]", "its lora_adapter_metadata is no JSON object"),
        (json.dumps({"transformer.r": 4}), r"has lora_alpha and alpha_pattern \[None\]; must be numbers"),
        (json.dumps({"transformer.lora_alpha": "x"}), "must be numbers"),
        (json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": [1]}), "must be numbers"),
        (json.dumps({"transformer.lora_alpha": 4, "transformer.use_dora": True}), "says use_dora, which is not fused"),
    ],
)
def test_records_of_peft(wan: Any, tmp_path: Path, record: str, message: str) -> None:
    path = save(tmp_path / "lora.safetensors", good(), metadata={"lora_adapter_metadata": record})
    with pytest.raises(CheckpointError, match=message):
        lora_file(path, wan)


def test_keys_of_a_text_encoder_are_named(wan: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "lora.safetensors", {**good(), "lora_te_x.alpha": torch.tensor(1.0)})
    report = lora_file(path, wan, 0.5).report
    assert list(report.unused) == ["lora_te_x.alpha"] and set(report.used) == {DOWN, UP}
    assert str(report) == (
        "lora.safetensors, strength 0.5: 2 keys change 1 parameters; 1 keys not used, for a text encoder, which runs "
        "as it is in the pipeline folder: lora_te_x.alpha"
    )


def test_a_closed_file_is_opened_again(wan: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "lora.safetensors", good())
    file = lora_file(path, wan)
    file.close()
    weight = wan.blocks[0].attn1.to_q.weight.detach().clone()
    for change in file.changes["blocks.0.attn1.to_q.weight"]:
        change.add_to(weight)
    assert torch.equal(weight, fused(path, wan)["blocks.0.attn1.to_q.weight"])


def test_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LoraSpec.parse("a/b.safetensors") == LoraSpec(Path("a/b.safetensors"), 1.0)
    assert LoraSpec.parse("a.safetensors:0.8") == LoraSpec(Path("a.safetensors"), 0.8)
    assert LoraSpec.parse("a.safetensors:-1") == LoraSpec(Path("a.safetensors"), -1.0)
    assert LoraSpec.parse("C:a.safetensors") == LoraSpec(Path("C:a.safetensors"))
    assert str(LoraSpec(Path("a"), 0.5)) == "a:0.5"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epoch:10").touch()
    assert LoraSpec.parse("epoch:10") == LoraSpec(Path("epoch:10"))
    for text, message in {
        "": "has no file name",
        ":0.5": "has no file name",
        "a:0": "strength 0 must not be 0 and at most 1000 in size; use e.g. 1.0, or leave the LoRA out",
        "a:nan": "strength nan must not be",
        "a:-inf": "strength -inf must not be",
        "a:1001": "strength 1001 must not be",
    }.items():
        with pytest.raises(ValueError, match=message):
            LoraSpec.parse(text)
