# SPDX-License-Identifier: Apache-2.0
"""Fused weights against those that diffusers and PEFT fuse, for synthetic files in every layout.

Where diffusers drops keys, or is wrong, the test says what it does and compares with the right value.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .files import (
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    LAYERS,
    WAN,
    WAN_IMAGE,
    Tensors,
    Writer,
    fused,
    lora_file,
    model,
    save,
    seeded,
)
from .files import with_underscores as underscored

TOLERANCE = 1e-6
SELF = [f"blocks.{layer}.self_attn.{name}" for layer in range(LAYERS) for name in "qkvo"]
CROSS = [f"blocks.{layer}.cross_attn.{name}" for layer in range(LAYERS) for name in "qkvo"]
FEED_FORWARD = [f"blocks.{layer}.ffn.{name}" for layer in range(LAYERS) for name in (0, 2)]
BLOCKS = SELF + CROSS + FEED_FORWARD
EMBEDDINGS = [
    *(f"{name}.{layer}" for name in ("text_embedding", "time_embedding") for layer in (0, 2)),
    "time_projection.1",
    "head.head",
]
IMAGE = [f"blocks.{layer}.cross_attn.{name}" for layer in range(LAYERS) for name in ("k_img", "v_img")]
IMAGE_EMBEDDING = ["img_emb.proj.1", "img_emb.proj.3"]
COMFY, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")


def diffusers_fused(path: Path, transformer: Any, strength: float = 1.0) -> Tensors:
    """The same by diffusers: loaded into its pipeline, fused and unloaded."""
    import diffusers

    kind, parts = {
        "WanTransformer3DModel": ("WanPipeline", ("tokenizer", "text_encoder", "vae", "scheduler")),
        "HunyuanVideoTransformer3DModel": (
            "HunyuanVideoPipeline",
            ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae", "scheduler"),
        ),
    }[type(transformer).__name__]
    pipeline = getattr(diffusers, kind)(transformer=copy.deepcopy(transformer), **dict.fromkeys(parts))
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora(components=["transformer"], lora_scale=strength)
    pipeline.unload_lora_weights()
    state: Tensors = pipeline.transformer.state_dict()
    return state


def assert_same(ours: Tensors, theirs: Tensors, base: Tensors, *, except_for: tuple[str, ...] = ()) -> None:
    """Every parameter is that of diffusers, and some of them are not those of the base."""
    assert ours.keys() == theirs.keys()
    differences = {name: float((ours[name] - theirs[name]).detach().abs().max()) for name in ours}
    wrong = {name: value for name, value in differences.items() if not value <= TOLERANCE and name not in except_for}
    assert not wrong
    assert any(not torch.equal(ours[name], base[name]) for name in ours)


@pytest.fixture
def generator() -> torch.Generator:
    return seeded()


@pytest.fixture
def wan(generator: torch.Generator) -> Any:
    return model("WanTransformer3DModel", generator, **WAN)


@pytest.fixture
def wan_image(generator: torch.Generator) -> Any:
    return model("WanTransformer3DModel", generator, **WAN_IMAGE)


@pytest.fixture
def hunyuan_video(generator: torch.Generator) -> Any:
    return model("HunyuanVideoTransformer3DModel", generator, **HUNYUAN_VIDEO)


@pytest.mark.parametrize("endings", [COMFY, PEFT], ids=["down, up", "A, B"])
@pytest.mark.parametrize("with_alpha", [False, True], ids=["no alpha", "alpha"])
@pytest.mark.parametrize("strength", [1.0, 0.37])
def test_comfy_layout(
    wan: Any, generator: torch.Generator, tmp_path: Path, endings: tuple[str, str], with_alpha: bool, strength: float
) -> None:
    writer = Writer(wan, generator)
    tensors = writer.low_rank(BLOCKS, *endings) | writer.differences(BLOCKS)
    if with_alpha:
        tensors |= writer.alphas(BLOCKS)
    path = save(tmp_path / "comfy.safetensors", tensors, "diffusion_model.")
    assert_same(fused(path, wan, strength), diffusers_fused(path, wan, strength), wan.state_dict())


def test_embeddings_and_head(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    writer = Writer(wan, generator)
    modules = BLOCKS + EMBEDDINGS
    tensors = writer.low_rank(modules, *COMFY) | writer.differences(modules)
    path = save(tmp_path / "all.safetensors", tensors, "diffusion_model.")
    report = lora_file(path, wan).report
    assert not report.unused and len(report.used) == len(tensors)
    assert_same(fused(path, wan, 0.5), diffusers_fused(path, wan, 0.5), wan.state_dict())


def test_a_whole_difference_of_the_head(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    """As in the distilled LoRAs of A14B; diffusers makes a low rank of it whose up matrix is the identity."""
    writer = Writer(wan, generator)
    tensors = writer.low_rank(BLOCKS, *COMFY) | writer.differences(["head.head"], ".diff")
    tensors |= writer.differences(["head.head"])
    path = save(tmp_path / "head.safetensors", tensors, "diffusion_model.")
    assert_same(fused(path, wan), diffusers_fused(path, wan), wan.state_dict())


def test_differences_that_diffusers_drops(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    """It drops `.diff` of norms and of the patch embedding, and `.diff_m`, which is of the modulation."""
    writer = Writer(wan, generator)
    norms = [f"blocks.0.{name}" for name in ("norm3", "self_attn.norm_q", "cross_attn.norm_k")]
    read = writer.low_rank(BLOCKS, *COMFY)
    dropped = writer.differences([*norms, "patch_embedding"], ".diff") | writer.differences(["blocks.0.norm3"])
    dropped |= {"blocks.1.diff_m": writer.random(1, 6, 32), "head.diff_m": writer.random(1, 2, 32)}
    path = save(tmp_path / "dropped.safetensors", read | dropped, "diffusion_model.")
    base, ours, theirs = wan.state_dict(), fused(path, wan, 0.5), diffusers_fused(path, wan, 0.5)
    added = {
        "blocks.0.norm2.weight": "blocks.0.norm3.diff",
        "blocks.0.norm2.bias": "blocks.0.norm3.diff_b",
        "blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.norm_q.diff",
        "blocks.0.attn2.norm_k.weight": "blocks.0.cross_attn.norm_k.diff",
        "patch_embedding.weight": "patch_embedding.diff",
        "blocks.1.scale_shift_table": "blocks.1.diff_m",
        "scale_shift_table": "head.diff_m",
    }
    assert_same(ours, theirs, base, except_for=tuple(added))
    for name, key in added.items():
        torch.testing.assert_close(ours[name], base[name] + 0.5 * dropped[key], rtol=0, atol=TOLERANCE)


def test_a_convolution(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    """diffusers refuses the whole file; ComfyUI multiplies the flattened matrices."""
    writer = Writer(wan, generator)
    tensors = writer.low_rank(["patch_embedding"], *COMFY) | writer.alphas(["patch_embedding"])
    path = save(tmp_path / "patch.safetensors", tensors, "diffusion_model.")
    with pytest.raises(ValueError):
        diffusers_fused(path, wan)
    down, up, alpha = (tensors[f"patch_embedding{end}"] for end in (*COMFY, ".alpha"))
    expected = wan.patch_embedding.weight + (alpha / 4 * up.flatten(1) @ down.flatten(1)).view_as(
        wan.patch_embedding.weight
    )
    torch.testing.assert_close(fused(path, wan)["patch_embedding.weight"], expected, rtol=0, atol=TOLERANCE)


def test_underscores(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    writer = Writer(wan, generator)
    path = save(tmp_path / "musubi.safetensors", underscored(writer.low_rank(BLOCKS, *COMFY) | writer.alphas(BLOCKS)))
    assert_same(fused(path, wan, 0.8), diffusers_fused(path, wan, 0.8), wan.state_dict())


def diffusers_names(writer: Writer, modules: list[str]) -> list[str]:
    return [rows[0].module for rows in map(writer.names.find, modules) if rows is not None]


@pytest.mark.parametrize("root", [False, True], ids=["alpha / rank", "alpha / root of rank"])
def test_peft_with_its_record(wan: Any, generator: torch.Generator, tmp_path: Path, root: bool) -> None:
    """Alpha is in the metadata that diffusers saves beside the tensors."""
    writer = Writer(wan, generator)
    modules = diffusers_names(writer, BLOCKS)
    config = {
        "r": 4,
        "lora_alpha": 6,
        "alpha_pattern": {"blocks.1.attn1.to_q": 3, "ffn.net.2": 10},
        "target_modules": modules,
        "use_rslora": root,
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    path = save(tmp_path / "peft.safetensors", writer.low_rank(modules, *PEFT), "transformer.", metadata)
    assert_same(fused(path, wan, 0.6), diffusers_fused(path, wan, 0.6), wan.state_dict())


def test_peft_without_a_record_and_other_prefixes(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    """diffusers reads the prefix `transformer.` alone; the others are the same weights under other names."""
    writer = Writer(wan, generator)
    tensors = writer.low_rank(diffusers_names(writer, BLOCKS + EMBEDDINGS), *PEFT)
    path = save(tmp_path / "peft.safetensors", tensors, "transformer.")
    ours = fused(path, wan, -0.5)
    assert_same(ours, diffusers_fused(path, wan, -0.5), wan.state_dict())
    for prefix in ("", "diffusion_model.", "base_model.model.", "model.diffusion_model."):
        other = save(tmp_path / "other.safetensors", tensors, prefix)
        same = fused(other, wan, -0.5)
        assert all(torch.equal(ours[name], same[name]) for name in ours)


def test_an_adapter_folder_of_peft(wan: Any, generator: torch.Generator, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=10, target_modules=["to_q", "to_out.0", "ffn.net.2"], init_lora_weights=False)
    wrapped = get_peft_model(copy.deepcopy(wan), config)
    wrapped.save_pretrained(tmp_path)
    expected = wrapped.merge_and_unload().state_dict()
    assert_same(fused(tmp_path / "adapter_model.safetensors", wan), expected, wan.state_dict())


def test_image_to_video(wan_image: Any, generator: torch.Generator, tmp_path: Path) -> None:
    writer = Writer(wan_image, generator)
    modules = BLOCKS + IMAGE + IMAGE_EMBEDDING
    tensors = writer.low_rank(modules, *COMFY) | writer.differences(modules)
    path = save(tmp_path / "i2v.safetensors", tensors, "diffusion_model.")
    # Its converter reads an alpha of the blocks alone, and biases of the image embedding.
    assert_same(fused(path, wan_image, 0.7), diffusers_fused(path, wan_image, 0.7), wan_image.state_dict())


def test_a_text_to_video_lora_on_an_image_model(wan_image: Any, generator: torch.Generator, tmp_path: Path) -> None:
    """The image projections are left alone; diffusers adds zeros to them."""
    writer = Writer(wan_image, generator)
    path = save(tmp_path / "t2v.safetensors", writer.low_rank(BLOCKS, *COMFY), "diffusion_model.")
    ours = fused(path, wan_image)
    assert_same(ours, diffusers_fused(path, wan_image), wan_image.state_dict())
    assert torch.equal(ours["blocks.0.attn2.add_k_proj.weight"], wan_image.blocks[0].attn2.add_k_proj.weight)


def test_an_image_lora_on_a_text_model(wan: Any, wan_image: Any, generator: torch.Generator, tmp_path: Path) -> None:
    """The keys of modules that this model lacks are named; the others are used. PEFT drops them, too."""
    tensors = Writer(wan_image, generator).low_rank(BLOCKS + IMAGE + IMAGE_EMBEDDING, *COMFY)
    path = save(tmp_path / "i2v.safetensors", tensors, "diffusion_model.")
    report = lora_file(path, wan).report
    assert len(report.unused) == 2 * len(IMAGE + IMAGE_EMBEDDING) and len(report.used) == 2 * len(BLOCKS)
    assert set(report.unused.values()) == {"the model has no such module"}
    assert "12 keys not used, the model has no such module: diffusion_model.blocks.0.cross_attn.k_img" in str(report)
    assert_same(fused(path, wan), diffusers_fused(path, wan), wan.state_dict())


# -- the other family --------------------------------------------------------------------------------------------------

DUAL = [
    f"double_blocks.0.{stream}_{name}"
    for stream in ("img", "txt")
    for name in ("attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2", "mod.linear")
]
SINGLE = ["single_blocks.0.linear2", "single_blocks.0.modulation.linear"]
AROUND = [
    "img_in.proj",
    *(f"{name}.mlp.{layer}" for name in ("time_in", "guidance_in") for layer in (0, 2)),
    "vector_in.in_layer",
    "txt_in.input_embedder",
    "txt_in.t_embedder.mlp.0",
    "txt_in.c_embedder.linear_1",
    "txt_in.individual_token_refiner.blocks.0.self_attn_proj",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1",
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1",
    "final_layer.linear",
]
REFINER_QKV = "txt_in.individual_token_refiner.blocks.0.self_attn_qkv"
SINGLE_QKV = "single_blocks.0.linear1"
FINAL = "final_layer.adaLN_modulation.1"


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model."])
def test_joined_matrices(hunyuan_video: Any, generator: torch.Generator, tmp_path: Path, prefix: str) -> None:
    writer = Writer(hunyuan_video, generator)
    tensors = writer.low_rank(DUAL + SINGLE + AROUND, *PEFT)
    path = save(tmp_path / "joined.safetensors", tensors, prefix)
    assert not lora_file(path, hunyuan_video).report.unused
    assert_same(fused(path, hunyuan_video, 0.7), diffusers_fused(path, hunyuan_video, 0.7), hunyuan_video.state_dict())
    kohya = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value for key, value in tensors.items()}
    same = fused(save(tmp_path / "kohya.safetensors", underscored(kohya)), hunyuan_video, 0.7)
    ours = fused(path, hunyuan_video, 0.7)
    assert all(torch.equal(ours[name], same[name]) for name in ours)


def test_joined_matrices_that_diffusers_gets_wrong(
    hunyuan_video: Any, generator: torch.Generator, tmp_path: Path
) -> None:
    """It cuts down matrices as if they were weights, and the single-stream one at a width of 3072 whatever the model.

    So what is compared here is its converter of checkpoints, on the product that the file stands for.
    """
    writer = Writer(hunyuan_video, generator)
    width, hidden = 32, 4 * 32
    tensors = writer.low_rank([REFINER_QKV, SINGLE_QKV, FINAL], *PEFT)
    path = save(tmp_path / "joined.safetensors", tensors)
    base, ours = hunyuan_video.state_dict(), fused(path, hunyuan_video)

    def product(module: str) -> Tensor:
        return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]

    block, refiner = "single_transformer_blocks.0.", "context_embedder.token_refiner.refiner_blocks.0.attn."
    parts = dict(
        zip(
            [f"{block}{name}.weight" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
            product(SINGLE_QKV).split([width, width, width, hidden]),
            strict=True,
        )
    )
    parts |= dict(
        zip(
            [f"{refiner}{name}.weight" for name in ("to_q", "to_k", "to_v")], product(REFINER_QKV).chunk(3), strict=True
        )
    )
    shift, scale = product(FINAL).chunk(2)
    parts["norm_out.linear.weight"] = torch.cat([scale, shift])
    assert {name for name in ours if not torch.equal(ours[name], base[name])} == parts.keys()
    for name, difference in parts.items():
        torch.testing.assert_close(ours[name], base[name] + difference, rtol=0, atol=TOLERANCE)


def test_diffusers_own_layout(hunyuan_video: Any, generator: torch.Generator, tmp_path: Path) -> None:
    writer = Writer(hunyuan_video, generator)
    modules = ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "x_embedder.proj"]
    path = save(tmp_path / "peft.safetensors", writer.low_rank(modules, *PEFT), "transformer.")
    assert_same(fused(path, hunyuan_video), diffusers_fused(path, hunyuan_video), hunyuan_video.state_dict())


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_a_transformer_whose_pipeline_loads_no_lora(generator: torch.Generator, tmp_path: Path) -> None:
    """diffusers' transformer does, by its own names; those of the authors are the same weights."""
    transformer = model("HunyuanVideo15Transformer3DModel", generator, **HUNYUAN_VIDEO_15)
    authors = ["double_blocks.0.img_attn_q", "double_blocks.0.txt_mlp.fc1", "time_r_in.mlp.0", "byt5_in.fc2"]
    writer = Writer(transformer, generator)
    by_authors = writer.low_rank(authors, *PEFT)
    renamed = dict(zip(authors, diffusers_names(writer, authors), strict=True))
    tensors = {f"{ours}{end}": by_authors[f"{theirs}{end}"] for theirs, ours in renamed.items() for end in PEFT}
    path = save(tmp_path / "peft.safetensors", tensors, "transformer.")
    reference = copy.deepcopy(transformer)
    reference.load_lora_adapter({f"transformer.{key}": value for key, value in tensors.items()}, prefix="transformer")
    reference.fuse_lora(lora_scale=0.5)
    reference.unload_lora()
    ours = fused(path, transformer, 0.5)
    assert_same(ours, reference.state_dict(), transformer.state_dict())
    same = fused(save(tmp_path / "authors.safetensors", by_authors, "diffusion_model."), transformer, 0.5)
    assert all(torch.equal(ours[name], same[name]) for name in ours)
