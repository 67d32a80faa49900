# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as they come: caches, single files, the authors' and ComfyUI's names, variants, float8, mixed types."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vorta_trt.export.describe import describe
from vorta_trt.model import AttentionGeometry, CheckpointReader, RoutedTransformer
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.original_layout import config_of, converted
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.safetensors_files import INDEX, WEIGHTS

from . import original_names

SIZES = {"layers": 2, "heads": 1, "head_dim": 128, "ffn_dim": 64, "text_dim": 32, "channels": 4, "freq_dim": 32}
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("layouts") / "Tiny-Diffusers", "wan", **SIZES)


@pytest.fixture(scope="module")
def state(diffusers_folder: Path) -> dict[str, Tensor]:
    return load_file(diffusers_folder / "transformer" / WEIGHTS)


def theirs(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """In the authors' layout."""
    return {prefix + original_names.wan(name): tensor for name, tensor in state.items()}


def write_shards(folder: Path, tensors: Mapping[str, Tensor], stem: str = WEIGHTS.removesuffix(".safetensors")) -> None:
    """Two shards with their index."""
    names = sorted(tensors)
    where: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        where.update(dict.fromkeys(part, file))
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_authors_folder(folder: Path, state: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    config = {"_class_name": "WanModel", "model_type": "t2v", "num_heads": 1, "eps": 1e-6, "dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, theirs(state))
    return folder


def write_cache(repository: Path, content: Path) -> Path:
    """What `hf download` makes: files are links into blobs."""
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    for folder in (blobs, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    files = (path for path in content.rglob("*") if path.is_file())
    for number, file in enumerate(files):
        link = snapshot / file.relative_to(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / f"{number:064x}")
        link.symlink_to(blobs / f"{number:064x}")
    return repository


def single(path: Path, tensors: Mapping[str, Tensor], **options: Any) -> Path:
    save_file(dict(tensors), path, **options)
    return path


LAYOUTS: dict[str, Callable[[Path, Path, dict[str, Tensor]], Path]] = {
    "cache": lambda here, folder, state: write_cache(here / "models--Owner--Tiny", folder),
    "snapshot": lambda here, folder, state: write_cache(here / "models--Owner--Tiny", folder) / "snapshots/0123abcd",
    "file without config": lambda here, folder, state: single(here / "tiny.safetensors", state),
    "file with config": lambda here, folder, state: folder / "transformer" / WEIGHTS,
    "comfyui, beside diffusers' config": lambda here, folder, state: single(
        Path(shutil.copy(folder / "transformer" / "config.json", here)).with_name("wan.safetensors"), theirs(state)
    ),
    "comfyui": lambda here, folder, state: single(here / "wan2.1_t2v.safetensors", theirs(state)),
    "comfyui, alone in a folder": lambda here, folder, state: single(here / "wan.safetensors", theirs(state)).parent,
    "comfyui, all in one": lambda here, folder, state: single(
        here / "all.safetensors", theirs(state, PREFIX) | {"vae.conv1.weight": torch.ones(2)}
    ),
    "other prefix": lambda here, folder, state: single(here / "a.safetensors", theirs(state, "diffusion_model.")),
    "authors": lambda here, folder, state: write_authors_folder(here / "Wan2.1-T2V", state),
    "authors, the index": lambda here, folder, state: write_authors_folder(here / "Wan2.1-T2V", state) / INDEX,
    "authors, in the cache": lambda here, folder, state: write_cache(
        here / "models--Owner--Wan", write_authors_folder(here / "original", state)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_diffusers_does(
    layout: str, tmp_path: Path, diffusers_folder: Path, state: dict[str, Tensor]
) -> None:
    path = LAYOUTS[layout](tmp_path, diffusers_folder, state)
    with CheckpointReader(path) as reader, CheckpointReader(diffusers_folder) as right:
        names = {name for name in right.config if not name.startswith("_")}
        as_lists = [json.loads(json.dumps({name: part.config[name] for name in names})) for part in (reader, right)]
        assert as_lists[0] == as_lists[1] and reader.family == "wan"
        assert reader.names() == right.names() == sorted(state)
        for name, tensor in state.items():
            assert reader.shape(name) == tuple(tensor.shape) and reader.stored_type(name) == right.stored_type(name)
            assert torch.equal(reader.tensor(name), tensor), name
    on_disk = RoutedTransformer.from_pretrained(path, materialize=False)
    assert not on_disk.materialized
    for name in ("blocks.1.attn2.to_k.weight", "blocks.0.norm2.bias", "scale_shift_table"):
        assert torch.equal(on_disk.load_parameter(name), state[name].float())


def test_diffusers_converts_to_the_same(tmp_path: Path, diffusers_folder: Path, state: dict[str, Tensor]) -> None:
    from diffusers import WanTransformer3DModel

    file = single(tmp_path / "wan.safetensors", theirs(state))
    model = WanTransformer3DModel.from_single_file(str(file), config=str(diffusers_folder / "transformer"))
    with CheckpointReader(file) as reader:
        assert reader.names() == sorted(model.state_dict())
        assert all(torch.equal(reader.tensor(name), value) for name, value in model.state_dict().items())


def test_names_of_checkpoints(tmp_path: Path, diffusers_folder: Path, state: dict[str, Tensor]) -> None:
    """Calibrated routes and published coefficients belong to a checkpoint by this name."""
    cache = write_cache(tmp_path / "models--Owner--Tiny", diffusers_folder)
    snapshot = cache / "snapshots" / "0123abcd"
    inside = snapshot / "transformer" / WEIGHTS
    file = single(tmp_path / "fine-tuned.safetensors", theirs(state))
    names = {cache: "Tiny", snapshot: "Tiny", inside: "Tiny", inside.parent: "Tiny", file: "fine-tuned.safetensors"}
    folder = diffusers_folder / "transformer"
    names |= dict.fromkeys((diffusers_folder, folder, folder / WEIGHTS), "Tiny-Diffusers")
    for path, name in names.items():
        assert RoutedTransformer.from_pretrained(path, materialize=False).checkpoint_name == name


def test_snapshots_without_main(tmp_path: Path, diffusers_folder: Path) -> None:
    cache = write_cache(tmp_path / "models--Owner--Tiny", diffusers_folder)
    shutil.rmtree(cache / "refs")
    CheckpointReader(cache).close()  # there is one
    (cache / "snapshots" / "4567").mkdir()
    with pytest.raises(CheckpointError, match=r"with 2 snapshots \(0123abcd, 4567\) and no refs/main"):
        CheckpointReader(cache)


def test_the_authors_folders_of_two_experts(tmp_path: Path, state: dict[str, Tensor]) -> None:
    low = {name: 2 * tensor for name, tensor in state.items()}
    write_authors_folder(tmp_path / "A14B" / "high_noise_model", state)
    write_authors_folder(tmp_path / "A14B" / "low_noise_model", low)
    for component, right in (("transformer", state), ("transformer_2", low)):
        with CheckpointReader(tmp_path / "A14B", component) as reader:
            assert all(torch.equal(reader.tensor(name), tensor) for name, tensor in right.items())
    links = tmp_path / "links"  # to two files of ComfyUI
    for name, right in (("high_noise", state), ("low_noise", low)):
        file = single(tmp_path / f"wan2.2_t2v_{name}_14B.safetensors", theirs(right))
        (links / f"{name}_model").mkdir(parents=True)
        (links / f"{name}_model" / file.name).symlink_to(file)
    model = RoutedTransformer.from_pretrained(links, component="transformer_2")
    assert (model.component, model.boundary_ratio) == ("transformer_2", 0.875)
    assert torch.equal(model.scale_shift_table, low["scale_shift_table"])
    shutil.rmtree(tmp_path / "A14B" / "low_noise_model")
    with pytest.raises(FileNotFoundError, match="A14B: lacks transformer_2/, .* layout low_noise_model/"):
        CheckpointReader(tmp_path / "A14B", "transformer_2")


def test_one_of_two_experts_is_not_taken_for_the_other(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for name, factor in (("high_noise_model", 1), ("low_noise_model", 2)):
        write_authors_folder(tmp_path / name, {key: factor * tensor for key, tensor in state.items()})
    for component, factor in (("transformer", 1), ("transformer_2", 2)):  # the first finds the second beside it
        with CheckpointReader(tmp_path / "high_noise_model", component) as reader:
            assert torch.equal(reader.tensor("proj_out.bias"), factor * state["proj_out.bias"])
    with pytest.raises(CheckpointError, match="low_noise_model: is the second of two experts; give the folder of both"):
        CheckpointReader(tmp_path / "low_noise_model")
    with pytest.raises(CheckpointError, match="index.json: is a file of one of two experts; give the folder of both"):
        CheckpointReader(tmp_path / "high_noise_model" / INDEX)


CLIP = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"num_attention_heads": 12, "ffn_dim": 8960}, id="2.1 T2V 1.3B"),
        pytest.param({}, id="T2V 14B"),
        pytest.param(CLIP, id="2.1 I2V 14B"),
        pytest.param(CLIP | {"pos_embed_seq_len": 514}, id="2.1 FLF2V 14B"),
        pytest.param({"in_channels": 36}, id="2.2 I2V A14B"),
        pytest.param(
            {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}, id="2.2 TI2V 5B"
        ),
    ],
)
def test_the_published_models_by_their_shapes(config: dict[str, Any]) -> None:
    """Names and config of every model, of two layers; the weights are never made."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(**config, num_layers=2)
    family, weights = converted(Shapes(theirs(model.state_dict())), Path("x"))
    shapes = {name: weights.shape(name) for name in weights.names()}
    found = config_of(family, shapes, {}, Path("x"))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found | {"patch_size": (1, 2, 2)} == {"_class_name": "WanTransformer3DModel"} | {
        name: value for name, value in model.config.items() if not name.startswith("_") and name != "rope_max_seq_len"
    }
    family.check_config({**model.config, **found}, "the test")


def test_models_of_no_family() -> None:
    shapes = {"head.modulation": (1, 2, 5120), "patch_embedding.weight": (5120, 16, 1, 2, 2)}
    shapes["vace_blocks.0.after_proj.bias"] = (5120,)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match="x: by the names of its tensors diffusers takes it for 'wan-vace-14B'"):
        converted(Shapes(tensors), Path("x"))


class Shapes:
    """Weights of which most are shapes alone."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def stored_type(self, name: str) -> str:
        return "BF16"

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("channels", "guidance"), [(16, True), (33, False)])
def test_joined_weights_are_cut(channels: int, guidance: bool) -> None:
    """Of the published widths, which diffusers' converter has written into it; only biases have values."""
    from diffusers import HunyuanVideoTransformer3DModel

    config = {"in_channels": channels, "guidance_embeds": guidance, "num_refiner_layers": 1}
    config["image_condition_type"] = None if channels == 16 else "latent_concat"
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, **config)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) if name.endswith("bias") else tensor
        for name, tensor in model.state_dict().items()
    }
    family, weights = converted(Shapes(original_names.hunyuan_video(state)), Path("x"))
    shapes = {name: weights.shape(name) for name in weights.names()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = config_of(family, shapes, {}, Path("x"))
    assert {name: model.config[name] for name in found if name != "_class_name"} == {
        name: value for name, value in found.items() if name != "_class_name"
    }
    for name, tensor in state.items():
        if not tensor.is_meta:
            assert torch.equal(weights.tensor(name), tensor), name


def test_two_models_that_share_their_names() -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=0, num_refiner_layers=1)
    family, weights = converted(Shapes(original_names.hunyuan_video(model.state_dict())), Path("x"))
    with pytest.raises(CheckpointError, match="no single-stream blocks, as in version 1.5"):
        config_of(family, {name: weights.shape(name) for name in weights.names()}, {}, Path("x"))


