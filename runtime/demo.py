# SPDX-License-Identifier: Apache-2.0
"""Runs all steps on a small model with the real classes: checkpoint, router, ONNX, bundle, verification, video."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.model.families import DEFAULT_FAMILY, get_family
from vorta_trt.model.files import make_folder, write_text
from vorta_trt.model.video_size import VideoSize
from vorta_trt.model.write_errors import errors_of_libraries
from vorta_trt.plugins.extras import import_extra
from vorta_trt.runtime.from_checkpoint import Report, Source, build_onnx, export_checkpoint
from vorta_trt.runtime.verification.report import VerifyReport

# A small model, but shaped like the real ones: a grid of 12 x 6 x 6 tokens, and the head dimension of the family.
SIZE = VideoSize(45, 96, 96)
HEADS = 6
STEPS, VIDEO_STEPS = 20, 6
PROMPT = "a red wall"  # words that the small tokenizer knows; the video is noise, since the weights are random
BF16_CASES = ("router, tau 0.3", "mixed override")  # ONNX's reference evaluator is slow


class DemoReport(BaseModel):
    """The files that the demo made, and its results."""

    family: str
    folder: str
    files: dict[str, str]  # what -> where
    verified: list[VerifyReport]
    routes: str  # the route table as text
    attention_flops_saved: float
    plugin_layers: int
    runs_on: str  # compute capabilities

    @property
    def passed(self) -> bool:
        """Whether everything that was verified is right."""
        return all(report.passed for report in self.verified)


def run_demo(folder: Path, report: Report, family: str = DEFAULT_FAMILY) -> DemoReport:
    """Makes all files of the demo in `folder`; the files of an earlier demo there are replaced.

    Args:
        folder: Folder of all files.
        report: Progress callback. It gets what is done, how much of it is done, and how much there is in total.
        family: Name of the model family.

    Raises:
        ValueError: The family is unknown.
        FileExistsError: The folder holds files that no demo made.
    """
    from vorta_trt.model import RouteTable
    from vorta_trt.runtime.schedules import schedule_timesteps
    from vorta_trt.runtime.verification.verify import verify

    facts = get_family(family)
    import_extra("matplotlib", "plot")  # for the picture of the routes; checked before the long work, as the builder is
    flavour = get_flavour("rtx")
    if not (ability := flavour.can_build()):
        raise BuildError(f"the demo builds with TensorRT-RTX: {ability.reason}")
    load_plugin(flavour)  # raises if the library, or the shim that the parser needs, is missing
    folder = _fresh(folder)
    checkpoint, router = folder / "checkpoint", folder / "router"
    stem = family.replace("_", "-")
    report(f"making a small {facts} pipeline and a router", 0, 0)
    _make_model(family, checkpoint, router)

    # With all parts exported, graphs also decode the videos and encode the texts.
    parts = ("all",) if facts.parts_class is not None else ()
    exported = {
        precision: export_checkpoint(
            Source(checkpoint, router, precision=precision),
            folder / f"{stem}-{precision}.onnx",
            report,
            parts=parts,
        )
        for precision in ("fp32", "bf16")
    }
    report("computing the routes", 0, 0)
    schedule = schedule_timesteps(checkpoint, STEPS)
    table = RouteTable.from_model(Source(checkpoint, router, precision="bf16").model(), schedule.timesteps)
    routes, picture = folder / "routes.json", folder / "routes.png"
    write_text(routes, table.to_json() + "\n")
    table.plot(picture)

    bundle = build_onnx(exported["bf16"], folder / f"{stem}.bundle", report, include_onnx=True, overwrite=True)
    video = _make_video(exported["fp32"], folder, report)
    verified = [
        verify(exported["fp32"], checkpoint, router, progress=lambda stage: report(stage, 0, 0)),
        verify(exported["bf16"], checkpoint, router, cases=BF16_CASES, progress=lambda stage: report(stage, 0, 0)),
    ]
    plugin, target = bundle.manifest.plugin, bundle.manifest.engine
    return DemoReport(
        family=family,
        folder=str(folder),
        files={
            "pipeline": str(checkpoint),
            "router": str(router),
            "ONNX, fp32": str(exported["fp32"]),
            "ONNX, bf16": str(exported["bf16"]),
            "engine bundle": str(bundle.path),
            "route table": str(routes),
            "picture of the routes": str(picture),
            "video": str(video),
        },
        verified=verified,
        routes=table.summary(),
        attention_flops_saved=table.saved,
        plugin_layers=plugin.layers if plugin else 0,
        runs_on=", ".join(target.compute_capabilities) + (" and newer" if target.and_newer else ""),
    )


def next_steps(report: DemoReport) -> str:
    """Commands to run next on a machine with a GPU: with the files of this demo, and then with a real checkpoint."""
    folder = Path(report.folder)
    bundle, checkpoint, router = (
        shlex.quote(f"{folder.name}/{Path(report.files[what]).name}")
        for what in ("engine bundle", "pipeline", "router")
    )
    real = get_family(report.family).demo
    real_bundle = f"{report.family.replace('_', '-')}.bundle"
    return f"""\
