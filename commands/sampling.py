# SPDX-License-Identifier: Apache-2.0
"""The options of sampling: one per field of `SamplingParams`, with the field's type, default and text.

A command takes all of these options, or those of the fields that it uses. Whatever `SamplingParams` refuses is a usage
error that names the option.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, get_args, get_origin

import typer

from vorta_trt.commands.expand import Options
from vorta_trt.commands.options import decimals, numbers

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

    from vorta_trt.runtime.sampling.params import SamplingParams
    from vorta_trt.runtime.schedules import Schedule

SHORT = {"num_inference_steps": "--steps"}  # a second, shorter name of the option
CACHE = "cache"  # the field whose value has settings, each of which has its own option


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Attributes:
        name: Name of the command's parameter; the option has the same name, with hyphens.
        kind: Type that typer reads: str, float, int or bool.
        help: Help text of the option, including the default.
        metavar: Placeholder of the value in the help; None takes typer's own.
        read: Converts the value that typer read to the field's value.
        method: For a setting of a cache, the cache's method and the setting's name there; None for fields of
            `SamplingParams`.
    """

    name: str
    kind: type
    help: str
    metavar: str | None = None
    read: Callable[[Any], Any] = lambda value: value
    method: tuple[str, str] | None = None

    @property
    def flag(self) -> str:
        """The name of the option in error messages."""
        return SHORT.get(self.name, f"--{self.name.replace('_', '-')}")

    def parameter(self) -> inspect.Parameter:
        """The option as a parameter of a command; None (False for a switch) if it is not given."""
        flags = dict.fromkeys((f"--{self.name.replace('_', '-')}", self.flag))
        about = typer.Option(*flags, metavar=self.metavar, help=self.help)
        kind = self.kind if self.kind is bool else self.kind | None
        default = False if self.kind is bool else None
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, about]
        )


CACHE_OPTIONS = (
    Option(
        "cache_threshold",
        float,
        "tea: the change that may add up before a step is computed [default: as published].",
        method=("tea", "threshold"),
    ),
    Option(
        "cache_coefficients",
        str,
        "tea: the polynomial from embedding to output change. published goes by the checkpoint's name, NAME says which "
        "published checkpoint it is; none takes the distance as it is, and wants thresholds about ten times smaller "
        "[default: published].",
        metavar="published|NAME|none|FILE",
        method=("tea", "coefficients"),
    ),
    Option(
        "cache_signal",
        str,
        "tea: the embedding that is compared from step to step [default: embedding].",
        metavar="embedding|modulation",
        method=("tea", "signal"),
    ),
    Option(
        "cache_range",
        str,
        "broadcast: the timesteps between which steps are skipped [default: 100:800].",
        metavar="LOW:HIGH",
        read=lambda text: _range(text),
        method=("broadcast", "timestep_range"),
    ),
    Option(
        "cache_interval",
        int,
        "broadcast: every how many steps one is computed [default: 2].",
        method=("broadcast", "interval"),
    ),
)