# -- which files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(diffusers_folder: Path, tmp_path: Path) -> Path:
    """A transformer's folder to change."""
    return Path(shutil.copytree(diffusers_folder / "transformer", tmp_path / "transformer"))


def test_variants(folder: Path, state: dict[str, Tensor]) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    single(folder / "diffusion_pytorch_model.fp16.safetensors", half)
    with CheckpointReader(folder) as whole, CheckpointReader(folder, variant="fp16") as variant:
        assert (whole.stored_type("proj_out.bias"), variant.stored_type("proj_out.bias")) == ("F32", "F16")
    model = RoutedTransformer.from_pretrained(folder, variant="fp16")
    assert torch.equal(model.proj_out.bias, half["proj_out.bias"].float())
    with pytest.raises(FileNotFoundError, match=r"neither diffusion_pytorch_model.bf16.safetensors.*the variant, fp16"):
        CheckpointReader(folder, variant="bf16")
    with pytest.raises(CheckpointError, match="is one file, and variant 'fp16' chooses among"):
        CheckpointReader(folder / WEIGHTS, variant="fp16")
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="leave the variant out"):
        CheckpointReader(folder, variant="fp16")


def test_variant_of_shards_as_diffusers_writes_it(folder: Path, state: dict[str, Tensor]) -> None:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder, variant="fp16", max_shard_size="200KB")
    assert len(list(folder.glob("*fp16*.safetensors"))) > 1
    (index,) = folder.glob("*.index.fp16.json")
    with CheckpointReader(folder, variant="fp16") as reader, CheckpointReader(index) as same:
        assert reader.names() == same.names()
        assert all(torch.equal(reader.tensor(name), tensor) for name, tensor in state.items())
    with pytest.raises(FileNotFoundError, match="give the variant, fp16"):
        CheckpointReader(folder)


