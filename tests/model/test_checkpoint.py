# SPDX-License-Identifier: Apache-2.0
"""What users hand in: right, and wrong in every way we could think of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, CheckpointReader, RoutedTransformer, load_router
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router
from vorta_trt.model.router_checkpoint import check_router


@pytest.fixture
def checkpoint(pipeline: Any, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(pipeline.checkpoint, tmp_path / "wan"))


@pytest.fixture
def router(pipeline: Any, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(pipeline.router, tmp_path / "router"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -- diffusers folders -------------------------------------------------------------------------------------------------


def test_pipeline_folder_and_transformer_folder(pipeline: Any) -> None:
    with CheckpointReader(pipeline.checkpoint) as whole, CheckpointReader(pipeline.checkpoint / "transformer") as part:
        assert whole.family == part.family == "wan"
        assert whole.folder == part.folder and whole.config == part.config
        assert whole.names() == part.names() and "blocks.0.attn1.to_q.weight" in whole
        assert whole.shape("proj_out.bias") == (16,) == tuple(whole.tensor("proj_out.bias").shape)


def test_sharded_checkpoint_equals_the_whole_one(tmp_path: Path) -> None:
    sizes = {"layers": 2, "heads": 2, "head_dim": 12, "ffn_dim": 16, "text_dim": 8, "channels": 4, "freq_dim": 16}
    make_wan_checkpoint(tmp_path / "whole", **sizes)
    make_wan_checkpoint(tmp_path / "shards", shard_bytes=20_000, **sizes)
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 2
    with CheckpointReader(tmp_path / "whole") as whole, CheckpointReader(tmp_path / "shards") as shards:
        assert whole.names() == shards.names() and whole.config == shards.config
        assert all(torch.equal(whole.tensor(name), shards.tensor(name)) for name in whole.names())


def test_diffusers_loads_the_shards(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    make_wan_checkpoint(tmp_path, layers=1, heads=2, head_dim=12, ffn_dim=16, text_dim=8, shard_bytes=20_000)
    model = WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer")
    with CheckpointReader(tmp_path) as reader:
        assert all(torch.equal(reader.tensor(name), value) for name, value in model.state_dict().items())


def test_diffusers_loads_the_pipeline(pipeline: Any) -> None:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    pipe = WanPipeline.from_pretrained(pipeline.checkpoint, vae=None, text_encoder=None, tokenizer=None)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config.prediction_type == "flow_prediction"
    assert pipe.transformer.config.num_layers == 3


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint .*nowhere: does not exist; download"):
        RoutedTransformer.from_pretrained(tmp_path / "nowhere")


def test_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(
        FileNotFoundError,
        match=r"neither transformer/config.json nor config.json nor weights \(it holds: holi",
    ):
        RoutedTransformer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; give a diffusers pipeline folder, .* or a .safetensors file"):
        RoutedTransformer.from_pretrained(tmp_path / "holiday.jpg")


def test_folder_of_another_model(checkpoint: Path) -> None:
    edit_json(
        checkpoint / "transformer" / "config.json", lambda config: config.update(_class_name="FluxTransformer2DModel")
    )
    with pytest.raises(
        CheckpointError, match="_class_name 'FluxTransformer2DModel'; must be one of WanTransformer3DModel"
    ):
        RoutedTransformer.from_pretrained(checkpoint)


@pytest.mark.parametrize("key", ["image_dim", "added_kv_proj_dim"])
def test_a_model_that_sees_images_by_half(checkpoint: Path, key: str) -> None:
    edit_json(checkpoint / "transformer" / "config.json", lambda config: config.update({key: 1280}))
    with pytest.raises(CheckpointError, match=f"config has .*{key} 1280.* a model that sees images has all three"):
        RoutedTransformer.from_pretrained(checkpoint)


def test_config_that_is_not_json(checkpoint: Path) -> None:
    (checkpoint / "transformer" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: is not valid JSON"):
        RoutedTransformer.from_pretrained(checkpoint)
    (checkpoint / "transformer" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, not list"):
        RoutedTransformer.from_pretrained(checkpoint)


def test_config_and_weights_that_differ(checkpoint: Path) -> None:
    config = checkpoint / "transformer" / "config.json"
    edit_json(config, lambda values: values.update(num_layers=4))
    with pytest.raises(CheckpointError, match="lacks 27 of .*first 'blocks.3"):
        RoutedTransformer.from_pretrained(checkpoint)
    edit_json(config, lambda values: values.update(num_layers=2))
    with pytest.raises(CheckpointError, match="has 27 tensors that its config.json does not describe, first 'blocks.2"):
        RoutedTransformer.from_pretrained(checkpoint)
    edit_json(config, lambda values: values.update(num_layers=3, ffn_dim=48))
    with pytest.raises(CheckpointError, match=r"has shape \(64, 96\), its config.json asks for \(48, 96\)"):
        RoutedTransformer.from_pretrained(checkpoint)


def test_truncated_weights(checkpoint: Path) -> None:
    weights = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        RoutedTransformer.from_pretrained(checkpoint)


def test_missing_weights(checkpoint: Path) -> None:
    weights = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(
        FileNotFoundError, match="weights there: diffusion_pytorch_model.fp16.safetensors.*give the variant, fp16"
    ):
        RoutedTransformer.from_pretrained(checkpoint)


def test_missing_shard(tmp_path: Path) -> None:
    make_wan_checkpoint(tmp_path, layers=1, heads=2, head_dim=12, ffn_dim=16, text_dim=8, shard_bytes=20_000)
    shard = min((tmp_path / "transformer").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of its .* shards, first {shard.name}"):
        RoutedTransformer.from_pretrained(tmp_path)


def test_dtype(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="dtype torch.float64: must be one of torch.float32"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, dtype=torch.float64)


@pytest.mark.parametrize("tau", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number(pipeline: Any, tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau {tau}: must be a number"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, tau=tau)
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, tau=1)
    assert (routed.tau, type(routed.tau)) == (1.0, float)


# -- routers -----------------------------------------------------------------------------------------------------------


def test_the_published_forms(pipeline: Any, router: Path, tmp_path: Path) -> None:
    file = router / "ckpt" / "step-000100" / "router.pt"
    beside = tmp_path / "beside"
    beside.mkdir()
    shutil.copy(file, beside)
    shutil.copy(router / "config.json", beside)
    bare = shutil.copy(file, tmp_path / "router.pt")
    for path in (router, file, beside, beside / "router.pt"):
        loaded = load_router(path)
        assert loaded.family == "wan" and loaded.layers == 3
        assert loaded.geometry() == pipeline.geometry
        routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, path)
        assert routed.geometry == pipeline.geometry and routed.has_router
        assert routed.blocks[1].router.linear.weight.dtype == torch.float32
        for name, tensor in loaded.state_dict.items():
            assert torch.equal(routed.get_parameter(name), tensor.float())
    assert load_router(bare).geometry() is None
    with pytest.raises(ValueError, match="router .*router.pt: has no config.json beside it.*pass geometry="):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, bare)
    assert RoutedTransformer.from_pretrained(pipeline.checkpoint, bare, pipeline.geometry).geometry == pipeline.geometry


def test_geometry_given_wins_over_the_routers(pipeline: Any) -> None:
    other = AttentionGeometry.for_video(17, 64, 96)
    assert RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, other).geometry == other


def test_latest_step_is_taken(router: Path) -> None:
    for step in (20, 1000, 200):
        shutil.copytree(router / "ckpt" / "step-000100", router / "ckpt" / f"step-{step:06d}")
    (router / "ckpt" / "step-009000").mkdir()  # a run that was killed before it saved
    assert load_router(router).path == router / "ckpt" / "step-001000" / "router.pt"


def test_no_router_there(tmp_path: Path, router: Path) -> None:
    with pytest.raises(FileNotFoundError, match="router .*nowhere: does not exist"):
        load_router(tmp_path / "nowhere")
    outer = tmp_path / "outer"
    outer.mkdir()
    router.rename(outer / "train")
    with pytest.raises(FileNotFoundError, match="neither router.pt nor ckpt.*did you mean .*train"):
        load_router(outer)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x02}q\x00.", b"just text"])
def test_corrupt_router(router: Path, content: bytes) -> None:
    (router / "ckpt" / "step-000100" / "router.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="must be a state dict|holds no tensor"):
        load_router(router)


def test_truncated_router(router: Path) -> None:
    file = router / "ckpt" / "step-000100" / "router.pt"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cannot be read with torch.load\(weights_only=True\)"):
        load_router(router)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_router_that_runs_code(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"blocks.0.router.linear.weight": Harmful()}, router / "ckpt" / "step-000100" / "router.pt")
    with pytest.raises(CheckpointError, match="cannot be read with torch.load.*print") as got:
        load_router(router)
    assert not re.search("weights_only=False|to `False`|two options|add_safe_globals", str(got.value)), "torch's advice"
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor; must be a state dict"),
        ([torch.ones(3)], "holds a list; must be a state dict"),
        ({"blocks.0.router.linear.weight": 3}, "entry 'blocks.0.router.linear.weight' is a int"),
        ({}, "holds no tensor"),
        ({"state_dict": torch.ones(3)}, "holds key 'state_dict'; keys must be blocks"),
        ({"blocks.0.attn1.to_q.weight": torch.ones(3)}, "holds key 'blocks.0.attn1.to_q.weight'"),
        ({f"{stack}.0.router.linear.bias": torch.ones(3) for stack in ("blocks", "transformer_blocks")}, "mixes keys"),
    ],
)
def test_router_that_is_no_state_dict(router: Path, content: Any, message: str) -> None:
    torch.save(content, router / "ckpt" / "step-000100" / "router.pt")
    with pytest.raises(CheckpointError, match=message):
        load_router(router)


def test_router_of_another_model(pipeline: Any, tmp_path: Path) -> None:
    def attempt(message: str, **sizes: int) -> None:
        shutil.rmtree(tmp_path / "router", ignore_errors=True)
        sizes = {"layers": 3, "heads": 4, "head_dim": 24, **sizes}
        other = make_router(tmp_path / "router", pipeline.geometry, **sizes)
        with pytest.raises(CheckpointError, match=message):
            RoutedTransformer.from_pretrained(pipeline.checkpoint, other)

    attempt("router .*routes 5 layers, but belongs to a wan model with 3 layers", layers=5)
    attempt("lacks 2 of 6 tensors, first 'blocks.2.router.linear.weight'", layers=2)
    attempt(r"blocks.0.router.linear.weight has shape \(15, 120\), must be \(12, 96\)", heads=5)
    attempt(r"has shape \(12, 48\), must be \(12, 96\)", head_dim=12)


def test_hunyuan_video_router_on_wan(pipeline: Any, tmp_path: Path) -> None:
    keys = [
        f"{stack}.{i}.router.linear" for stack in ("transformer_blocks", "single_transformer_blocks") for i in (0, 1)
    ]
    state = {f"{key}.{name}": torch.ones(3) for key in keys for name in ("weight", "bias")}
    torch.save(state, tmp_path / "router.pt")
    loaded = load_router(tmp_path / "router.pt")
    assert loaded.family == "hunyuan_video" and loaded.layers == 4
    with pytest.raises(CheckpointError, match="key 'single_transformer_blocks.0.* belongs to another model family"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, tmp_path / "router.pt")


def test_state_that_does_not_fit() -> None:
    def state(**changes: Tensor) -> dict[str, Tensor]:
        good = {"blocks.0.router.linear.weight": torch.zeros(6, 4), "blocks.0.router.linear.bias": torch.zeros(6)}
        return {**good, **changes}

    def check(values: dict[str, Tensor]) -> None:
        check_router(values, family="wan", stacks={"blocks": 1}, heads=2, embedding_dim=4)

    check(state())
    with pytest.raises(CheckpointError, match="unexpected key 'blocks.0.router.gate'"):
        check(state(**{"blocks.0.router.gate": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="has values that are not finite"):
        check(state(**{"blocks.0.router.linear.bias": torch.full((6,), torch.inf)}))


def test_router_config_that_is_wrong(pipeline: Any, router: Path) -> None:
    config = router / "config.json"
    edit_json(config, lambda values: values["self_attention_kwargs"].update(tile_size=[2, 0, 2]))
    with pytest.raises(CheckpointError, match=r"router config beside .*tile_size \(2, 0, 2\): entry 0"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, router)
    edit_json(config, lambda values: values["self_attention_kwargs"].pop("window_size"))
    with pytest.raises(CheckpointError, match="lacks window_size"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, router)
    edit_json(config, lambda values: values.pop("self_attention_kwargs"))
    with pytest.raises(CheckpointError, match="has no 'self_attention_kwargs'"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, router)