class SamplingOptions(Options):
    """The options of all fields. A subclass may take only some of them (`names`), and may set other `defaults`."""

    names: ClassVar[tuple[str, ...] | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {}  # defaults that differ from those of `SamplingParams`

    def __init__(self, **given: Any) -> None:
        self._given = {name: value for name, value in given.items() if value is not None and value is not False}

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The options, as parameters of a command."""
        return [option.parameter() for option in cls.options()]

    @classmethod
    def options(cls) -> list[Option]:
        """The options in the order of the fields; those of a cache's settings follow `--cache`."""
        from vorta_trt.runtime.sampling.params import SamplingParams

        options: list[Option] = []
        for name, field in SamplingParams.model_fields.items():
            if cls.names is None or name in cls.names:
                default = cls.defaults.get(name, field.default)
                options += [_option(name, field, default), *(CACHE_OPTIONS if name == CACHE else ())]
        return options

    @property
    def given(self) -> list[str]:
        """The options that were given, as the user wrote them."""
        return [option.flag for option in self.options() if option.name in self._given]

    def params(self, preset: Mapping[str, Any] | None = None) -> SamplingParams:
        """The given options as `SamplingParams`.

        Args:
            preset: Settings of a preset, for fields whose option was not given.

        Raises:
            typer.BadParameter: The fields or their rules refuse a value.
        """
        from pydantic import ValidationError

        from vorta_trt.runtime.sampling.params import SamplingParams
        from vorta_trt.runtime.sampling.presets import combined

        values = {
            option.name: option.read(self._given[option.name])
            for option in self.options()
            if option.name in self._given and option.method is None
        }
        if (cache := self._cache(values.pop(CACHE, None))) is not None:
            values[CACHE] = cache
        try:
            return SamplingParams(**{**self.defaults, **combined(preset or {}, values)})
        except ValidationError as error:
            self._refuse(error)

    def _cache(self, method: str | None) -> Mapping[str, Any] | None:
        """The cache with its settings, as `SamplingParams` takes it."""
        settings: dict[str, Any] = {}
        for option in CACHE_OPTIONS:
            if option.method is not None and option.name in self._given:
                if option.method[0] != method:
                    raise typer.BadParameter(
                        f"belongs to --cache {option.method[0]}; give that too", param_hint=option.flag
                    )
                settings[option.method[1]] = option.read(self._given[option.name])
        if (coefficients := settings.pop("coefficients", None)) is not None:
            settings = {**settings, **_coefficients(coefficients, settings.get("signal"))}
        return None if method is None else {"method": method, **settings}

    def _refuse(self, error: ValidationError) -> NoReturn:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        place = [str(part) for part in problem["loc"]] or message.split()[:1]  # or the field that a rule names
        found = [
            option
            for option in self.options()
            if option.name == "_".join(place[:1]) or (option.method and place[1:3] == list(option.method))
        ]
        if not found:
            raise typer.BadParameter(message) from error
        option = found[-1]
        if problem["loc"] and isinstance(problem["input"], str | int | float):
            message = f"{problem['input']!r}: {message}"
        raise typer.BadParameter(message, param_hint=option.flag) from error


class CommonOptions(SamplingOptions):
    """The options that two compared settings share: all but thresholds, and dense steps and layers."""

    names = (
        *("num_inference_steps", "scheduler", "flow_shift", "sigmas", "timesteps", "renoise", "guidance_scale"),
        *("guidance_scale_2", "true_cfg_scale", "negative_prompt", "seed", "guidance_batching", "cache"),
    )
    defaults = {"seed": 0}


class ScheduleOptions(SamplingOptions):
    """The options that decide which timesteps are sampled."""

    names = ("num_inference_steps", "scheduler", "flow_shift", "sigmas", "timesteps")

    def schedule(self, checkpoint: Path) -> Schedule:
        """The schedule that the checkpoint's pipeline would sample with."""
        from vorta_trt.runtime.schedules import FLOW_EULER, given_schedule, schedule_timesteps

        params = self.params()
        if params.gives_steps:
            return given_schedule(
                checkpoint, params.scheduler or FLOW_EULER, sigmas=params.sigmas, timesteps=params.timesteps
            )
        return schedule_timesteps(checkpoint, params.num_inference_steps, params.scheduler, params.flow_shift)


class RunOptions(SamplingOptions):
    """Options of the denoising runs of a calibration, whose schedule is divided into buckets."""

    names = ("num_inference_steps", "scheduler", "flow_shift", "guidance_scale", "seed")
    defaults = {"seed": 0}


def _option(name: str, field: FieldInfo, default: Any) -> Option:
    """Makes the option of a field, according to the field's type."""
    if name == CACHE:
        methods = dict.fromkeys(option.method[0] for option in CACHE_OPTIONS if option.method is not None)
        return Option(CACHE, str, _help(field, default), "|".join(methods))
    kind = _without_none(field.annotation)
    flag = f"--{name.replace('_', '-')}"
    if get_origin(kind) is tuple:
        reads = {float: lambda text: decimals(text, flag), int: lambda text: numbers([text], flag)}
        element = get_args(kind)[0]
        element = get_args(element)[0] if get_origin(element) is Annotated else element
        metavar = {float: "X,X,...", int: "N,N,..."}[element]
        return Option(name, str, _help(field, default), metavar, reads[element])
    if get_origin(kind) is Literal:
        return Option(name, str, _help(field, default), "|".join(get_args(kind)))
    if issubclass(kind, Enum):
        return Option(name, str, _help(field, default), "|".join(str(member.value) for member in kind))
    return Option(name, kind, _help(field, default))


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if kinds and NoneType in get_args(annotation) else annotation


def _help(field: FieldInfo, default: Any) -> str:
    """A field's description as help text.

    The part after "; None is " becomes the default, and names of other fields become their options.
    """
    from vorta_trt.runtime.sampling.params import SamplingParams

    text = " ".join((field.description or "").split()).removesuffix(".")
    text, _, unset = text.partition("; None is ")
    for name in SamplingParams.model_fields:
        text = re.sub(rf"`{name}`", SHORT.get(name, f"--{name.replace('_', '-')}"), text)
    value = default.value if isinstance(default, Enum) else default
    if value is not None and value is not False and value != ():
        unset = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} [default: {unset}]." if unset else f"{text}."


def _coefficients(text: str, signal: str | None) -> dict[str, Any]:
    """Settings of `TeaCache` for its polynomial: that of a published checkpoint, the identity, or one from a file."""
    from vorta_trt.model.families import families

    if text == "published":
        return {}
    if any(text in family.tea_cache_models() for family in families()):
        return {"model": text}
    if text == "none":
        from vorta_trt.runtime.sampling.tea_cache import IDENTITY

        return {"coefficients": IDENTITY}
    from vorta_trt.runtime.sampling.tea_fit import TeaCoefficients

    fitted = TeaCoefficients.load(Path(text))
    if signal not in (None, fitted.signal):
        raise typer.BadParameter(
            f"{signal}: {text} was fitted for {fitted.signal}; leave it out", param_hint="--cache-signal"
        )
    return {"coefficients": fitted.coefficients, "signal": fitted.signal, "fitted_range": fitted.fitted_range}


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: must be LOW:HIGH, timesteps; use e.g. 100:800", param_hint="--cache-range"
        ) from None
    return low, high