def test_files_that_are_not_chosen_among(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for name in ("one", "two"):
        single(tmp_path / f"{name}.safetensors", theirs(state))
    with pytest.raises(
        CheckpointError, match=r"holds 2 checkpoints \(one.safetensors, two.safetensors\); give the path"
    ):
        CheckpointReader(tmp_path)
    write_shards(tmp_path, theirs(state), "three")
    with pytest.raises(CheckpointError, match="three-00001-of-00002.safetensors: is one of several shards; give the"):
        CheckpointReader(tmp_path / "three-00001-of-00002.safetensors")


def test_config_and_file_of_two_models(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = single(tmp_path / "wan.safetensors", theirs(state))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "HunyuanVideoTransformer3DModel"}))
    with pytest.raises(CheckpointError, match="tensors are those of Wan, and .* is the config of HunyuanVideo"):
        CheckpointReader(file)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "CLIPModel"}))  # of something else in the folder
    CheckpointReader(file).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors | {"vace_blocks.0.after_proj.bias": torch.ones(2)},
            "diffusers does not know the model",  # in this size
        ),
        (lambda tensors: {"conv.weight": torch.ones(2)}, "diffusers does not know the model; must be one of wan-t2v"),
        (lambda tensors: tensors | {"blocks.0.extra.weight": torch.ones(2)}, "first 'blocks.0.extra.weight'"),
        (
            lambda tensors: {name: value for name, value in tensors.items() if name != "time_embedding.0.weight"},
            "not those of a whole Wan transformer .*time_embedder.linear_1.weight",
        ),
        (
            lambda tensors: {name: value for name, value in tensors.items() if name != "blocks.1.ffn.0.bias"},
            "lacks 1 of .* first 'blocks.1.ffn.net.0.proj.bias'",
        ),
        (lambda tensors: tensors | {"blocks.0.self_attn.k.weight": torch.ones(9, 128)}, "k.weight has shape"),
    ],
)
def test_other_tensors_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    file = single(tmp_path / "wan.safetensors", change(theirs(state)))
    with pytest.raises(CheckpointError, match=message):
        RoutedTransformer.from_pretrained(file)


