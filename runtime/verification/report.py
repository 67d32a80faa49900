# SPDX-License-Identifier: Apache-2.0
"""The outcome of `verify`: JSON for scripts, a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, computed_field

if TYPE_CHECKING:
    from rich.table import Table

FP32_LIMIT = 1e-5  # relative L2 error of an fp32 file
FP8_LIMIT = 5e-2  # relative L2 error of an engine with fp8 attention; torch, which it is compared with, has none here
SAME_DTYPE_FACTOR = 2.0  # times torch's own error in the same type, for fp16 and bf16

RULES = {
    "fp32": f"relative L2 error against torch fp32 at most {FP32_LIMIT:g}",
    "fp16": f"relative L2 error against torch fp32 at most {SAME_DTYPE_FACTOR:g} x torch fp16's own",
    "bf16": f"relative L2 error against torch fp32 at most {SAME_DTYPE_FACTOR:g} x torch bf16's own",
}
LINEAR_RULE = f"relative L2 error against torch fp32 at most {SAME_DTYPE_FACTOR:g} x torch {{}}'s own with fp8 products"
FP8_RULE = f"relative L2 error against torch fp32 at most {FP8_LIMIT:g}, because of fp8 attention"


class Strict(BaseModel):
    """A record that takes no unknown fields, and whose JSON holds infinity and NaN as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TensorError(Strict):
    """How far a tensor x of the engine is from y, the same tensor computed by torch in fp32.

    Attributes:
        max_abs: Largest absolute difference.
        relative_l2: |x - y| / |y|.
        torch_max_abs: Largest absolute difference of torch in the engine's type, with its fp8 products, from y. None
            for fp32 without fp8 products.
        torch_relative_l2: Relative L2 error of torch in the engine's type, with its fp8 products. None for fp32 without
            fp8 products.
        limit: The largest relative_l2 that the rule allows.
    """

    name: str
    max_abs: float
    relative_l2: float
    torch_max_abs: float | None
    torch_relative_l2: float | None
    limit: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the error is within the limit."""
        return self.relative_l2 <= self.limit  # False for nan


class AttentionError(Strict):
    """How far fp8 moves the output of one attention, or the sample.

    Attributes:
        relative_l2: |x - y| / |y|, where x is computed with fp8 and y without, otherwise in the same type.
        norm_ratio: |x| / |y|.
    """

    relative_l2: float
    norm_ratio: float


class Fp8Report(AttentionError):
    """What fp8 attention does to the sample of a case, and to every layer's attention.

    Attributes:
        source: "kernels" of this GPU, or "emulation" in torch, which rounds as they do but not bit for bit.
        layers: Error of each layer's attention by itself: the fp8 and the exact attention get the same inputs.
    """

    source: Literal["kernels", "emulation"]
    layers: list[AttentionError]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_layer(self) -> int:
        """The layer with the largest error."""
        return max(range(len(self.layers)), key=lambda layer: self.layers[layer].relative_l2)


class LinearError(AttentionError):
    """How far fp8 moves the product of one linear layer.

    The exact product is in float32, with the weight before it was rounded.
    """

    name: str


class LinearReport(AttentionError):
    """What fp8 products do to the sample of a case, and to every linear layer that runs in fp8.

    The sample is compared with float32 without fp8, so its error includes the rounding of the file's type.

    Attributes:
        layers: Error of each layer's product by itself: the fp8 and the exact product get the same input.
    """

    layers: list[LinearError]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_layer(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=lambda layer: layer.relative_l2).name


class CaseReport(Strict):
    """One case.

    Attributes:
        draws: On how many different inputs the case ran, normally 1 (see `redraw`). With several, all other fields are
            those of the run with the median error.
        different_routes: Number of heads, over all samples and layers, that took another branch in torch.
        routes: Number of heads over all samples and layers.
        fp8_attention: Error of fp8 attention; None unless the file asks for it.
        fp8_linears: Error of fp8 products of linear layers; None unless the file has some.
    """

    name: str
    draws: int = 1
    outputs: list[TensorError]
    different_routes: int
    routes: int
    fp8_attention: Fp8Report | None = None
    fp8_linears: LinearReport | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether all outputs pass, and no head took another branch."""
        return self.different_routes == 0 and all(output.passed for output in self.outputs)


class LayerReport(Strict):
    """Errors after every module, in order of execution, for one case."""

    case: str
    modules: list[TensorError]
    note: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def first_departure(self) -> str | None:
        """The first module whose output breaks the rule."""
        return next((module.name for module in self.modules if not module.passed), None)


