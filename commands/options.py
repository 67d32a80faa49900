# SPDX-License-Identifier: Apache-2.0
"""Options that several commands take, and how their texts are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vorta_trt.model.constants import COMPONENTS, DEFAULT_TAU
from vorta_trt.model.experts import BY_NOISE, NOISE, in_words
from vorta_trt.model.precision import PrecisionName
from vorta_trt.plugins.operator_schema import SAME_PRECISION, AttentionPrecision, LinearPrecision

if TYPE_CHECKING:
    from vorta_trt.model.files import FileKind
    from vorta_trt.model.lora.spec import LoraSpec
    from vorta_trt.runtime.from_checkpoint import Source


logger = logging.getLogger(__name__)

MOST_SEED = (1 << 64) - 1  # torch's generators take 64 bits


class Device(str, Enum):
    """The device that torch runs on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Expert(str, Enum):
    """One of two experts: the one for high noise or the one for low noise."""

    high = "high"
    low = "low"


ExpertOption = Annotated[
    Expert | None, typer.Option("--expert", help="Which of two experts, for checkpoints that have two.")
]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A diffusers pipeline folder, its transformer/ folder, or weights in another layout; see "
        "docs/checkpoints.md.",
    ),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="PART",
        help="Write a VAE or an encoder, too: vae_decoder, vae_encoder, text_encoder, text_encoder_2 or image_encoder, "
        "as the model has them, or all; may be repeated [default: none].",
    ),
]
Target = Annotated[Path, typer.Argument(metavar="BUNDLE|ONNX", help="A bundle, or an exported ONNX file.")]
PipelineFolder = Annotated[
    Path | None,
    typer.Option(
        help="The pipeline folder, for text encoder, VAE and scheduler [default: the one that the bundle was made "
        "from, if it lies beside it or here]."
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Take the weight files with this in their names, e.g. fp16 [default: none]."),
]
Router = Annotated[Path | None, typer.Option(help="A router's training folder, or its router.pt.")]
Routers = Annotated[
    list[str] | None,
    typer.Option(
        "--router",
        metavar="[high=|low=]ROUTER",
        help="A router's training folder, or its router.pt. A model with two experts takes one for each.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="FxHxW", help="Frames x height x width in pixels [default: what the router was trained for]."),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="FxHxW",
        help="Frames x height x width in pixels; repeated, the bundle has an engine for every size [default: what the "
        "router was trained for].",
    ),
]
OneSize = Annotated[
    str | None,
    typer.Option("--size", metavar="FxHxW", help="The video size, for a bundle with several [default: its first]."),
]
Component = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The transformer, of two: transformer or transformer_2 [default: the first]."),
]
Tau = Annotated[
    float | None,
    typer.Option(help=f"The default of the routing threshold; above 1 every head is full [default: {DEFAULT_TAU}]."),
]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The seed of everything random.")]
RoutesPlot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw the shares of the branches into this file (.png, .svg, .pdf)."),
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="P", min=1, help="How many GPUs of one machine share the work of a video [default: 1]."),
]
StepProfileFile = Annotated[
    Path | None,
    typer.Option(
        "--step-profile", metavar="FILE", help="Measured seconds of a step's parts, from which times are predicted."
    ),
]
RouteOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--route-override",
        metavar="[high=|low=]FILE",
        help="Use the routes in this file of `vorta-trt calibrate`. A model with two experts takes one for each.",
    ),
]
AttentionPrecisionOption = Annotated[
    AttentionPrecision | None,
    typer.Option(
        help="fp8 makes attention faster and less exact on GPUs of compute capability 8.9 or newer [default: same]."
    ),
]
LinearPrecisionOption = Annotated[
    LinearPrecision | None,
    typer.Option(
        help="fp8 multiplies the linear layers of the blocks in 8 bits: faster, half the weights, less exact [default: "
        "same]."
    ),
]
Ulysses = Annotated[
    int | None,
    typer.Option(
        "--ulysses",
        metavar="P",
        min=1,
        help="Build for P GPUs, which share the tokens and heads of every pass; run it with --gpus P. P divides the "
        "heads [default: 1].",
    ),
]
LinearKeep = Annotated[
    list[str] | None,
    typer.Option(
        "--linear-keep",
        metavar="PATTERN",
        help="With fp8, layers whose names match stay in 16 bits, e.g. 'blocks.0.*'; may be repeated; 'default' stands "
        "for the model's own list, which `vorta-trt inspect` shows: embedders, modulation, the last projection.",
    ),
]

LinearCalibrations = Annotated[
    list[str] | None,
    typer.Option(
        "--linear-calibration",
        metavar="[high=|low=]FILE",
        help="With fp8, a file of `vorta-trt calibrate --linear-output`: layers that fp8 harms stay in 16 bits, and "
        "engines without the plugin have static scales of the inputs. A model with two experts takes one for each.",
    ),
]

