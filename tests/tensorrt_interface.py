# SPDX-License-Identifier: Apache-2.0
"""The Python interface of a TensorRT: its classes and the signatures of their methods, read without running any of it.

There are two sources. The package tensorrt-stubs has the stub of TensorRT 10.13, whose own bindings need a GPU's
driver. Bindings that are installed, such as those of the lean runtime, say the same in pybind11's docstrings.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ENUM_VALUE = re.compile(r"#\s*value = <[\w.]+: (-?\d+)>")
OWN_PREFIX = re.compile(r"\btensorrt\w*\.tensorrt\w*\.")
DEFAULT_OBJECT = re.compile(r"= <[^>]*>")


@dataclass
class ClassInterface:
    """One class.

    Attributes:
        bases: Names of the classes that it derives from.
        methods: Overloads by name; a method's first parameter, self, is left out.
        properties: The annotation of what can be read, by name.
        writable: Names of the properties that can be set.
        members: Values by name, of an enum.
        nested: Classes inside it, by name.
    """

    bases: list[str] = field(default_factory=list)
    methods: dict[str, list[Signature]] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    writable: set[str] = field(default_factory=set)
    members: dict[str, int] = field(default_factory=dict)
    nested: dict[str, ClassInterface] = field(default_factory=dict)


@dataclass
class Interface:
    """A module's classes and functions."""

    name: str
    classes: dict[str, ClassInterface] = field(default_factory=dict)
    functions: dict[str, list[Signature]] = field(default_factory=dict)

    def lineage(self, name: str) -> Iterator[ClassInterface]:
        """The class and those that it derives from."""
        if name in self.classes:
            yield self.classes[name]
            for base in self.classes[name].bases:
                yield from self.lineage(base)

    def method(self, kind: str, name: str) -> list[Signature]:
        """Overloads of a method, inherited or not; empty if there is no such method."""
        return next((each.methods[name] for each in self.lineage(kind) if name in each.methods), [])

    def attributes(self, kind: str) -> set[str]:
        """The names of everything in a class."""
        return {
            name
            for each in self.lineage(kind)
            for names in (each.methods, each.properties, each.members, each.nested)
            for name in names
        }

    def has(self, path: str) -> bool:
        """Whether a dotted name such as "BuilderFlag.FP16" exists; parts behind a class's member are not checked."""
        first, _, rest = path.partition(".")
        if first not in self.classes:
            return first in self.functions
        return not rest or rest.partition(".")[0] in {*self.attributes(first), "__members__", "__init__"}


def allows(signatures: list[Signature], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Signature | None:
    """The first overload that takes these arguments; None if none does."""
    for signature in signatures:
        try:
            signature.bind(*arguments, **keywords)
        except TypeError:
            continue
        return signature
    return None


@cache
def tensorrt_10_13() -> Interface:
    """The interface of TensorRT 10.13, from the package tensorrt-stubs. Skips the test if that is not installed."""
    try:
        package = importlib.metadata.distribution("tensorrt-stubs")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the stub: pip install --no-deps tensorrt-stubs==10.13.0.35.1 (make test does)")
    assert package.version.startswith("10.13."), package.version
    return read_stub(Path(str(package.locate_file("tensorrt_bindings/tensorrt.pyi"))), "TensorRT 10.13")


def read_stub(path: Path, name: str) -> Interface:
    lines = [_parsable(line) for line in path.read_text().splitlines()]
    interface = Interface(name)
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.ClassDef):
            interface.classes[node.name] = _class_of(node, lines)
        elif isinstance(node, ast.FunctionDef):
            interface.functions.setdefault(node.name, []).append(_signature(node, method=False))
    return interface


def _parsable(line: str) -> str:
    """Repairs a signature that only C++ allows: drops defaults before arguments without one, renames `in`."""
    if not line.lstrip().startswith("def "):
        return line
    try:
        ast.parse(f"{line.strip()} ...")
    except SyntaxError:
        return re.sub(r" = [^,()]+", "", re.sub(r"\bin: ", "in_: ", line))
    return line


