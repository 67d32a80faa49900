# SPDX-License-Identifier: Apache-2.0
"""Text and image encoders of the library transformers as graphs, with the one output that a pipeline reads.

Letters: X text tokens, C, H, W channels, height and width of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.families.parts import IMAGE_ENCODER, PartGraph, RunGraph


@dataclass(frozen=True, eq=False)
class EncoderPart:
    """An encoder: its inputs, and the output that is read.

    Attributes:
        part: Name of the part and of its graph.
        inputs: Examples of one sample, by the names of the model's arguments; integers are int32.
        output: Name of the output.
        take: Takes the output tensor out of what the model returns.
        give: Wraps the output tensor in what a pipeline expects the model to return.
        options: Further arguments of the model.
    """

    part: str
    inputs: dict[str, Tensor]
    output: str
    take: Callable[[Any], Tensor]
    give: Callable[[Tensor], Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def graph(self, model: Any) -> PartGraph:
        """The graph of a model."""
        return PartGraph(self.part, _Encoder(self, model), self.inputs, (self.output,), of_size=False)

    def install(self, model: Any, run: RunGraph) -> None:
        """Makes a model without weights call the graph, for one sample at a time."""

        def forward(*arguments: Any, **named: Any) -> Any:
            given = dict(zip(self.inputs, arguments, strict=False)) | named
            batch = len(given[next(iter(self.inputs))])
            samples = [
                {name: _as_input(given[name][index : index + 1]) for name in self.inputs} for index in range(batch)
            ]
            return self.give(torch.cat([run(self.part, sample)[self.output] for sample in samples]))

        model.forward = forward


def token_inputs(tokens: int, *, masked: bool = True) -> dict[str, Tensor]:
    """Token ids [1, X], and a mask of the same shape, int32."""
    ids = torch.ones(1, tokens, dtype=torch.int32)
    return {"input_ids": ids, "attention_mask": ids.clone()} if masked else {"input_ids": ids}


def last_hidden_state(part: str, inputs: dict[str, Tensor]) -> EncoderPart:
    """An encoder whose last hidden state is read, [1, X, width]."""
    from transformers.modeling_outputs import BaseModelOutput

    return EncoderPart(
        part,
        inputs,
        "last_hidden_state",
        lambda made: made.last_hidden_state,
        lambda state: BaseModelOutput(last_hidden_state=state),
    )


def hidden_states(part: str, inputs: dict[str, Tensor], skipped: int, **options: Any) -> EncoderPart:
    """An encoder whose last layers are left out: the hidden state before the last `skipped` is read, [1, X, width]."""
    return EncoderPart(
        part,
        inputs,
        "hidden_states",
        lambda made: made.hidden_states[-(skipped + 1)],
        lambda state: SimpleNamespace(hidden_states=(state,) * (skipped + 1)),
        {"output_hidden_states": True, **options},
    )


def pooler_output(part: str, inputs: dict[str, Tensor]) -> EncoderPart:
    """An encoder whose pooled embedding of all tokens is read, [1, width]."""
    return EncoderPart(
        part,
        inputs,
        "pooler_output",
        lambda made: made.pooler_output,
        lambda state: SimpleNamespace(pooler_output=state),
    )


def image_inputs(model: Any) -> dict[str, Tensor]:
    """Pixels [1, C, H, W] of an image as an image encoder of transformers takes it."""
    config = model.config
    shape = 1, config.num_channels, config.image_size, config.image_size
    return {"pixel_values": torch.empty(shape, dtype=model.dtype)}


def encodes_images(kinds: Any) -> bool:
    """Whether a pipeline of these kinds has an encoder of images."""
    return any(IMAGE_ENCODER in kind.conditioners for kind in kinds)


class _Encoder(nn.Module):
    """Takes the inputs in order and returns the output."""

    def __init__(self, encoder: EncoderPart, model: Any) -> None:
        super().__init__()
        self.model = model
        self._names, self._options, self._take = tuple(encoder.inputs), dict(encoder.options), encoder.take

    def forward(self, *given: Tensor) -> Tensor:
        inputs = {
            name: tensor if tensor.is_floating_point() else tensor.long()
            for name, tensor in zip(self._names, given, strict=True)
        }
        return self._take(self.model(**inputs, **self._options))


def _as_input(tensor: Tensor) -> Tensor:
    """A sample as a graph takes it: integers, and masks, which some pipelines give as floats, become int32."""
    return tensor.to(torch.int32) if not tensor.is_floating_point() or tensor.dim() == 2 else tensor
