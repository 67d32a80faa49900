# SPDX-License-Identifier: Apache-2.0
"""What fits which card. The figures of the large models are real ones: the builder's for one block, times the blocks'
weights; text encoder and VAE have the sizes of Wan 2.1's."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vorta_trt.engines import Bundle
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.model import AttentionGeometry
from vorta_trt.runtime.card_plan import RESERVE, STREAMING_SCRATCH, CardPlan
from vorta_trt.runtime.engine_parts import engine_parts, parts_of_rank
from vorta_trt.runtime.executors.weight_streaming import HEADROOM, set_budget
from vorta_trt.runtime.memory_parts import holds_parts, pipeline_parts, sampling_bytes
from vorta_trt.runtime.memory_plan import batched_guidance_fits, plan_memory
from vorta_trt.runtime.pipelines.residency import Residency, by_plan
from vorta_trt.runtime.target import Target, read_target
from vorta_trt.runtime.tensors import TensorSpec

GIB = 2**30
STREAMING, RESIZE = "WEIGHT_STREAMING", "RUNTIME_ACTIVATION_RESIZE_10_10"


def engine(
    bundle: Path,
    weights: int,
    activations: int | None,
    batch: int = 2,
    flavour: str = "rtx",
    flags: tuple[str, ...] = (),
) -> Target:
    """The bundle of the tests with other figures in its manifest."""
    target = read_target(bundle)
    assert target.bundle is not None
    manifest = target.bundle.manifest
    memory = manifest.engine.memory.model_copy(update={"weights": weights, "activations": activations})
    update = {"memory": memory, "flavour": flavour, "flags": list(flags)}
    changed = manifest.model_copy(update={"engine": manifest.engine.model_copy(update=update)})
    inputs = tuple(
        replace(spec, maximum=(batch, *spec.maximum[1:])) if spec.maximum else spec for spec in target.inputs
    )
    return replace(target, bundle=Bundle(target.bundle.path, changed), inputs=inputs)


def weights_file(folder: Path, dtype: str, item_bytes: int, count: int) -> None:
    """A safetensors file that ends behind its header: nothing else may be read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor = {"dtype": dtype, "shape": [count], "data_offsets": [0, count * item_bytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.fixture(scope="module")
def wan_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a pipeline")
    weights_file(folder / "text_encoder", "F32", 4, 5_680_910_336)  # UMT5-XXL, 10.6 GiB in 16 bits
    weights_file(folder / "vae", "F32", 4, 126_892_531)
    (folder / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", "base_dim": 96}))
    return folder


WAN_14B = {"weights": 28_577_000_000, "activations": 17_758_976_000}  # batch 2, 77x720x1280


def cards(target: Target, *sizes: float, checkpoint: Path | None = None) -> list[CardPlan]:
    plan = plan_memory(target, checkpoint, sizes)
    assert plan == type(plan).model_validate_json(plan.model_dump_json())
    assert len(list(plan.lines())) >= 6 + len(sizes)
    return plan.cards


def test_two_experts_are_together_or_in_turn(bundle: Path, wan_pipeline: Path) -> None:
    """Both weights and one block of activations; where they do not fit, the weights of one at a time, all of them."""
    first = engine(bundle, **WAN_14B, flags=(RESIZE,))
    alone = plan_memory(first, wan_pipeline, [141, 80, 60, 45])
    plan = plan_memory(first, wan_pipeline, [141, 80, 60, 45], first)
    assert plan.second_weights == WAN_14B["weights"] and alone.second_weights is None
    assert [card.experts for card in alone.cards] == [None] * 4
    assert [card.experts for card in plan.cards] == ["together", "together", "in turn", "in turn"]
    for card, one in zip(plan.cards, alone.cards, strict=True):
        assert card.fits and card.sampling_bytes <= card.gib * GIB
        if card.experts == "in turn":
            assert card == one.model_copy(update={"experts": "in turn"})
    assert plan.cards[0].sampling_bytes == alone.cards[0].sampling_bytes + WAN_14B["weights"]
    assert "experts together" in plan.cards[0].line() and "experts in turn" in plan.cards[-1].line()
    assert f"of the second expert {26.6:.1f} GiB" in list(plan.lines())[0]


def test_an_h200_has_room_for_everything(bundle: Path, wan_pipeline: Path) -> None:
    (card,) = cards(engine(bundle, **WAN_14B, flags=(RESIZE,)), 141, checkpoint=wan_pipeline)
    assert (card.fits, card.guidance, card.text_encoder, card.vae) == (True, "batched", "stays", "stays")
    assert (card.encoding, card.decoding, card.weight_streaming_budget) == ("beside", "beside", None)
    assert 54 * GIB < card.sampling_bytes < 58 * GIB
    assert "guidance batched, text encoder stays, VAE stays; sampling takes 5" in card.line()


def test_what_leaves_first(bundle: Path, wan_pipeline: Path) -> None:
    """Text encoder, VAE, batched guidance, weights: in this order, as the card shrinks."""
    target = engine(bundle, **WAN_14B, flags=(RESIZE, STREAMING))
    found = cards(target, 80, 50, 44.9, 44.6, 40, 24, checkpoint=wan_pipeline)
    assert [(card.guidance, card.text_encoder, card.vae) for card in found] == [
        ("batched", "stays", "stays"),
        ("batched", "leaves", "stays"),
        ("batched", "leaves", "leaves"),
        ("sequential", "leaves", "stays"),
        ("sequential", "leaves", "stays"),
        ("sequential", "leaves", "leaves"),
    ]
    assert [card.weight_streaming_budget is not None for card in found] == [False] * 5 + [True]
    assert all(card.sampling_bytes <= card.gib * GIB for card in found)
    small = found[-1]
    assert small.weight_streaming_budget is not None and 5 * GIB < small.weight_streaming_budget < 6 * GIB
    assert (small.encoding, small.decoding) == ("alone", "alone")
    assert "weights streamed, 5." in small.line() and small.line().endswith("; build with --batch 1 (keeps 13.7 GiB)")
    (for_one,) = cards(
        engine(bundle, WAN_14B["weights"], WAN_14B["activations"] // 2, 1, flags=(RESIZE, STREAMING)), 24
    )
    assert for_one.weight_streaming_budget is not None and 13 * GIB < for_one.weight_streaming_budget < 14 * GIB
    assert "weights streamed, 13." in for_one.line() and "build with" not in for_one.remarks[-1]
    assert "prompt encoded before the engine is opened" in small.line()
    assert "video decoded after the engine is closed" in small.line()


@pytest.mark.parametrize(
    ("gib", "options", "remark"),
    [
        (24, {"flags": (RESIZE,)}, "weights do not fit; build with --weight-streaming and --batch 1 (keeps 13.7 GiB)"),
        (17.5, {"flags": (RESIZE,), "batch": 1}, "the weights do not fit; build with --weight-streaming"),
        (17.5, {"flavour": "tensorrt8"}, "activations alone need more; build with --batch 1, or take a smaller video"),
        (9, {"flags": (RESIZE, STREAMING)}, "activations alone need more; take a smaller video, or another card"),
        (
            24,
            {"flavour": "tensorrt8", "batch": 1},
            "TensorRT 8.6 cannot stream them; build with TensorRT 10 or newer, or RTX",
        ),
    ],
)
def test_what_does_not_fit_says_what_to_do(bundle: Path, gib: float, options: dict[str, Any], remark: str) -> None:
    activations = WAN_14B["activations"] * options.get("batch", 2) // 2
    (card,) = cards(engine(bundle, WAN_14B["weights"], activations, **options), gib)
    assert not card.fits
    assert remark in card.line() and card.line().startswith(f"{card.gib:g} GiB: does not fit")


def test_prompts_are_encoded_beside_an_engine_only_if_its_activations_leave_room(
    bundle: Path, wan_pipeline: Path
) -> None:
    """They stay allocated when the next video begins. 14 + 8 GiB of the engine, 11 of the text encoder."""
    small = {"weights": 14 * GIB, "activations": 8 * GIB, "flags": (RESIZE,)}
    found = cards(engine(bundle, **small), 37, 32, 27, checkpoint=wan_pipeline)
    assert [card.text_encoder for card in found] == ["stays", "leaves", "leaves"]
    assert [card.encoding for card in found] == ["beside", "alone", "alone"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("gib", [22, 24])  # a card of 24 GB has 22 to 24 GiB
def test_wan_14b_on_24_gb(bundle: Path, wan_pipeline: Path, batch: int, gib: int) -> None:
    """Streamed, in stages; and the budget "auto" leaves room for the activations and for the rest."""
    weights, activations = WAN_14B["weights"], WAN_14B["activations"] * batch // 2
    (card,) = cards(
        engine(bundle, weights, activations, batch, flags=(RESIZE, STREAMING)), gib, checkpoint=wan_pipeline
    )
    assert card.fits and (card.encoding, card.decoding) == ("alone", "alone")
    choice = by_plan(Residency.AUTO, card, torch.device("cuda", 0))
    assert (choice.residency, choice.encoders.type, choice.stream_weights) == (Residency.SEQUENTIAL, "cuda", True)
    loaded = SimpleNamespace(
        streamable_weights_size=weights,
        weight_streaming_budget_v2=weights,
        device_memory_size_v2=activations + STREAMING_SCRATCH,
    )
    context = GIB // 2
    memory: Any = SimpleNamespace(free_bytes=lambda: (gib * GIB - context, gib * GIB))
    budget = set_budget(get_flavour("rtx"), loaded, memory, "auto")
    assert budget == loaded.weight_streaming_budget_v2 >= card.weight_streaming_budget > 2 * GIB  # type: ignore[operator]
    assert context + budget + loaded.device_memory_size_v2 + HEADROOM == gib * GIB


def test_activations_without_resizing_are_those_of_the_largest_batch(bundle: Path) -> None:
    old = plan_memory(engine(bundle, **WAN_14B, flavour="tensorrt8"))
    new = plan_memory(engine(bundle, **WAN_14B, flags=(RESIZE,)))
    assert old.activations == {1: WAN_14B["activations"], 2: WAN_14B["activations"]}
    assert new.activations == {1: WAN_14B["activations"] // 2, 2: WAN_14B["activations"]}


def test_an_engine_for_one_sample_has_no_batched_guidance(bundle: Path) -> None:
    (card,) = cards(engine(bundle, 10**9, 10**9, batch=1), 80)
    assert card.guidance == "sequential"
    assert "guidance can only be sequential (build --batch 1:1:2 for both)" in card.line()


def test_figures_of_a_bundle_and_of_its_onnx_file(bundle: Path, fp16: Path) -> None:
    built, exported = engine_parts(read_target(bundle)), engine_parts(read_target(fp16))
    assert built.stated and built.built and not exported.stated and not exported.built
    assert built.workspace == exported.workspace and built.workspace is not None and built.workspace > 0
    assert built.io_per_sample == exported.io_per_sample > 2 * 2 * 4 * 3 * 8 * 12  # latents in and out, fp16
    assert exported.weights == pytest.approx(built.weights, rel=0.2)
    assert exported.activations == pytest.approx(built.activations, rel=1)
    text = "\n".join(plan_memory(read_target(fp16)).lines())
    assert "(estimated)" in text and "text encoder and VAE not counted (--checkpoint)" in text


def test_estimates_where_the_builder_said_nothing(bundle: Path) -> None:
    parts = engine_parts(engine(bundle, 0, None))
    assert not parts.stated and parts.activations > 0
    assert parts.weights == (bundle / "transformer.plan").stat().st_size


def test_parts_of_a_pipeline(bundle: Path, wan_pipeline: Path, tmp_path: Path) -> None:
    metadata = read_target(bundle).metadata
    parts = pipeline_parts(wan_pipeline, metadata)
    assert (parts.text_encoder, parts.vae) == (2 * 5_680_910_336, 4 * 126_892_531)
    video, widest = 3 * 9 * 64 * 96 * 4, 192 * 4 * 64 * 96 * 4  # frames 9, 64 x 96 pixels
    assert parts.decoding == 8 * widest + video
    half = pipeline_parts(wan_pipeline, metadata, vae_precision="fp16")
    assert (half.vae, half.decoding) == (2 * 126_892_531, 4 * widest + video)
    compiled = pipeline_parts(wan_pipeline, metadata, compile_vae=True)
    assert compiled == replace(parts, decoding=13 * widest + video)
    assert pipeline_parts(None, metadata).vae is None
    assert holds_parts(wan_pipeline) and not holds_parts(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither text_encoder/ nor vae/ with weights"):
        pipeline_parts(tmp_path, metadata)


@pytest.mark.parametrize(
    ("precision", "compiled", "measured"),
    [(None, False, 21.46), ("fp16", False, 10.74), ("fp16", True, 17.37), ("bf16", True, 17.37)],
)
def test_wan_decodes_in_what_was_measured(
    bundle: Path, wan_pipeline: Path, precision: str | None, compiled: bool, measured: float
) -> None:
    """GiB of torch's allocator at its peak, weights and video included, of 77x720x1280 on an H200 with torch 2.11."""
    metadata = read_target(bundle).metadata
    assert metadata is not None
    published = metadata.model_copy(update={"latent_shape": (16, 20, 90, 160)})
    parts = pipeline_parts(wan_pipeline, published, vae_precision=precision, compile_vae=compiled)
    assert parts.vae is not None and parts.decoding is not None
    assert measured <= (parts.vae + parts.decoding) / GIB <= 1.1 * measured


@pytest.mark.parametrize(
    ("card", "precision", "place"), [(24, None, "alone"), (23.8, None, "too large"), (22, "fp16", "alone")]
)
def test_wan_14b_decodes_on_24_gb_alone(
    bundle: Path, wan_pipeline: Path, card: float, precision: str | None, place: str
) -> None:
    """As docs/engines.md says."""
    target = engine(bundle, **WAN_14B, flags=(RESIZE, STREAMING))
    assert target.metadata is not None
    published = replace(target, metadata=target.metadata.model_copy(update={"latent_shape": (16, 20, 90, 160)}))
    (plan,) = plan_memory(published, wan_pipeline, (card,), vae_precision=precision).cards
    assert (plan.fits, plan.decoding) == (True, place)
    assert ("--vae-precision fp16, takes less" in plan.line()) == (place == "too large")


def test_parts_of_image_to_video(bundle: Path, wan_pipeline: Path, tmp_path: Path) -> None:
    """The image encoder goes with those of text; diffusers makes a video of the image and zeros while it samples."""
    shutil.copytree(wan_pipeline, tmp_path / "pipeline")
    weights_file(tmp_path / "pipeline" / "image_encoder", "F32", 4, 631_000_000)
    metadata = read_target(bundle).metadata
    assert metadata is not None
    parts = pipeline_parts(tmp_path / "pipeline", metadata)
    assert parts.text_encoder == 2 * 5_680_910_336 + 4 * 631_000_000
    latents = 10 * 4 * math.prod(metadata.latent_shape)
    assert sampling_bytes(metadata) == latents
    conditioned = metadata.model_copy(
        update={
            "config": metadata.config | {"in_channels": 12, "out_channels": 4},
            "latent_shape": (12, *metadata.latent_shape[1:]),
        }
    )
    assert sampling_bytes(conditioned) == max(3 * latents, 2 * 3 * 4 * 9 * 64 * 96)
    replaced = metadata.model_copy(  # an image's latent takes the place of the first frame's: nothing but it is encoded
        update={
            "config": metadata.config | {"in_channels": 48, "out_channels": 48},
            "latent_shape": (48, *metadata.latent_shape[1:]),
        }
    )
    assert sampling_bytes(replaced) == 12 * latents


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "its header would have 2336927755350992246 bytes"),
        (b"", "Expecting value"),
        (b"\x04" + bytes(7) + b'{"\xff"', "codec can't decode"),
    ],
    ids=["a pointer of Git LFS", "empty", "noise"],
)
def test_weights_that_are_none(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.safetensors: not readable as .*{reason}.*"):
        pipeline_parts(tmp_path, None)


def test_tiled_decoding_of_hunyuan_video(bundle: Path, wan_pipeline: Path, tmp_path: Path) -> None:
    weights_file(tmp_path / "vae", "F16", 2, 1000)
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [128, 256]}))
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "pytorch_model.bin").write_bytes(b"x" * 500)
    metadata = read_target(bundle).metadata
    assert metadata is not None
    tiled = metadata.model_copy(update={"family": "hunyuan_video"})
    parts = pipeline_parts(tmp_path, tiled)
    assert (parts.text_encoder, parts.vae) == (500, 2000)
    widest, video = 256 * 16 * 256 * 256 * 2, 3 * 9 * 64 * 96 * 4
    assert parts.decoding == 3 * widest + video
    assert pipeline_parts(tmp_path, tiled, compile_vae=True).decoding == 6 * widest + video
    assert pipeline_parts(tmp_path, metadata).decoding is None  # a VAE that nobody knows


def test_cards_have_a_size(bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"memory 1e\+300: must be the GiB of a card"):
        plan_memory(read_target(bundle), cards=[1e300])
    with pytest.raises(ValueError, match="memory 0: must be the GiB of a card.*e.g. 24"):
        plan_memory(read_target(bundle), cards=[24, 0])


# --- An open engine ----------------------------------------------------------


def opened(largest: int, needed: int, free: int, device: str = "cuda:0") -> Any:
    spec = TensorSpec("hidden_states", "float16", ("batch", 4), (1, 4), (largest, 4))
    return SimpleNamespace(inputs=[spec], device=device, room_for=lambda batch: (needed * batch, free))


def test_batched_guidance_goes_by_the_free_memory() -> None:
    fit = batched_guidance_fits(opened(2, GIB, 2 * GIB + RESERVE))
    assert fit and (fit.needed_bytes, fit.free_bytes) == (2 * GIB, 2 * GIB + RESERVE)
    tight = batched_guidance_fits(opened(2, GIB, 2 * GIB + RESERVE - 1))
    assert not tight
    assert (
        tight.reason
        == "a call with 2 samples takes 2.0 GiB more, 3.5 GiB are free on cuda:0, 1.5 GiB of them kept for the rest"
    )
    assert batched_guidance_fits(opened(2, GIB, 2 * GIB), reserve=0)
    assert batched_guidance_fits(opened(2, 0, 0, "cpu"))
    alone = batched_guidance_fits(opened(1, 0, 99 * GIB))
    assert not alone and "the engine takes 1 sample a call; build it with --batch 1:1:2 for two" in alone.reason


def test_several_gpus_share_activations_and_need_buffers_for_the_exchange(bundle: Path, wan_pipeline: Path) -> None:
    target = engine(bundle, **WAN_14B, flags=(RESIZE,))
    assert target.metadata is not None
    published = target.metadata.model_copy(
        update={
            **{"num_layers": 40, "num_heads": 40, "head_dim": 128, "precision": "bf16"},
            "geometry": AttentionGeometry.for_video(77, 720, 1280).to_dict(),
        }
    )
    one, four = engine_parts(target), parts_of_rank(engine_parts(target), published, 4)
    assert four.weights == one.weights and four.io_per_sample == one.io_per_sample and not four.stated
    assert four.exchange == 2 * 8 * 18000 * 5120 * 2
    tokens = (one.activations - (one.workspace or 0)) // 4
    attended = 2 * 4 * 18000 * 5120 * 2 + four.exchange  # beside the residual, queries, keys and values
    assert four.activations == pytest.approx(max(tokens, attended) + (four.workspace or 0), abs=4)
    assert four.activations < 0.5 * one.activations
    assert parts_of_rank(one, published, 1) == one
    with pytest.raises(ValueError, match="3 GPUs for 40 heads"):
        parts_of_rank(one, published, 3)
    plan = plan_memory(target, wan_pipeline, (24,), gpus=3)
    assert (plan.gpus, plan.exchange) == (3, parts_of_rank(one, target.metadata, 3).exchange)
    lines = list(plan.lines())
    assert lines[0] == "of the first of 3 GPUs that share a pass; the others need no text encoder"
    assert any("buffers of the exchange" in line for line in lines)
    built = replace(target, metadata=target.metadata.model_copy(update={"ulysses": 3}))
    again = plan_memory(built, wan_pipeline, (24,))
    assert (again.gpus, again.exchange) == (3, plan.exchange)
    assert again.activations_stated and again.activations[2] == one.activations, "the builder's figure is a GPU's"
    with pytest.raises(ValueError, match="gpus 1: .* is for 3 GPUs that share every pass; leave it out"):
        plan_memory(built, wan_pipeline, (24,), gpus=1)
