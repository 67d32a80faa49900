# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are not routed, or not whole, are refused by name: the file, the key, its value, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vorta_trt.model import CheckpointReader, RoutedTransformer
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.pipeline_folder import check_pipeline, load_pipeline, vae_config
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline

STEM = "diffusion_pytorch_model"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 28577000000\n"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    sizes = {"layers": 2, "heads": 2, "head_dim": 12, "ffn_dim": 16, "text_dim": 16, "channels": 4, "freq_dim": 16}
    return complete_pipeline(make_checkpoint(folder, "wan", **sizes))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of a whole pipeline, to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def load(folder: Path) -> Any:
    return load_pipeline(folder, get_family("wan"), config_of(folder), torch.float32, purpose="the test")


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "transformer" / "config.json").read_text())
    return config


# -- pipelines of something else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transformer_3": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875},
            r"transformer_3 \(WanTransformer3DModel\), boundary_ratio 0.875, which vorta-trt does not run",
        ),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, r"image_encoder \(CLIPVisionModel\)"),
        ({"new_sampling_switch": 3}, "new_sampling_switch 3"),
    ],
)
def test_what_nobody_runs_is_refused_by_name_wherever_the_folder_is_used(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "model_index.json", **changes)
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    for path in (folder, folder / "transformer", folder / "transformer_2"):
        with pytest.raises(CheckpointError, match=message):
            RoutedTransformer.from_pretrained(path)
        with pytest.raises(CheckpointError, match=message):
            CheckpointReader(path)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_boundary_without_a_second_transformer_is_one_expert(folder: Path) -> None:
    edit(folder / "model_index.json", transformer_2=[None, None], boundary_ratio=0.875, expand_timesteps=False)
    RoutedTransformer.from_pretrained(folder)
    assert load(folder).config.boundary_ratio is None  # diffusers would call the second, which is not there


def test_a_model_of_one_timestep_gets_one_whatever_the_folder_says_of_expanding_it(folder: Path) -> None:
    edit(folder / "model_index.json", expand_timesteps=True)
    RoutedTransformer.from_pretrained(folder)
    assert not load(folder).config.expand_timesteps


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("wan", {"in_channels": 52}, "in_channels 52 and out_channels 16; the other 36 channels .* as of a control"),
        ("wan", {"in_channels": 32}, "in_channels 32 and out_channels 16; the other 16 channels .* as of a control"),
        ("wan", {"in_channels": 15}, "in_channels 15 and out_channels 16; the other 1 channels"),
        ("wan", {"added_kv_proj_dim": 5120}, "image_dim None, added_kv_proj_dim 5120 and 0 channels of a condition"),
        ("wan", {"in_channels": 36, "image_dim": 1280}, "image_dim 1280, added_kv_proj_dim None and 20 channels"),
        ("wan", {"image_dim": 1280, "added_kv_proj_dim": 5120}, "added_kv_proj_dim 5120 and 0 channels"),
        ("wan", {"pos_embed_seq_len": 514}, "pos_embed_seq_len 514 and image_dim None"),
        (
            "wan",
            {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 515},
            "pos_embed_seq_len 515",
        ),
        ("hunyuan_video", {"in_channels": 33}, "in_channels 33 and out_channels 16"),
        ("hunyuan_video", {"image_condition_type": "latent_concat"}, "in_channels 16 .* 33 channels"),
    ],
)
def test_models_of_a_condition_are_refused_by_their_config(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sizes = {"single_layers": 1} if family == "hunyuan_video" else {"ffn_dim": 16}
    make_checkpoint(tmp_path, family, layers=1, heads=1, head_dim=12, **sizes)
    edit(tmp_path / "transformer" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        RoutedTransformer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "WanVACETransformer3DModel"}, "_class_name 'WanVACETransformer3DModel'; must be one of Wan"),
        ({"model_type": "t2v"}, "_class_name None"),
        ({"_class_name": ["WanTransformer3DModel"]}, r"_class_name \['WanTransformer3DModel'\]"),
    ],
)
def test_another_model_says_which(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        RoutedTransformer.from_pretrained(tmp_path)


# -- files of another kind ---------------------------------------------------------------------------------------------


def test_quantised_weights(folder: Path) -> None:
    config = folder / "transformer" / "config.json"
    edit(config, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match="config.json: quantization_config 'bitsandbytes' says .* bfloat16"):
        RoutedTransformer.from_pretrained(folder)
    edit(config, quantization_config=None)
    file = folder / "transformer" / f"{STEM}.safetensors"
    weights = load_file(file)
    weights["blocks.1.attn1.to_q.weight"] = weights["blocks.1.attn1.to_q.weight"].to(torch.int8)
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"blocks.1.attn1.to_q.weight is stored as I8, quantised"):
        RoutedTransformer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["transformer/config.json", f"transformer/{STEM}.safetensors", "model_index.json"])
