# SPDX-License-Identifier: Apache-2.0
"""The authors' names of modules, against diffusers' converters of whole checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model.families import families, get_family
from vorta_trt.model.lora.keys import ModuleNames, Part, of_text_encoder, other_method, split_key

# Widths of real models: one of diffusers' converters cuts at a fixed one.
CONFIGS: dict[str, dict[str, Any]] = {
    "wan": {"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
    "hunyuan_video": {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
    "hunyuan_video_15": {"num_layers": 1, "num_refiner_layers": 1, "use_meanflow": True},
}
WITH_CONVERTERS = ("wan", "hunyuan_video")
NOT_CONVERTED = {"img_emb.emb_pos"}  # its converter leaves this name as it is


def on_meta(family: str) -> Any:
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, get_family(family).transformer_class)(**CONFIGS[family])


def converted(family: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders import single_file_utils

    done: dict[str, Tensor] = getattr(single_file_utils, f"convert_{family}_transformer_to_diffusers")(dict(weights))
    return done


@pytest.mark.parametrize("family", WITH_CONVERTERS)
def test_authors_names_are_those_that_diffusers_converts(family: str) -> None:
    """Each row of an authors' weight is numbered, and must arrive where the names say."""
    model = on_meta(family)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    authors = get_family(family).authors_names(model.config)
    names = ModuleNames(get_family(family), authors, shapes)
    for module, several in authors.items():
        if module in NOT_CONVERTED:
            continue
        parameters = [names.parameter(rows.module) for rows in several]
        assert all(parameters), (module, several)
        ours: dict[str, list[Tensor | None]] = {}
        source = 0
        for rows, parameter in zip(several, parameters, strict=True):
            assert parameter is not None
            count = shapes[parameter][0] // rows.parts
            ours.setdefault(parameter, [None] * rows.parts)[rows.part] = torch.arange(source, source + count)
            source += count
        key = module if parameters[0] == several[0].module else f"{module}.weight"
        theirs = converted(family, {key: torch.arange(source)})
        assert theirs.keys() == ours.keys(), module
        for parameter, numbers in theirs.items():
            parts = [part for part in ours[parameter] if part is not None]
            assert torch.equal(numbers, torch.cat(parts)), (module, parameter)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_weight_has_one_name_in_every_layout(family: str) -> None:
    model = on_meta(family)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    authors = get_family(family).authors_names(model.config)
    names = ModuleNames(get_family(family), authors, shapes)
    named = [rows for several in authors.values() for rows in several]
    assert len(set(named)) == len(named)  # twice in no layout
    weights = {name for name in shapes if not name.endswith(".bias")}
    assert {names.parameter(rows.module) for rows in named} == weights
    modules = {name.removesuffix(".weight") for name in weights}
    for module in {*modules, *authors}:
        rows = names.find(module)
        assert rows is not None and (module in modules or rows == authors[module])
        assert names.find("lora_unet_" + module.replace(".", "_")) == rows, "ambiguous with underscores"
        for prefix in ("diffusion_model.", "transformer.", "base_model.model."):
            assert names.find(prefix + module) == rows
    assert names.find("transformer.down_blocks.0.attentions.0.proj_in") is None
    assert names.find("lora_unet_input_blocks_1_1_proj_in") is None


def test_a_family_without_a_table_takes_diffusers_names() -> None:
    names = ModuleNames(families()[0], {}, ["proj_out.weight", "proj_out.bias", "table"])
    assert names.find("transformer.proj_out") is not None and names.find("head.head") is None
    assert names.parameter("table") == "table" and names.parameter("proj_out", bias=True) == "proj_out.bias"
    assert names.parameter("proj_in") is None


def test_the_timestep_embedder_has_names() -> None:
    """The routers see what it gives, so a LoRA may change routes: it must be found there."""
    for family in families():
        if family.name not in CONFIGS:
            continue
        targets = [
            rows.module for several in family.authors_names(on_meta(family.name).config).values() for rows in several
        ]
        assert any(target.startswith(family.always_loaded) for target in targets)


@pytest.mark.parametrize(
    ("key", "module", "part"),
    [
        ("diffusion_model.a.b.lora_down.weight", "diffusion_model.a.b", Part.DOWN),
        ("lora_unet_a_b.lora_up.weight", "lora_unet_a_b", Part.UP),
        ("lora_unet_a_b.alpha", "lora_unet_a_b", Part.ALPHA),
        ("transformer.a.lora_A.weight", "transformer.a", Part.DOWN),
        ("a.lora_B.weight", "a", Part.UP),
        ("a.lora_B.bias", "a", Part.UP_BIAS),
        ("a.lora_A.default.weight", "a", Part.DOWN),
        ("a.lora.up.weight", "a", Part.UP),
        ("a.diff", "a", Part.WEIGHT),
        ("a.diff_b", "a", Part.BIAS),
        ("a.diff_m", "a.modulation", Part.WEIGHT),
    ],
)
def test_endings(key: str, module: str, part: Part) -> None:
    assert split_key(key) == (module, part)


def test_what_is_no_lora_of_a_transformer() -> None:
    assert split_key("blocks.0.attn1.to_q.weight") is None
    assert of_text_encoder("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha")
    assert other_method("lora_unet_blocks_0_ffn_0.lokr_w1") == "LoKr"
    assert other_method("blocks.0.attn1.to_q.dora_scale") == "DoRA"
    assert other_method("blocks.0.attn1.to_q.lora_A.weight") is None
