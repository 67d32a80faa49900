# SPDX-License-Identifier: Apache-2.0
"""A stand-in module made from a TensorRT's interface: it has the same names and takes the same arguments, no others.

The test says what the calls do. By default, a function returns a value of the type that the interface states. A class
that the caller derives must take the arguments that TensorRT will call its methods with.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..tensorrt_interface import ClassInterface, Interface, allows

Behaviours = dict[str, Callable[..., Any]]
SIMPLE = {"int": 0, "bool": True, "str": "", "float": 0.0}
CONVERTED = {"Dims": (list, tuple)}  # types that the bindings convert into a class
# For IStreamWriter.write the stub has C++'s arguments; by TensorRT's documentation a Python method takes the bytes.
CALLED_OTHERWISE = {("IStreamWriter", "write"): 1}


class _Enum(enum.Enum):
    """An enum as pybind11 makes it: it is no number, but can be converted into one."""

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


class StrictTensorRT(ModuleType):
    """The module.

    Args:
        interface: Interface that it offers.
        behaviours: Functions that stand for "Class.method", "Class.property" or "function"; each is called with the
            object and the arguments.

    Attributes:
        called: Every name that was called or read, e.g. "Builder.create_network".
    """

    def __init__(self, interface: Interface, behaviours: Behaviours) -> None:
        super().__init__("tensorrt")
        self._interface, self._behaviours = interface, behaviours
        self.called: set[str] = set()
        for name in interface.classes:
            self._class(name)
        for name, signatures in interface.functions.items():
            setattr(self, name, self._function(name, signatures))

    def make(self, kind: str, **values: Any) -> Any:
        """An object of a class without a Python constructor, with the given values of its properties."""
        made = object.__new__(getattr(self, kind))
        made.__dict__["values"] = values
        return made

    def _class(self, name: str) -> Any:
        if name in vars(self):
            return vars(self)[name]
        interface = self._interface.classes[name]
        if "__members__" in interface.properties:
            made: Any = _Enum(name, interface.members)  # type: ignore[call-overload]
        else:
            bases = tuple(self._class(base) for base in interface.bases) or (object,)
            made = type(name, bases, self._namespace(name, interface))
        setattr(self, name, made)
        return made

    def _namespace(self, name: str, interface: ClassInterface) -> dict[str, Any]:
        strict = self

        def __init__(this: Any, *arguments: Any, **keywords: Any) -> None:
            this.__dict__.setdefault("values", {})
            strict._call(f"{name}.__init__", interface.methods.get("__init__", []), this, arguments, keywords)

        def __init_subclass__(cls: type) -> None:
            if cls.__name__ not in strict._interface.classes:
                strict._check_overrides(name, cls)

        def __setattr__(this: Any, attribute: str, value: Any) -> None:
            if attribute.startswith("__") or type(this).__name__ not in strict._interface.classes:
                object.__setattr__(this, attribute, value)
                return
            kind = type(this).__name__
            if not any(attribute in each.writable for each in strict._interface.lineage(kind)):
                raise AttributeError(f"{kind} of {strict._interface.name} has no {attribute} that can be set")
            strict._check(f"{kind}.{attribute}", value, strict._annotation(kind, attribute))
            strict.called.add(f"{kind}.{attribute}")
            this.__dict__["values"][attribute] = value

        namespace: dict[str, Any] = {"__setattr__": __setattr__, "__init_subclass__": classmethod(__init_subclass__)}
        if "__init__" in interface.methods:
            namespace["__init__"] = __init__
        for method, signatures in interface.methods.items():
            if not method.startswith("__"):
                namespace[method] = self._method(f"{name}.{method}", signatures)
        for attribute in interface.properties:
            namespace[attribute] = self._property(name, attribute)
        for nested, inside in interface.nested.items():
            namespace[nested] = _Enum(nested, inside.members)  # type: ignore[call-overload]
        return namespace

    def _function(self, name: str, signatures: list[inspect.Signature]) -> Callable[..., Any]:
        return lambda *arguments, **keywords: self._call(name, signatures, None, arguments, keywords)

    def _method(self, path: str, signatures: list[inspect.Signature]) -> Callable[..., Any]:
        return lambda this, *arguments, **keywords: self._call(path, signatures, this, arguments, keywords)

    def _property(self, kind: str, name: str) -> property:
        path = f"{kind}.{name}"

        def read(this: Any) -> Any:
            self.called.add(path)
            if path in self._behaviours:
                return self._behaviours[path](this)
            values = this.__dict__.setdefault("values", {})
            if name not in values:
                values[name] = self._default(self._annotation(kind, name))
            return values[name]

        return property(read)

    def _annotation(self, kind: str, attribute: str) -> str:
        found = (each.properties[attribute] for each in self._interface.lineage(kind) if attribute in each.properties)
        return next(found, "")

    def _call(
        self,
        path: str,
        signatures: list[inspect.Signature],
        this: Any,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> Any:
        signature = allows(signatures, arguments, keywords)
        if signature is None:
            raise TypeError(f"{path}{arguments}{keywords or ''}: {self._interface.name} has {signatures}")
        for name, value in signature.bind(*arguments, **keywords).arguments.items():
            self._check(f"{path}({name}=)", value, signature.parameters[name].annotation)
        self.called.add(path)
        if path in self._behaviours:
            return self._behaviours[path](*(() if this is None else (this,)), *arguments, **keywords)
        return self._default(signature.return_annotation)

    def _default(self, annotation: str) -> Any:
        if annotation in SIMPLE:
            return SIMPLE[annotation]
        kind = getattr(self, annotation, None) if annotation.isidentifier() else None
        if isinstance(kind, enum.EnumMeta):
            return next(iter(kind))
        return self.make(annotation) if kind is not None else None

    def _check(self, where: str, value: Any, annotation: str) -> None:
        kind = getattr(self, annotation, None) if annotation.isidentifier() else None
        simple = {"int": int, "bool": bool, "str": str, "float": (int, float)}.get(annotation)
        if annotation == "capsule" or (kind is None and simple is None):
            return
        wanted = kind if simple is None else simple
        if not isinstance(value, (wanted, CONVERTED.get(annotation, wanted))):
            raise TypeError(f"{where} {value!r}: {self._interface.name} wants {annotation}")

    def _check_overrides(self, kind: str, cls: type) -> None:
        """Checks that the caller's methods can be called as TensorRT will call them; raises TypeError if not."""
        for name, written in vars(cls).items():
            signatures = [] if name.startswith("__") else self._interface.method(kind, name)
            if not signatures:
                continue
            count = CALLED_OTHERWISE.get((kind, name), len(signatures[0].parameters))
            inspect.signature(written).bind(None, *(None,) * count)
            self.called.add(f"{kind}.{name}")