def test_git_lfs_pointers_of_the_transformer(folder: Path, name: str) -> None:
    (folder / name).write_text(LFS_POINTER)
    with pytest.raises(CheckpointError, match=f"{name}: is a Git LFS pointer .*git lfs pull.*hf download"):
        RoutedTransformer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "text_encoder/model.safetensors"])
def test_git_lfs_pointers_of_the_other_parts(folder: Path, name: str) -> None:
    (folder / name).write_text(LFS_POINTER)
    with pytest.raises(CheckpointError, match=f"{name}: is a Git LFS pointer"):
        load(folder)


def test_single_files(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "wan2.1_t2v_14B_bf16.safetensors"
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, whole)
    with pytest.raises(
        CheckpointError, match="14B_bf16.safetensors: by the names of its tensors diffusers does not know"
    ):
        RoutedTransformer.from_pretrained(whole)
    torch.save({}, tmp_path / "wan.pth")
    with pytest.raises(
        CheckpointError, match=r"is a file \(.pth\) that may run code .*save its tensors as safetensors"
    ):
        RoutedTransformer.from_pretrained(tmp_path / "wan.pth")
    (tmp_path / "wan.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"is a file of quantised weights \(GGUF\)"):
        RoutedTransformer.from_pretrained(tmp_path / "wan.gguf")
    (folder / "transformer" / f"{STEM}.safetensors").rename(folder / "transformer" / "model.gguf")
    with pytest.raises(FileNotFoundError, match="weights there: model.gguf"):
        RoutedTransformer.from_pretrained(folder)


# -- shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(folder: Path) -> Path:
    """The index of a checkpoint in two shards."""
    transformer = folder / "transformer"
    weights = load_file(transformer / f"{STEM}.safetensors")
    (transformer / f"{STEM}.safetensors").unlink()
    names = sorted(weights)
    where = {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"{STEM}-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, transformer / file)
        where |= dict.fromkeys(part, file)
    index = transformer / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_a_sound_index(shards: Path) -> None:
    RoutedTransformer.from_pretrained(shards.parent)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (f"{STEM}-00002-of-00002.safetensors", "-00002-of-00002.safetensors, but it is in .*-00001-of-00002"),
        (3, "to 3; must be the name of a file beside it"),
        ("../elsewhere.safetensors", "must be the name of a file beside it"),
    ],
)
def test_an_index_that_sends_a_tensor_elsewhere(shards: Path, file: Any, message: str) -> None:
    content = json.loads(shards.read_text())
    name = min(content["weight_map"])
    content["weight_map"][name] = file
    shards.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"index.json: sends tensor '{name}' .*{message}"):
        RoutedTransformer.from_pretrained(shards.parent)


def test_an_index_of_a_tensor_that_no_shard_has(shards: Path) -> None:
    content = json.loads(shards.read_text())
    content["weight_map"]["blocks.7.scale_shift_table"] = f"{STEM}-00001-of-00002.safetensors"
    shards.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="'blocks.7.scale_shift_table' .* but no shard has it"):
        RoutedTransformer.from_pretrained(shards.parent)