LinearErrorLimit = Annotated[
    float | None,
    typer.Option(
        metavar="ERROR",
        help="Keep layers in 16 bits whose relative error in --linear-calibration is above this [default: 0.08, a "
        "guess: twice that of random numbers].",
    ),
]

Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[high=|low=]FILE[:STRENGTH]",
        help="Fuse this LoRA into the weights; with two experts, into those of the named one. May be repeated "
        "[default strength: 1].",
    ),
]


@contextmanager
def usage(option: str | None = None) -> Iterator[None]:
    """Turns a ValueError inside the block into a usage error, which names `option` if that is given."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def sources_of(
    checkpoint: Path,
    routers: list[str] | None,
    size: str | None,
    precision: PrecisionName,
    tau: float | None,
    attention_precision: AttentionPrecision | None = None,
    route_overrides: list[str] | None = None,
    variant: str | None = None,
    lora: list[str] | None = None,
    linear_precision: LinearPrecision | None = None,
    linear_keep: list[str] | None = None,
    linear_calibrations: list[str] | None = None,
    linear_error_limit: float | None = None,
    ulysses: int | None = None,
) -> list[Source]:
    """The sources of a checkpoint from the values of options: one source, or one for each of two experts.

    A size that cannot be parsed, or an option for an expert that does not exist, is a usage error.
    """
    from vorta_trt.model.checkpoint import CheckpointReader
    from vorta_trt.model.linear_choice import check_linear_precision
    from vorta_trt.model.video_size import VideoSize
    from vorta_trt.runtime.from_checkpoint import Source

    linears = linear_precision or SAME_PRECISION
    with usage("--linear-keep"):
        check_linear_precision(linears, linear_keep)

    with usage("--size"):
        video = None if size is None else VideoSize.parse(size)
    with CheckpointReader(checkpoint, variant=variant) as reader:
        experts = reader.experts
    router = one_per_expert(routers, "--router", experts, shared=True)
    override = one_per_expert(route_overrides, "--route-override", experts)
    measured = one_per_expert(linear_calibrations, "--linear-calibration", experts)
    if measured and linears == SAME_PRECISION:
        raise typer.BadParameter("is for fp8; give --linear-precision fp8", param_hint="--linear-calibration")
    if linear_error_limit is not None and (not measured or not linear_error_limit > 0):
        rule = "must be above 0, and is for the errors in --linear-calibration; give that, or leave it out"
        raise typer.BadParameter(f"{linear_error_limit:g}: {rule}", param_hint="--linear-error-limit")
    attention = attention_precision or SAME_PRECISION
    fused = per_expert(lora, "--lora", experts)
    if router and (without := [each for each in experts if each not in {**router, **override}]):
        logger.warning("--router: none is given for %s, whose heads all stay full", in_words(without))
    if fused and (without := [component for component in experts if component not in fused]):
        logger.warning("--lora: none is given for %s, whose weights stay as they are", in_words(without))
    return [
        Source(
            checkpoint,
            _path(router.get(component)),
            video,
            precision,
            tau,
            attention,
            route_override=_path(override.get(component)),
            variant=variant,
            lora=loras(fused.get(component)),
            component=component,
            linear_precision=linears,
            linear_calibration=_path(measured.get(component)),
            linear_error_limit=linear_error_limit,
            linear_keep=None if linear_keep is None else tuple(linear_keep),
            ulysses=ulysses or 1,
        )
        for component in experts
    ]


def loras(values: list[str] | None) -> tuple[LoraSpec, ...]:
    """The LoRA files of `--lora`; a value that cannot be parsed is a usage error."""
    from vorta_trt.model.lora.spec import LoraSpec

    with usage("--lora"):
        return tuple(map(LoraSpec.parse, values or ()))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _is_path(value: str) -> bool:
    """Whether a text with "=" is a path, maybe followed by ":STRENGTH", rather than an expert and its file."""
    noise = value.partition("=")[0]
    return "/" in noise or Path(value).exists() or Path(value.rpartition(":")[0] or value).exists()


def per_expert(
    values: list[str] | None, option: str, experts: Sequence[str], *, shared: bool = False
) -> dict[str, list[str]]:
    """Sorts the values of an option by expert; the prefix high= or low= of a value names the expert.

    Args:
        values: Values of the option, as the user gave them; None for none.
        option: Name of the option, for error messages.
        experts: The components of all experts that the model has.
        shared: Whether a value without a prefix is used for both experts, with a warning.

    Returns:
        The values by component, without their prefixes.

    Raises:
        typer.BadParameter: A value names an expert that does not exist, or names none where the model has two.
    """
    found: dict[str, list[str]] = {}
    for value in values or ():
        noise, _, rest = value.partition("=")
        component = BY_NOISE.get(noise)
        if len(experts) > 1 and component is None and rest and not _is_path(value):
            raise typer.BadParameter(
                f"{value!r}: there is no such file, and no expert {noise!r}; the two experts are "
                f"{' and '.join(BY_NOISE)}",
                param_hint=option,
            )
        if len(experts) > 1 and component is None and shared:
            logger.warning(
                "%s %s: is used for both experts; one that was made for each is given as high=… and low=…",
                option,
                value,
            )
            for each in experts:
                found.setdefault(each, []).append(value)
            continue
        if len(experts) > 1 and (component is None or not rest):
            raise typer.BadParameter(
                f"{value!r}: the model has two experts; say for which it is, high={value} (much noise, {experts[0]}) "
                f"or low={value} (little noise, {experts[1]})",
                param_hint=option,
            )
        if len(experts) == 1:
            if component is not None and not Path(value).exists():
                raise typer.BadParameter(
                    f"{value!r}: the model has one transformer, and no experts for high and low noise; give {rest}",
                    param_hint=option,
                )
            component, rest = experts[0], value
        found.setdefault(str(component), []).append(rest)
    return found


def expert_of(checkpoint: Path, expert: Expert | None, variant: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The component that `--expert` names, and the components of all experts that the checkpoint has.

    Raises:
        typer.BadParameter: The checkpoint has two experts and none is named, or it has one transformer and one is.
    """
    from vorta_trt.model.checkpoint import CheckpointReader

    with CheckpointReader(checkpoint, variant=variant) as reader:
        experts = reader.experts
    if len(experts) > 1 and expert is None:
        raise typer.BadParameter(
            f"{checkpoint} has two experts, {in_words(experts)}; say which, high or low", param_hint="--expert"
        )
    if len(experts) == 1 and expert is not None:
        raise typer.BadParameter(
            f"{expert.value}: {checkpoint} has one transformer; leave it out", param_hint="--expert"
        )
    return experts[0] if expert is None else BY_NOISE[expert.value], experts


