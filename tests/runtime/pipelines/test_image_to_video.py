# SPDX-License-Identifier: Apache-2.0
"""Videos that begin or end with an image: stock latents, residency, files on the way, and images that are refused."""

from __future__ import annotations

import copy
import gc
import struct
import weakref
import zlib
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.engines import build_engine
from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.images import check_size, read_image, size_like
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import SamplingParams, VortaPipeline, VortaTransformer
from vorta_trt.runtime.pipelines import decoding, stages
from vorta_trt.runtime.pipelines.recorded import Recorded

from ...kept import Kept
from ...tiny import FRAMES, HEIGHT, WIDTH, Tiny, latents, make_experts, make_tiny

FEW = SamplingParams(num_inference_steps=2)
KINDS = ("channels", "embedding", "first and last")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, kept: Kept) -> Tiny:
    return make_tiny(kept, f"wan {request.param}")


@pytest.fixture(scope="module")
def channels(kept: Kept) -> Tiny:
    return make_tiny(kept, "wan channels")


def picture(seed: int, width: int = WIDTH + 4, height: int = HEIGHT + 2) -> Image.Image:
    """Noise, of a little more than the video's size."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def images_of(tiny: Tiny) -> dict[str, Image.Image]:
    """Both ends, but for the model that takes the first alone."""
    names = ("image",) if tiny.name == "wan embedding" else ("image", "last_image")
    return {name: picture(number) for number, name in enumerate(names)}


def stock_latents(tiny: Tiny, transformer: Any, seed: int, **arguments: Any) -> torch.Tensor:
    return latents(tiny.pipeline(transformer), 2, seed, **images_of(tiny), **arguments)


def test_the_stock_pipelines_latents_and_video(model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own pipeline encodes the images in its call; here they are encoded in a stage before."""
    routed = model.model()
    made: list[torch.Tensor] = []
    decode = decoding.decode
    monkeypatch.setattr(
        "vorta_trt.runtime.pipelines.pipeline.decode",
        lambda samples, parts, *rest: made.extend(samples) or decode(samples, parts, *rest),
    )
    with VortaPipeline.from_pretrained(routed, strict=True) as pipe:
        video = pipe("a red wall", seed=7, params=FEW, **images_of(model))
        again = pipe("a red wall", seed=7, params=FEW, **images_of(model))
        other = pipe("a red wall", seed=7, params=FEW, **images_of(model) | {"image": picture(9)})
    expected = stock_latents(model, VortaTransformer.from_pretrained(routed), 7)
    assert torch.equal(made[0], expected)
    assert video.frames.shape == (FRAMES, HEIGHT, WIDTH, 3) and video.frames.std() > 1
    assert np.array_equal(video.frames, again.frames) and not np.array_equal(video.frames, other.frames)
    assert video.launches == 4