This engine runs on GPUs of compute capability {report.runs_on}. On a machine with one, and with vorta-trt,
copy {folder} there, compare the engine with torch, and generate with it:

  vorta-trt doctor
  vorta-trt verify {bundle} {checkpoint} --router {router}
  vorta-trt generate {bundle} --checkpoint {checkpoint} --prompt "{PROMPT}" -o video.mp4

The same with a real checkpoint and its router (the build needs no GPU):

  vorta-trt build {real.checkpoint} --router ROUTER --size {real.size} --precision bf16 -o {real_bundle}
  vorta-trt generate {real_bundle} --prompt "A cat walks on grass" -o cat.mp4"""


def _make_model(family: str, checkpoint: Path, router: Path) -> None:
    """Writes a pipeline folder and a router for it."""
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
    from vorta_trt.model.random_pipeline import complete_pipeline

    geometry = AttentionGeometry.for_video(SIZE.frames, SIZE.height, SIZE.width, family)
    demo = get_family(family).demo
    sizes: dict[str, Any] = {"heads": HEADS, "head_dim": demo.head_dim, **demo.blocks}
    with errors_of_libraries(checkpoint, checkpoint):  # diffusers and transformers write the files
        make_checkpoint(checkpoint, family, **sizes, **demo.sizes)
        complete_pipeline(checkpoint)
        make_router(router, geometry, family, **sizes, video=(SIZE.frames, SIZE.height, SIZE.width))


def _make_video(onnx: Path, folder: Path, report: Report) -> Path:
    """Samples a video with the exported file in ONNX Runtime; it is saved as an array if av is not installed."""
    from vorta_trt.model.video_reader import import_av
    from vorta_trt.plugins.errors import VortaError
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
    from vorta_trt.runtime.sampling.params import SamplingParams

    try:
        import_av()
        path = folder / "video.mp4"
    except VortaError:
        path = folder / "video.npy"
    with VortaPipeline.from_pretrained(onnx, strict=True) as pipe:
        video = pipe(
            PROMPT,
            params=SamplingParams(num_inference_steps=VIDEO_STEPS, seed=0),
            on_step=lambda step, planned: report("generating a video", step, VIDEO_STEPS),
        )
    return video.save(path)


MARKER = ".vorta-trt-demo"


def _fresh(folder: Path) -> Path:
    """Makes the folder, or empties it if an earlier demo made it; returns its absolute path."""
    folder = folder.resolve()
    if folder.exists():
        if not folder.is_dir():
            raise FileExistsError(f"{folder}: is a file; give another --output")
        if any(folder.iterdir()):
            if not (folder / MARKER).is_file():
                raise FileExistsError(f"{folder}: holds files that the demo did not make; give another --output")
            shutil.rmtree(folder)
    make_folder(folder)
    write_text(folder / MARKER, "Made by `vorta-trt demo`, which may delete this folder.\n")
    return folder