def experts_of_file(path: Path, *, first: bool = False) -> tuple[str, ...]:
    """The components of all experts of the model in an exported file or a bundle.

    With `first`, the file of a second expert is refused with a ValueError.
    """
    from vorta_trt.runtime.target import read_target

    target = read_target(path)
    if target.metadata is None:
        return COMPONENTS[:1]
    if first:
        target.metadata.check_first(target.path)
    return target.metadata.experts


def one_per_expert(
    values: list[str] | None, option: str, experts: Sequence[str], *, shared: bool = False
) -> dict[str, str]:
    """`per_expert`, with at most one value for each expert."""
    found = per_expert(values, option, experts, shared=shared)
    for component, given in found.items():
        if len(given) > 1:
            whose = "" if len(experts) == 1 else f" for {NOISE[component]} noise"
            raise typer.BadParameter(f"{', '.join(given)}: give one{whose}", param_hint=option)
    return {component: given[0] for component, given in found.items()}


def pixels(size: str) -> tuple[int, int, int]:
    """Frames, height and width of "77x720x1280"."""
    from vorta_trt.model.video_size import VideoSize

    with usage("--size"):
        video = VideoSize.parse(size)
    return video.frames, video.height, video.width


def listed(values: list[str] | None) -> tuple[str, ...]:
    """The single values of an option that is repeated, or has several values with commas between them, or both."""
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


def numbers(values: list[str] | None, option: str) -> tuple[int, ...]:
    """The values that `listed` returns, as whole numbers."""
    parts = listed(values)
    for part in parts:
        if not part.isdecimal():
            raise typer.BadParameter(f"{part!r}: must be a whole number; use e.g. 8", param_hint=option)
    return tuple(map(int, parts))


def decimals(text: str, option: str) -> tuple[float, ...]:
    """Parses numbers with commas between them."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: must be numbers with commas between them", param_hint=option) from None


def one_of(options: str, *values: object) -> None:
    """Raises a usage error unless exactly one of the options is given."""
    if sum(value is not None for value in values) != 1:
        raise typer.BadParameter("give one of them", param_hint=options)


def check_folder(path: Path | None, option: str, kind: FileKind | None = None) -> None:
    """Raises a usage error, before anything slow, if a file cannot be written or would replace one of another kind."""
    from vorta_trt.model.files import check_output
    from vorta_trt.model.write_errors import WriteError

    if path is not None:
        try:
            check_output(path, kind=kind)
        except WriteError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error


def quoted(path: Path) -> str:
    """A path as a JSON string."""
    import json

    return json.dumps(str(path))