class VerifyReport(Strict):
    """What `verify` found; `passed` is the verdict."""

    target: str
    component: str = "transformer"
    size: str | None = None
    checkpoint: str
    router: str | None
    executor: str
    precision: str
    attention_precision: str = "same"  # as the file asks for it; only the kernels, in TensorRT, compute in fp8
    linear_precision: str = "same"
    batch: int
    seed: int
    rule: str
    seconds: float
    cases: list[CaseReport]
    layers: LayerReport | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether all cases pass."""
        return bool(self.cases) and all(case.passed for case in self.cases)


def rule(precision: str, fp8_attention: bool, fp8_linears: bool = False) -> str:
    """The rule in words.

    Args:
        precision: Type of the file.
        fp8_attention: Whether the engine computed its attention in fp8.
        fp8_linears: Whether the engine has linear layers in fp8.
    """
    if fp8_attention:
        return FP8_RULE
    return LINEAR_RULE.format(precision) if fp8_linears else RULES[precision]


def limit(torch_relative_l2: float | None, fp8_attention: bool = False) -> float:
    """The largest relative L2 error that the rule allows.

    It is never below `FP32_LIMIT`, or `FP8_LIMIT` with fp8 attention: below that, rounding alone decides.
    """
    least = FP8_LIMIT if fp8_attention else FP32_LIMIT
    if torch_relative_l2 is None:
        return least
    return max(SAME_DTYPE_FACTOR * torch_relative_l2, least)


def case_table(report: VerifyReport) -> Table:
    """Every case with its errors, and torch's own error in the engine's type where it was measured."""
    from rich.table import Table

    engine = f"{report.component} {report.size}" if report.size else report.component
    table = Table(title=f"{report.target}, {engine} ({report.executor}) against torch", caption=_rule(report))
    own = _own(report)
    _columns(table, own, "case", "output")
    table.add_column("routes", justify="right")
    table.add_column("")
    for case in report.cases:
        routes = "equal" if case.different_routes == 0 else f"{case.different_routes} of {case.routes} differ"
        for index, output in enumerate(case.outputs):
            first = index == 0
            verdict = output.passed and (case.different_routes == 0 or not first)
            cells = [_case_name(case) if first else "", output.name, *_errors(output, own)]
            table.add_row(*cells, routes if first else "", _verdict(verdict))
    return table


def fp8_table(report: VerifyReport) -> Table | None:
    """What fp8 attention does in every case; None for a file that does not ask for it."""
    from rich.table import Table

    measured = [(case, case.fp8_attention) for case in report.cases if case.fp8_attention is not None]
    if not measured:
        return None
    source = measured[0][1].source
    how = "measured with this GPU's kernels" if source == "kernels" else "emulated in torch: no fp8 kernels here"
    table = Table(title=f"fp8 attention against {report.precision} attention, {how}", caption="norm: |fp8| / |exact|")
    table.add_column("case", no_wrap=True)
    for header in ("sample rel. L2", "norm", "worst layer", "rel. L2", "norm"):
        table.add_column(header, justify="right", no_wrap=True)
    for case, fp8 in measured:
        worst = fp8.layers[fp8.worst_layer]
        numbers = [f"{fp8.relative_l2:.1e}", f"{fp8.norm_ratio:.4f}", str(fp8.worst_layer)]
        table.add_row(_case_name(case), *numbers, f"{worst.relative_l2:.1e}", f"{worst.norm_ratio:.4f}")
    return table


def linear_table(report: VerifyReport) -> Table | None:
    """What fp8 products do to each linear layer, over all cases, and to the sample; None for a file without them."""
    from rich.table import Table

    measured = [case.fp8_linears for case in report.cases if case.fp8_linears is not None]
    if not measured:
        return None
    samples = f"sample: rel. L2 at most {max(each.relative_l2 for each in measured):.1e}, norm "
    samples += " to ".join(f"{bound(each.norm_ratio for each in measured):.4f}" for bound in (min, max))
    table = Table(title="linear layers in fp8 against exact products of the same inputs", caption=samples)
    table.add_column("layer", no_wrap=True)
    for header in ("worst rel. L2", "least norm", "largest norm"):
        table.add_column(header, justify="right", no_wrap=True)
    layers: dict[str, list[LinearError]] = {}
    for each in measured:
        for layer in each.layers:
            layers.setdefault(layer.name, []).append(layer)
    for name, errors in layers.items():
        ratios = [error.norm_ratio for error in errors]
        numbers = [f"{max(error.relative_l2 for error in errors):.1e}", f"{min(ratios):.4f}", f"{max(ratios):.4f}"]
        table.add_row(name, *numbers)
    return table


def layer_table(report: VerifyReport) -> Table | None:
    """Every module with its error, in order of execution; None if modules were not compared."""
    from rich.table import Table

    layers = report.layers
    if layers is None:
        return None
    table = Table(title=f"after each module, case {layers.case!r}", caption=layers.note)
    own = _own(report)
    _columns(table, own, "module")
    table.add_column("")
    for module in layers.modules:
        table.add_row(module.name, *_errors(module, own), _verdict(module.passed))
    return table


def _case_name(case: CaseReport) -> str:
    return case.name if case.draws == 1 else f"{case.name} (middle of {case.draws})"


def _rule(report: VerifyReport) -> str:
    return f"rule: {report.rule}; routes equal. seed {report.seed}, batch {report.batch}, {report.seconds:.1f} s"


def _own(report: VerifyReport) -> str | None:
    """The header of the column with torch's own error; None where torch ran in float32 alone."""
    in_fp8 = report.linear_precision == "fp8"
    if report.precision == "fp32" and not in_fp8:
        return None
    return f"torch {report.precision}{' with fp8' if in_fp8 else ''}"


def _columns(table: Table, own: str | None, *names: str) -> None:
    for name in names:
        table.add_column(name, no_wrap=True)
    headers = ["max abs", "rel. L2"]
    if own is not None:
        headers.append(own)
    for header in (*headers, "limit"):
        table.add_column(header, justify="right", no_wrap=True)


def _errors(error: TensorError, own: str | None) -> list[str]:
    cells = [f"{error.max_abs:.1e}", f"{error.relative_l2:.1e}"]
    if own is not None:
        cells.append("" if error.torch_relative_l2 is None else f"{error.torch_relative_l2:.1e}")
    return [*cells, f"{error.limit:.1e}"]


def _verdict(passed: bool) -> str:
    return "[green]ok[/green]" if passed else "[red]FAILED[/red]"