def _class_of(node: ast.ClassDef, lines: list[str]) -> ClassInterface:
    found = ClassInterface(bases=[ast.unparse(base) for base in node.bases])
    for item in node.body:
        if isinstance(item, ast.ClassDef):
            found.nested[item.name] = _class_of(item, lines)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            value = ENUM_VALUE.search(lines[item.lineno - 1])
            if value is not None:
                found.members[item.target.id] = int(value[1])
            else:
                found.properties[item.target.id] = ast.unparse(item.annotation)
                found.writable.add(item.target.id)
        elif isinstance(item, ast.FunctionDef):
            decorators = [ast.unparse(decorator) for decorator in item.decorator_list]
            if "property" in decorators:
                found.properties[item.name] = "" if item.returns is None else ast.unparse(item.returns)
            elif f"{item.name}.setter" in decorators:
                found.writable.add(item.name)
            else:
                signature = _signature(item, method="staticmethod" not in decorators)
                found.methods.setdefault(item.name, []).append(signature)
    return found


def _signature(node: ast.FunctionDef, *, method: bool) -> Signature:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    first_default = len(plain) - len(arguments.defaults)
    parameters = [
        Parameter(
            each.arg,
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None if index >= first_default else Parameter.empty,
            annotation="" if each.annotation is None else ast.unparse(each.annotation),
        )
        for index, each in enumerate(plain)
    ]
    if arguments.vararg:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    returns = "" if node.returns is None else ast.unparse(node.returns)
    return Signature(parameters[1:] if method else parameters, return_annotation=returns)


def read_bindings(module: ModuleType) -> Interface:
    """The interface of imported bindings. Their classes are introspected, nothing is called."""
    interface = Interface(f"{module.__name__} {module.__version__}")
    for name, value in vars(module).items():
        if isinstance(value, type):
            interface.classes[name] = _class_of_binding(value)
        elif callable(value) and not name.startswith("_"):
            interface.functions[name] = list(_from_docstring(name, value.__doc__ or "", method=False))
    return interface


def _class_of_binding(kind: type) -> ClassInterface:
    found = ClassInterface(bases=[base.__name__ for base in kind.__bases__ if base.__name__ != "pybind11_object"])
    found.members = {name: int(value) for name, value in getattr(kind, "__members__", {}).items()}
    for name, value in vars(kind).items():
        if name in found.members:
            continue
        if isinstance(value, type):
            found.nested[name] = _class_of_binding(value)
        elif isinstance(value, property):
            found.properties[name] = ""
            found.writable |= {name} if value.fset is not None else set()
        elif callable(value) or isinstance(value, staticmethod):
            found.methods[name] = list(_from_docstring(name, value.__doc__ or "", method=True))
    return found


def _from_docstring(name: str, text: str, *, method: bool) -> Iterator[Signature]:
    """The signatures in a pybind11 docstring, which begins with one, or numbers those of an overloaded function."""
    overloaded = "Overloaded function." in text
    for line in text.splitlines():
        line = re.sub(r"^\d+\. ", "", line) if overloaded else line
        if not line.startswith(f"{name}(") or "(*args, **kwargs)" in line:
            continue
        header, _, returns = DEFAULT_OBJECT.sub("= 0", OWN_PREFIX.sub("", line)).replace("::", ".").rpartition(" -> ")
        node = ast.parse(_parsable(f"def {header}:") + " ...").body[0]
        assert isinstance(node, ast.FunctionDef)
        yield _signature(node, method=method).replace(return_annotation=returns)
        if not overloaded:
            return


def same_or_fewer(fake: Any, signatures: list[Signature]) -> bool:
    """Whether every call that a stand-in's function takes by position is one that the real one takes."""
    parameters = [p for p in inspect.signature(fake).parameters.values() if p.name != "self"]
    least = sum(parameter.default is Parameter.empty for parameter in parameters)
    return all(allows(signatures, (None,) * count, {}) is not None for count in range(least, len(parameters) + 1))
