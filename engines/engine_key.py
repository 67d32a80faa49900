# SPDX-License-Identifier: Apache-2.0
"""The key of an engine in its bundle: a component of the pipeline, and a video size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vorta_trt.engines.errors import SelectionError
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.constants import TRANSFORMER
from vorta_trt.model.video_size import VideoSize


class EngineKey(NamedTuple):
    """The key that identifies an engine in its bundle.

    Attributes:
        component: "transformer", "transformer_2", or a graph of a part such as "vae_decoder_first".
        size: Frames, height and width in pixels, such as "81x480x832". None for an ONNX file that vorta-trt did not
            export, and for a part that serves every size.
    """

    component: str
    size: str | None

    @classmethod
    def of(cls, metadata: ModelMetadata | None) -> EngineKey:
        """Key of an exported model. A file that vorta-trt did not export gets "transformer" and no size."""
        if metadata is None:
            return cls(TRANSFORMER, None)
        return cls(metadata.component, str(metadata.video_size))

    def __str__(self) -> str:
        return self.component if self.size is None else f"{self.component} {self.size}"


def choose(
    source: object,
    keys: Sequence[EngineKey],
    component: str | None = None,
    size: str | VideoSize | None = None,
    *,
    exported: bool = False,
) -> int:
    """Returns the index in `keys` of the engine that the caller asks for.

    Args:
        source: Bundle or file that holds the engines; error messages name it.
        keys: Keys of all engines.
        component: Component of the engine; None takes that of the first engine.
        size: Video size of the engine; None takes that of the component's first engine.
        exported: Whether the source is an exported file; this changes the wording of errors only.

    Raises:
        SelectionError: There is no such engine; the message names the existing ones.
        ValueError: `size` is no size.
    """
    component = keys[0].component if component is None else component
    of_component = [key for key in keys if key.component == component]
    if not of_component:
        there = ", ".join(dict.fromkeys(key.component for key in keys))
        raise SelectionError(f"component {component!r}: {source} holds {there} only; use one of these, or build both")
    if size is None:
        return keys.index(of_component[0])
    wanted = EngineKey(component, str(VideoSize.parse(str(size))))
    if wanted not in of_component:
        there = ", ".join(key.size or "an unknown size" for key in of_component)
        made, remedy = ("exported", "export it again with") if exported else ("built", "build it again with")
        raise SelectionError(
            f"size {wanted.size}: {source} was {made} for {there}; use one of these, or {remedy} --size {wanted.size}"
            f"{'' if exported else ' as well'}"
        )
    return keys.index(wanted)


def check_grid(keys: Sequence[EngineKey]) -> None:
    """Raises ValueError unless the keys are distinct, and every component has the same sizes."""
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise ValueError(f"{key}: is given twice, and a bundle has one engine of each; leave one of them out")
        if key.size is None and len(keys) > 1:
            raise ValueError(
                "a file that `vorta-trt export` did not write: says neither component nor video size, so a bundle can "
                "hold no other engine beside it; build it into a bundle of its own"
            )
    sizes = list(dict.fromkeys(key.size for key in keys))
    for component in dict.fromkeys(key.component for key in keys):
        if missing := [size for size in sizes if (component, size) not in keys]:
            raise ValueError(
                f"{component}: is given for other sizes, but not for {', '.join(map(str, missing))}; every component "
                f"of a bundle must have the same sizes: export it for these, too"
            )