def test_dense_latents_are_those_of_diffusers_transformer(model: Tiny) -> None:
    own = diffusers.WanTransformer3DModel.from_pretrained(model.checkpoint, subfolder="transformer")
    expected = stock_latents(model, own, 3)
    transformer = VortaTransformer.from_pretrained(model.model(tau=1.1))  # no score reaches it
    assert (stock_latents(model, transformer, 3) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_sequential_frees_the_encoders_before_the_transformer_is_loaded(
    model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[weakref.ref[Any]] = []
    events: list[str] = []
    load = stages.load_pipeline

    def watched(*arguments: Any, **options: Any) -> Any:
        pipeline = load(*arguments, **options)
        found = {name: getattr(pipeline, name, None) for name in ("text_encoder", "vae", "image_encoder")}
        modules = {name: part for name, part in found.items() if isinstance(part, torch.nn.Module)}
        encoders.extend(map(weakref.ref, modules.values()))
        events.append(" ".join(modules) or "none")
        return pipeline

    monkeypatch.setattr(stages, "load_pipeline", watched)
    open_engine = VortaPipeline._open

    def opened(pipe: VortaPipeline, component: str) -> VortaTransformer:
        gc.collect()
        events.append(f"engine beside {sum(part() is not None for part in encoders)}")
        return open_engine(pipe, component)

    said: list[str] = []
    with VortaPipeline.from_pretrained(model.onnx, strict=True) as pipe:
        expected = pipe("a red wall", seed=3, params=FEW, **images_of(model))
    monkeypatch.setattr(VortaPipeline, "_open", opened)
    events.clear()
    with VortaPipeline.from_pretrained(model.onnx, residency="sequential", strict=True) as pipe:
        video = pipe("a red wall", seed=3, params=FEW, **images_of(model), on_stage=lambda what, *_: said.append(what))
    conditioners = "vae" if model.name == "wan channels" else "vae image_encoder"
    assert events == ["none", "text_encoder", conditioners, "engine beside 0", "none", "vae"]  # the tokenizer first
    assert "encoding the image" in said and said.index("encoding the image") < said.index("loading the engine")
    assert np.array_equal(video.frames, expected.frames)


def test_resident_parts_are_loaded_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny(kept, "wan embedding")
    loaded: list[str] = []
    load = stages.load_pipeline

    def watched(*arguments: Any, parts: Any, without: Any, kind: Any, **options: Any) -> Any:
        loaded.extend(name for name in kind.components if name not in (*parts, *without))
        return load(*arguments, parts=parts, without=without, kind=kind, **options)

    monkeypatch.setattr(stages, "load_pipeline", watched)
    with VortaPipeline.from_pretrained(model.model()) as pipe:
        for _ in range(2):
            pipe("a red wall", seed=3, params=FEW, **images_of(model))
        kept = pipe.parts.kind.components
    assert sorted(loaded) == sorted(kept)


def test_two_experts(kept: Kept) -> None:
    """Wan 2.2 I2V A14B: both experts see the image, and each its own guidance scale."""
    tiny = make_experts(kept, "wan experts channels")
    guided = {"guidance_scale": 3.5, "guidance_scale_2": 2.5}
    steps = SamplingParams(num_inference_steps=4, **guided)
    arguments: dict[str, Any] = {**images_of(tiny), **guided}
    own = [diffusers.WanTransformer3DModel.from_pretrained(tiny.checkpoint / name) for name in COMPONENTS]
    expected = latents(tiny.pipeline(*own), 4, 7, **arguments)
    dense = map(VortaTransformer.from_pretrained, tiny.models(tau=1.1))
    assert (latents(tiny.pipeline(*dense), 4, 7, **arguments) - expected).abs().max() <= 1e-5 * expected.abs().max()
    models = tiny.models()
    routed = tiny.pipeline(*map(VortaTransformer.from_pretrained, models))
    with VortaPipeline.from_pretrained(models, tiny.checkpoint, strict=True) as pipe:
        video = pipe("a red wall", seed=7, params=steps, **images_of(tiny))
    noise = torch.Generator().manual_seed(7)
    (stock,) = routed(
        prompt="a red wall", generator=noise, output_type="pt", num_inference_steps=4, num_frames=FRAMES,
        height=HEIGHT, width=WIDTH, **arguments,
    ).frames  # fmt: skip
    frames = (stock * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(video.frames, frames)
    parts = [(part.component, len(part.steps.timesteps)) for part in video.planned.experts]
    assert [name for name, _ in parts] == list(COMPONENTS) and all(count for _, count in parts)


def test_an_engine_is_built(model: Tiny, tmp_path: Path) -> None:
    bundle = build_engine(model.export("fp16"), tmp_path / "image.bundle")
    shapes = {spec.name: spec.shape for spec in bundle.manifest.inputs}
    assert shapes["hidden_states"] == [-1, 12, 3, 8, 12]
    assert ("encoder_hidden_states_image" in shapes) == (model.name != "wan channels")
    assert [spec.shape for spec in bundle.manifest.outputs if spec.name == "sample"] == [[-1, 4, 3, 8, 12]]


def test_guidance_in_one_launch(kept: Kept) -> None:
    """Both halves see the same images, which the pipeline gives as the same tensor, a sample for each."""
    model = make_tiny(kept, "wan first and last")
    params = SamplingParams(num_inference_steps=3, guidance_batching="batched")
    with VortaPipeline.from_pretrained(model.onnx, strict=True) as pipe:
        batched = pipe("a red wall", seed=3, params=params, **images_of(model))
        alone = pipe("a red wall", seed=3, params=params.updated(guidance_batching="sequential"), **images_of(model))
    assert (batched.launches, alone.launches) == (4, 6) and batched.fallbacks == ()
    assert np.abs(batched.frames.astype(int) - alone.frames.astype(int)).max() <= 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_images_that_are_missing_or_have_no_place(model: Tiny) -> None:
    with VortaPipeline.from_pretrained(model.onnx, residency="sequential") as pipe:
        with pytest.raises(ValueError, match=r"image None: this model begins a video with one; give it, e.g. image='"):
            pipe("a red wall", params=FEW)
        if model.name == "wan embedding":
            with pytest.raises(ValueError, match="last_image: this model takes image alone; leave it out"):
                pipe("a red wall", params=FEW, image=picture(0), last_image=picture(1))
        if model.name == "wan first and last":
            with pytest.raises(ValueError, match="last_image None: this model ends a video with one"):
                pipe("a red wall", params=FEW, image=picture(0))


def test_images_that_do_not_fit(channels: Tiny, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    picture(0).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("no image")
    pointer = tmp_path / "pointer.png"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    cases: list[tuple[Any, type[Exception], str]] = [
        (picture(0, 20, 14), ValueError, r"image of 20x14 pixels .*: is too small for a video of 96x64; .* 24x16"),
        (picture(0, 96, 96), ValueError, r"image of 96x96 .* another aspect .* 10 %; crop it, .*--size 9x64x64"),
        (picture(0, 64, 96), ValueError, r"--size 9x96x64"),
        (damaged, ValueError, r"image .*damaged.png: is damaged or too large"),
        (text, ValueError, r"image .*text.png: is no image that can be read; give a PNG"),
        (pointer, ValueError, r"pointer.png"),
        (tmp_path / "absent.png", FileNotFoundError, r"image .*absent.png: no such file"),
        (tmp_path, ValueError, r"image .*: is a folder; give a PNG"),
        (np.zeros((64, 96, 3), np.uint8), ValueError, r"image of type ndarray: must be a file or an image of PIL"),
    ]
    with VortaPipeline.from_pretrained(channels.onnx, residency="sequential") as pipe:
        for image, kind, message in cases:
            with pytest.raises(kind, match=message):
                pipe("a red wall", params=FEW, image=image)
        with pytest.raises(ValueError, match="last_image of 96x96 pixels"):
            pipe("a red wall", params=FEW, image=picture(0), last_image=picture(0, 96, 96))


def test_an_image_that_is_too_large_by_its_header(tmp_path: Path) -> None:
    path, header = tmp_path / "large.png", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(ValueError, match=r"image .*large.png: is damaged or too large \(.*3600000000 pixels"):
        read_image("image", path)


@pytest.mark.filterwarnings("error")
def test_a_large_image_below_the_limit_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10000, 9000)).save(path)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    assert read_image("image", path).size == (10000, 9000)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_the_plan_of_a_video_reads_its_images(channels: Tiny, tmp_path: Path) -> None:
    absent = tmp_path / "absent.png"
    options = ["generate", channels.onnx, "--checkpoint", channels.checkpoint, "--dry-run"]
    assert CliRunner().invoke(app, list(map(str, options))).exit_code == 0
    result = CliRunner().invoke(app, [*map(str, options), "--image", str(absent)])
    assert result.exit_code == 1 and "absent.png: no such file" in result.output


def test_an_aspect_that_no_size_of_a_bundle_has() -> None:
    sizes = ("81x480x832", "81x832x480")
    message = r"of 900x900 .* video of 832x480, the closest of 81x480x832, 81x832x480, which .* --size 81x624x624"
    with pytest.raises(ValueError, match=message):
        check_size("image", picture(0, 900, 900), (81, 480, 832), (16, 16), sizes)
    check_size("image", picture(0, 1280, 720), (81, 480, 832), (16, 16), sizes)  # 2.6 %
    message = r"of 480x832 .* video of 832x480, which would .*; crop it, or take the size that fits it, 81x832x480$"
    with pytest.raises(ValueError, match=message):
        check_size("image", picture(0, 480, 832), (81, 480, 832), (16, 16), sizes)


def test_orientation_and_transparency(channels: Tiny, tmp_path: Path) -> None:
    """A photo on its side is turned as its EXIF says; its aspect is that of what one sees."""
    seen = picture(5, WIDTH, HEIGHT)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees
    seen.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    clear = seen.copy()
    clear.putalpha(255)
    clear.save(tmp_path / "clear.png")
    with VortaPipeline.from_pretrained(channels.onnx) as pipe:
        made = [
            pipe("a red wall", seed=1, params=FEW, image=image).frames
            for image in (seen, tmp_path / "turned.png", str(tmp_path / "clear.png"))
        ]
    assert all(np.array_equal(frames, made[0]) for frames in made)


def test_a_folder_of_another_pipeline(channels: Tiny, tiny_wan: Tiny) -> None:
    """The folder of text to video beside an engine that begins with an image; its classes are the same but for one."""
    with pytest.raises(CheckpointError, match="is a WanPipeline; generation needs the WanImageToVideoPipeline folder"):
        VortaPipeline.from_pretrained(channels.onnx, tiny_wan.checkpoint)


def test_rows_of_other_images_in_the_drop_in(kept: Kept) -> None:
    tiny = make_tiny(kept, "wan embedding")
    transformer = VortaTransformer.from_pretrained(tiny.model())
    embeddings: dict[str, Any] = {"encoder_hidden_states": torch.zeros(1, 512, 32)}
    given = {"hidden_states": torch.zeros(1, 12, 3, 8, 12), "timestep": torch.tensor([500.0]), **embeddings}
    with pytest.raises(ValueError, match="encoder_hidden_states_image None: the model needs it"):
        transformer(**given)
    with pytest.raises(
        ValueError, match=r"encoder_hidden_states_image of shape \(2, 257, 32\): must be \(1, 257, 32\)"
    ):
        transformer(**given, encoder_hidden_states_image=torch.zeros(2, 257, 32))


def test_what_stands_in_does_not_encode_something_else(channels: Tiny) -> None:
    vae = diffusers.AutoencoderKLWan.from_pretrained(channels.checkpoint, subfolder="vae")
    recorded = Recorded(vae, torch.device("cpu"))
    pixels = torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad():
        first, second = (recorded.encode(given).latent_dist.mode() for given in (pixels, pixels + 1))
    recorded.release(None)
    again = [recorded.encode(pixels).latent_dist.mode() for _ in range(4)]
    assert all(torch.equal(*pair) for pair in zip(again, (first, second, first, second), strict=True))
    with pytest.raises(VortaError, match=r"encodes \(1, 3, 9, 16, 16\) while it samples, and \(1, 3, 5, 16, 16\) was"):
        recorded.encode(torch.rand(1, 3, 9, 16, 16))
    empty = copy.copy(recorded)
    empty._kept = []
    with pytest.raises(VortaError, match="no image was encoded by it before"):
        empty.encode(pixels)


@pytest.mark.parametrize(
    ("image", "area", "step", "expected"),
    [
        ((1280, 720), 480 * 832, (16, 16), (464, 832)),  # what the published example makes of 16 : 9
        ((720, 1280), 480 * 832, (16, 16), (832, 464)),
        ((1280, 720), 720 * 1280, (16, 16), (720, 1280)),
        ((1000, 1000), 704 * 1280, (32, 32), (928, 928)),
        ((4000, 10), 96 * 96, (16, 16), (16, 1920)),
    ],
)
def test_sizes_of_an_aspect(
    image: tuple[int, int], area: int, step: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert size_like(Image.new("RGB", image), area, step) == expected
