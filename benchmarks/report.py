# SPDX-License-Identifier: Apache-2.0
"""Rows and files of `vorta-trt bench attention`: the figures, the machine, and how to repeat the run."""

from __future__ import annotations

import ast
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from vorta_trt.model.files import FileKind, json_kind
from vorta_trt.model.records import Record, first_error, load_content
from vorta_trt.plugins.errors import VortaError

SCHEMA = 1
AnyRow = TypeVar("AnyRow")
OURS, CUDNN_NAME = "vorta-trt", "torch cuDNN"


class ReportError(VortaError, ValueError):
    """A file that is no report of this benchmark."""


@dataclass(frozen=True)
class Row:
    """One implementation on one branch of one case.

    The case's own facts (geometry, tokens, heads, types) stand first, under their names.

    Attributes:
        branch: The branch that all heads take, or the mix.
        implementation: Name of our implementation or of a peer.
        state: "ok"; "wrong" where it does not compute what the reference does, so it was not timed; "failed" where ours
            raised an error; "unavailable" where a peer, or a family of our
            kernels, cannot run this here.
        note: The reason of a state that is not "ok".
        milliseconds: Median over `runs` runs.
        minimum: Milliseconds of the fastest run.
        p90: Milliseconds that 90 % of the runs do not exceed.
        useful_tflops: 2 products x 2 x D x the pairs that the branch needs, over the median.
        ceiling_share: `useful_tflops` over those of a plain matrix product.
        relative_error: Error of the checked head against float32.
        torch_error: Error of torch's attention in the same type on the same pairs.
        error_bound: Largest `relative_error` that is accepted.
        times_own_dense: How many times faster than our own dense branch on the same case.
        times_cudnn: How many times faster than cuDNN's.
        parts: For mixed routes, milliseconds of the sum of the parts and how many times longer the mixed call takes.
            "prorated" takes each branch's share of the call in which all heads take it, "separate" a call for each
            branch's heads alone.
    """

    case: str
    geometry: str
    grid: tuple[int, int, int]
    tile: tuple[int, int, int]
    window: tuple[int, int, int]
    tokens: int
    text_tokens: int
    text_length: int
    heads: int
    head_dim: int
    dtype: str
    inputs: str
    branch: str
    implementation: str
    state: str = "ok"
    note: str = ""
    density: float | None = None
    milliseconds: float | None = None
    minimum: float | None = None
    p90: float | None = None
    runs: int | None = None
    useful_tflops: float | None = None
    ceiling_share: float | None = None
    relative_error: float | None = None
    torch_error: float | None = None
    error_bound: float | None = None
    times_own_dense: float | None = None
    times_cudnn: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether the row is ours and no peer's."""
        return self.implementation.startswith(OURS)


class JudgedRow(Protocol):
    """A row of ours or of a peer, with the state of its measurement."""

    @property
    def ours(self) -> bool:
        """Whether it is ours."""
        ...

    @property
    def state(self) -> str:
        """Is "ok", or why it has no time."""
        ...


OneRow = TypeVar("OneRow", bound=JudgedRow)


@dataclass(frozen=True)
class RowReport(Generic[OneRow]):
    """`about`: environment, options, ceiling; `rows` in the order in which they were measured.

    Attributes:
        QUESTION: Name of the benchmark in its files.
        ROW: Type of its rows.
    """

    QUESTION: ClassVar[str]
    ROW: ClassVar[type[Any]]

    about: Mapping[str, Any]
    rows: Sequence[OneRow]

    @property
    def passed(self) -> bool:
        """Whether nothing of ours is wrong or failed, and something of ours was measured; peers do not count.

        A row of ours is "unavailable" where no kernel computes a combination that the options ask for.
        """
        states = {row.state for row in self.rows if row.ours}
        return states <= {"ok", "unavailable"} and states != {"unavailable"}

    def to_json(self) -> str:
        """Gives the content of a report's file."""
        rows = [asdict(row) for row in self.rows]  # type: ignore[call-overload]  # they are dataclasses
        return json.dumps({"schema": SCHEMA, "question": self.QUESTION, **self.about, "rows": rows}, indent=1)

    @classmethod
    def read(cls: type[AnyReport], path: Path) -> AnyReport:
        """Reads what `to_json` gave; raises OSError, or ReportError for anything that is no such report."""
        content = read_content(path, SCHEMA, cls.QUESTION)
        rows = read_rows(cls.ROW, content, "rows", path)
        return cls(read_about(About, content, path), rows)


