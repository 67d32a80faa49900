# SPDX-License-Identifier: Apache-2.0
"""The tensors of the Triton model: what a request gives and what it gets. The configuration is made of this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """An input or output of the Triton model.

    Attributes:
        name: Name in requests and responses.
        kind: Triton's data type.
        dims: Its shape; -1 is any.
        optional: Whether a request may leave it out.
        field: The field of `VideoRequest` that an input is; None for images and for `PARAMETERS`.
    """

    name: str
    kind: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True
    field: str | None = None


STRING = "TYPE_STRING"
PROMPT = "PROMPT"
PARAMETERS = "PARAMETERS"
IMAGES = {"IMAGE": "image", "LAST_IMAGE": "last_image"}  # inputs with the bytes of a file: the pipeline's argument
VIDEO, FRAMES, INFO, PROGRESS = "VIDEO", "FRAMES", "INFO", "PROGRESS"
INPUTS = (
    Tensor(PROMPT, STRING, optional=False, field="prompt"),
    Tensor("NEGATIVE_PROMPT", STRING, field="negative_prompt"),
    Tensor("SEED", "TYPE_UINT64", field="seed"),
    Tensor("STEPS", "TYPE_INT32", field="num_inference_steps"),
    Tensor("GUIDANCE_SCALE", "TYPE_FP32", field="guidance_scale"),
    Tensor("SIZE", STRING, field="size"),
    Tensor("NUM_FRAMES", "TYPE_INT32", field="num_frames"),
    *(Tensor(name, STRING) for name in IMAGES),
    Tensor(PARAMETERS, STRING),  # a JSON object with any other fields of `VideoRequest`
)
OUTPUTS = (
    Tensor(VIDEO, STRING),  # the bytes of an MP4 file
    Tensor(FRAMES, "TYPE_UINT8", (-1, -1, -1, 3)),  # [F, H, W, 3], RGB
    Tensor(INFO, STRING),  # a JSON object: stage and step with progress; seed, steps and seconds with a video
    Tensor(PROGRESS, "TYPE_FP32"),  # the share of steps that are done; 1 comes with the video
)