# -- types ------------------------------------------------------------------------------------------------------------


def test_mixed_types(folder: Path, state: dict[str, Tensor]) -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    mixed = {name: tensor.to(types[number % 4]) for number, (name, tensor) in enumerate(state.items())}
    single(folder / WEIGHTS, mixed)
    model = RoutedTransformer.from_pretrained(folder, dtype=torch.bfloat16)
    kept = get_family("wan").float32_modules()
    for name, value in model.named_parameters():
        target = torch.float32 if kept.intersection(name.split(".")) else torch.bfloat16
        assert value.dtype == target and torch.equal(value, mixed[name].to(target)), name


def scaled(state: Mapping[str, Tensor], scale: str, rows: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As ComfyUI stores it, and what it stands for: the weights of the blocks' products in float8 with factors."""
    stored, right = theirs(state), dict(state)
    for name, tensor in state.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2):
            continue
        largest = tensor.abs().amax(dim=1, keepdim=True) if rows else tensor.abs().amax()
        factor = (largest / 448).float()
        value = (tensor / factor).to(torch.float8_e4m3fn)
        old = original_names.wan(name)
        stored[old] = value
        stored[old.removesuffix(".weight") + scale] = factor
        right[name] = value.float() * factor
    return stored, right


@pytest.mark.parametrize("rows", [False, True], ids=["by tensor", "by row"])
@pytest.mark.parametrize("newer", [False, True], ids=["scale_weight", "weight_scale"])
def test_float8_is_multiplied_out(
    newer: bool, rows: bool, tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    stored, right = scaled(state, ".weight_scale" if newer else ".scale_weight", rows)
    layer = "blocks.0.self_attn.q"
    if newer:
        text = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        stored |= {f"{layer}.comfy_quant": text, f"{layer}.input_scale": torch.tensor(0.5)}
    else:
        stored |= {"scaled_fp8": torch.empty(0).to(torch.float8_e4m3fn), f"{layer}.scale_input": torch.tensor(0.5)}
    layers = {layer: {"format": "float8_e4m3fn"}}
    file = tmp_path / "wan_fp8_scaled.safetensors"
    single(file, stored, metadata={"_quantization_metadata": json.dumps({"layers": layers})} if newer else None)
    with caplog.at_level(logging.WARNING):
        model = RoutedTransformer.from_pretrained(file)
        RoutedTransformer.from_pretrained(file, materialize=False)
    said = [record.getMessage() for record in caplog.records if "float8" in record.getMessage()]
    assert len(said) == 1 and "20 of 69 tensors are stored in float8, 20 of them with factors" in said[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, right[name].float()), name
    assert model.float8_weights == 20


def test_what_is_exported_says_so(tmp_path: Path, state: dict[str, Tensor], diffusers_folder: Path) -> None:
    file = single(tmp_path / "wan.safetensors", scaled(state, ".scale_weight", False)[0])
    geometry = AttentionGeometry.for_video(9, 64, 96)
    for path, count, words in ((file, 20, "20, multiplied out"), (diffusers_folder, 0, "none")):
        model = RoutedTransformer.from_pretrained(path, geometry=geometry, materialize=False)
        metadata = describe(model, model, "fp32", 23)
        assert metadata.float8_weights == count
        assert metadata.to_metadata_props()["weights in float8"] == words


def test_float8_without_factors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    rounded = {name: tensor.to(torch.float8_e5m2) for name, tensor in state.items() if tensor.ndim == 2}
    model = RoutedTransformer.from_pretrained(single(tmp_path / "wan.safetensors", theirs(dict(state) | rounded)))
    for name, value in model.named_parameters():
        assert torch.equal(value, (rounded.get(name, state[name])).float()), name


Q = "blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{Q}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, "format 'nvfp4'; of the"),
        ({f"{Q}.comfy_quant": torch.tensor([1, 2], dtype=torch.uint8)}, "format None"),
        ({f"{Q}.weight_scale_2": torch.tensor(1.0)}, "weight_scale_2 says a second factor"),
        ({f"{Q}.scale_weight": torch.ones(2, 2)}, r"factor of shape \(2, 2\) for .*one for each of the 128 output"),
        ({f"{Q}.weight": torch.ones(128, 128)}, "is a factor of .*, which is stored as F32; factors are read beside"),
        ({f"{Q}.scale_weight": torch.tensor(float("nan"))}, "holds a factor that is not a positive number"),
        ({f"{Q}.scale_weight": torch.tensor(0.0)}, "holds a factor that is not a positive number"),
        ({"blocks.7.self_attn.q.scale_weight": torch.tensor(1.0)}, "blocks.7.self_attn.q.weight, which is not there"),
    ],
)
def test_other_formats_of_few_bits_are_refused(
    change: dict[str, Tensor], message: str, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    file = single(tmp_path / "wan.safetensors", scaled(state, ".scale_weight", False)[0] | change)
    with pytest.raises(CheckpointError, match=message):
        RoutedTransformer.from_pretrained(file)