AnyReport = TypeVar("AnyReport", bound=RowReport[Any])


@dataclass(frozen=True)
class Report(RowReport[Row]):
    """The report of `bench attention`."""

    QUESTION = "attention"
    ROW = Row

    def cases(self) -> dict[str, list[Row]]:
        """Rows by case, in order."""
        grouped: dict[str, list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.case, []).append(row)
        return grouped


def report_kind(question: str) -> FileKind:
    """What a report of `bench QUESTION` may replace: one of the same benchmark, of any version."""
    return json_kind(f"report of `bench {question}`", "schema", "rows", values={"question": question})


def read_content(path: Path, schema: int, question: str) -> dict[str, Any]:
    """The JSON object of a report; raises OSError, or ReportError for that of another question or version."""
    content = load_content(path, "report", "give a file of --output")
    if not isinstance(content, dict) or (content.get("schema"), content.get("question")) != (schema, question):
        raise ReportError(f"{path}: is no report of `bench {question}` with schema {schema}; give a file of --output")
    return content


class About(Record, extra="allow"):
    """What tables and pictures show of the machine.

    Attributes:
        gpu: Name of the GPU.
        driver: Version of the GPU's driver.
        cudnn: Version of cuDNN.
        commit: Commit of vorta-trt.
        versions: Versions of packages, by name.
        ceiling_tflops: TFLOP/s of a plain matrix product.
    """

    gpu: str | None = None
    driver: str | None = None
    cudnn: int | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    ceiling_tflops: float | None = None


def read_about(kind: type[About], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Everything of a report but its rows; raises ReportError, naming key, value and rule, for other values."""
    about = {key: value for key, value in content.items() if key not in ("schema", "question", "rows", "loops")}
    try:
        kind.model_validate_json(json.dumps(about))
    except ValidationError as error:
        message = f"report {path}: {first_error(error)}; give a file of this version's --output"
        raise ReportError(message) from error
    return about


def read_rows(kind: type[AnyRow], content: Mapping[str, Any], key: str, path: Path) -> list[AnyRow]:
    """The rows under a key of a report; raises ReportError, naming key, value and rule, for others."""
    try:
        return TypeAdapter(list[kind]).validate_json(json.dumps(content.get(key)))  # type: ignore[valid-type]
    except ValidationError as error:
        raise ReportError(
            f"report {path}: {key}: {first_error(error)}; give a file of this version's --output"
        ) from error


def failed_row(row: Row, error: Exception) -> Row:
    """The row of an implementation of ours that raised an error."""
    return replace(row, state="failed", note=str(error).strip().partition("\n")[0])


def with_speedups(rows: Iterable[Row]) -> list[Row]:
    """The rows of one case, with speedups over our own dense branch and over cuDNN's; absent where one is missing."""
    rows = list(rows)

    def dense(implementation: str) -> float | None:
        times = (row.milliseconds for row in rows if (row.branch, row.implementation) == ("full", implementation))
        return next(times, None)

    ours = [row.implementation for row in rows if row.ours]
    own = dense(OURS) if OURS in ours else dense(ours[0]) if ours else None  # fp8's own, if it is measured alone
    cudnn = dense(CUDNN_NAME)

    def times(reference: float | None, row: Row) -> float | None:
        return None if reference is None or row.milliseconds is None else round(reference / row.milliseconds, 3)

    return [replace(row, times_own_dense=times(own, row), times_cudnn=times(cudnn, row)) for row in rows]


def recorded_errors(junit: Path) -> list[dict[str, Any]]:
    """Errors that `pytest -m gpu tests/plugins --junit-xml FILE -o junit_family=legacy` recorded as properties."""
    try:
        properties = list(ElementTree.parse(junit).getroot().iter("property"))
    except ElementTree.ParseError as error:
        raise ReportError(f"{junit}: is no XML ({error}); give a file of pytest's --junit-xml") from error
    return [{"case": item.get("name"), **ast.literal_eval(item.get("value", ""))} for item in properties]