# -- values of another type --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_layers", [2], "valid integer"),
        ("num_layers", "2", "valid integer"),
        ("num_layers", 2.5, "valid integer"),
        ("num_layers", True, "valid integer"),
        ("num_layers", 0, "positive"),
        ("num_layers", 3000, "3000 blocks in blocks, but the weights are"),
        ("num_layers", 10**9, "at most 100 times the default"),
        ("num_attention_heads", -2, "positive"),
        ("eps", "small", "valid number"),
        ("eps", [1e-6], "valid number"),
        ("eps", float("nan"), "finite"),
        ("patch_size", 2, "valid tuple|valid array"),
        ("patch_size", [1, "2", 2], "valid integer"),
        ("patch_size", [], "empty"),
        ("patch_size", [1, 2], "patch_embedding.weight has shape"),
        ("in_channels", {"a": 1}, "valid integer"),
        ("cross_attn_norm", "yes", "valid boolean"),
        ("qk_norm", 3, "valid string"),
        ("attention_head_dim", 7, "diffusers makes no WanTransformer3DModel of it"),
    ],
)
def test_values_that_the_transformer_does_not_take(folder: Path, name: str, value: Any, message: str) -> None:
    edit(folder / "transformer" / "config.json", **{name: value})
    with pytest.raises(CheckpointError, match=message) as caught:
        RoutedTransformer.from_pretrained(folder)
    assert "transformer" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("z_dim", [4], "valid integer"),
        ("base_dim", "4", "valid integer"),
        ("latents_mean", "zero", "valid (list|array)"),
        ("latents_std", [1.0, "1", 1.0, 1.0], "valid number"),
        ("latents_mean", [0.0, 0.0], "latents_mean has 2 numbers; must have one for each of the 4 channels"),
        ("dim_mult", 1, "valid (list|array)"),
        ("scale_factor_spatial", 16, "one latent stands for 4 frames and 16 pixels"),
    ],
)
def test_values_that_the_vae_does_not_take(folder: Path, name: str, value: Any, message: str) -> None:
    family = get_family("wan")
    edit(folder / "vae" / "config.json", **{name: value})
    with pytest.raises(CheckpointError, match=f"vae/config.json: .*{message}"):
        config = config_of(folder)
        vae_config(check_pipeline(folder, family, config, purpose="the test"), family, config, folder)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        (
            "text_encoder",
            ["transformers", "UMT9EncoderModel"],
            "UMT9EncoderModel'.*: is no class of diffusers",
        ),
        ("vae", ["my_code", "Vae"], "my_code.*: is no class of"),
        ("vae", ["diffusers", 3], r"vae \['diffusers', 3\]: must be a library and a class"),
        ("vae", ["diffusers"], r"vae \['diffusers'\]: must be a library and a class"),
        ("tokenizer", [None, None], "has no tokenizer"),
    ],
)
def test_components_of_an_unknown_class(folder: Path, name: str, entry: Any, message: str) -> None:
    edit(folder / "model_index.json", **{name: entry})
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_component_that_its_library_cannot_load(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", d_model="wide")
    with pytest.raises(CheckpointError, match=r"UMT5EncoderModel cannot be loaded from text_encoder/ \("):
        load(folder)


@pytest.mark.parametrize(
    ("name", "changes", "first"),
    [
        ("vae", {"base_dim": 6}, "weights in vae/ are not those|cannot be loaded from vae"),
        ("vae", {"num_res_blocks": 2}, "weights in vae/ are not those .*, first decoder.up_blocks.0.resnets.2"),
        ("text_encoder", {"d_kv": 16}, "UMT5EncoderModel cannot be loaded from text_encoder"),
        ("text_encoder", {"num_layers": 2}, "weights in text_encoder/ are not those .*, first encoder.block.1"),
    ],
)
def test_weights_that_the_config_does_not_describe_are_not_made_up(
    folder: Path, name: str, changes: dict[str, Any], first: str
) -> None:
    """diffusers and transformers draw what they do not find, and warn: the video would be noise."""
    edit(folder / name / "config.json", **changes)
    with pytest.raises(CheckpointError, match=first):
        load(folder)


def test_a_transformer_of_image_to_video_in_another_folder(tmp_path: Path) -> None:
    """By its channels alone; found out before anything is exported."""
    make_checkpoint(tmp_path, "wan", layers=1, heads=1, head_dim=12, ffn_dim=16, channels=4, image="channels")
    CheckpointReader(tmp_path).close()
    edit(tmp_path / "model_index.json", _class_name="WanPipeline")
    with pytest.raises(CheckpointError, match="is that of a WanImageToVideoPipeline, .* but its .* says WanPipeline"):
        CheckpointReader(tmp_path)


# -- missing files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer", r"its tokenizer lacks tokenizer/tokenizer.json \(or spiece.model.*hf download.*'tokenizer/\*'"),
        ("tokenizer/tokenizer.json", "its tokenizer lacks tokenizer/tokenizer.json"),
        ("text_encoder/model.safetensors", "its text_encoder lacks text_encoder/model.safetensors"),
        ("vae/config.json", "its vae lacks vae/config.json"),
        ("scheduler", "its scheduler lacks scheduler/scheduler_config.json"),
    ],
)
def test_missing_files_are_named(folder: Path, missing: str, message: str) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        check_pipeline(folder, get_family("wan"), config_of(folder), purpose="the test")


def test_a_whole_folder_loads(folder: Path) -> None:
    pipeline = load(folder)
    assert (pipeline.transformer, type(pipeline.vae).__name__) == (None, "AutoencoderKLWan")
    assert not pipeline.vae.training and not pipeline.text_encoder.training
