# SPDX-License-Identifier: Apache-2.0
"""Converts the tensors that a diffusers pipeline gives its transformer to the inputs of an engine or a routed model.

Tensors are converted to the model's types, whatever types the pipeline uses, as a diffusers model does. Lengths and
sizes are checked, and each error says what to do.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, T text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.families import ModelInput, get_family
from vorta_trt.model.inputs import check_per_sample, check_valid_first, token_grid
from vorta_trt.runtime.pipelines.denoiser import Denoiser
from vorta_trt.runtime.pipelines.timesteps import Timesteps

Given = Mapping[str, Tensor | None]  # the pipeline's tensors, by name
Inputs = dict[str, Tensor]  # the model's tensors, by name


class Snapshot:
    """Remembers tensors and their version counters, to recognise later whether the same tensors come unchanged.

    Nothing is read from the GPU. The snapshot keeps the tensors alive, so that no new tensor can be mistaken for one of
    them. Tensors made under `torch.inference_mode()` have no version counter, so they never count as the same.
    """

    def __init__(self, tensors: Given) -> None:
        self._tensors = dict(tensors)
        self._writes = {name: _writes(tensor) for name, tensor in tensors.items()}

    def same(self, tensors: Given) -> bool:
        """Whether `tensors` are the same objects under the same names, and were not written to since."""
        return tensors.keys() == self._tensors.keys() and all(
            tensor is self._tensors[name] and (writes := _writes(tensor)) is not None and writes == self._writes[name]
            for name, tensor in tensors.items()
        )


def _writes(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return 0
    return None if tensor.is_inference() else tensor._version


def memory_of(timestep: Tensor) -> Tensor | None:
    """The whole storage that a timestep is one element of, as a tensor; nothing is read from the device.

    In diffusers' pipelines this is the schedule. The result is None for meta tensors, and if the timestep takes several
    elements of the storage.
    """
    if (timestep.numel() > 1 and any(timestep.stride())) or timestep.is_meta:
        return None
    return torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(timestep.untyped_storage())


def begins_schedule(timestep: Tensor, steps: int, first: int = 0) -> bool:
    """Whether a timestep is element number `first` of a schedule with `steps` steps; False for a single step."""
    schedule = memory_of(timestep)
    return schedule is not None and timestep.storage_offset() == first and schedule.numel() == steps > 1


def check_timestep(
    planned: Sequence[float], step: int, given: Sequence[float], dtype: torch.dtype = torch.float32
) -> None:
    """Compares the timesteps [B] that a transformer got at a step with those of a plan.

    Args:
        planned: Timesteps of the plan.
        step: Index of the step that is due.
        given: The timesteps that the transformer got.
        dtype: Type of these timesteps. In a 16-bit type they are compared with the plan's timestep rounded to that
            type, because some pipelines round timesteps to the type of the latents.

    Raises:
        ValueError: The timesteps differ from each other or from the plan's.
    """
    if len(set(given)) != 1:
        raise ValueError(
            f"timestep with {len(set(given))} different values: a step has one timestep for the whole batch"
        )
    dtype = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
    due = torch.tensor(planned).to(dtype).tolist()
    value = float(torch.tensor(float(given[0])).to(dtype))
    if due[step] == value:
        return
    elsewhere = [index for index, other in enumerate(due) if other == value]
    what = f"is step {elsewhere[0]} of the plan" if elsewhere else "is not in the plan"
    raise ValueError(
        f"timestep {value:g}: {what}; it came at step {step}, timestep {planned[step]:g}; plan with the pipeline's own "
        f"timesteps (schedule_timesteps), call the transformer once per step and context, and end a request before the "
        f"next"
    )


class ModelInputs:
    """Converts the tensors of every call. Conditions are converted only when they have changed.

    Attributes:
        steps: Names of the inputs that change with every step; latents and timestep come first. All other inputs are
            conditions.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._family = get_family(denoiser.family)
        inputs = self._family.inputs(denoiser.config)
        self.steps = tuple(spec.name for spec in inputs if spec.step)
        self._conditions = [spec for spec in inputs if not spec.step]
        per_sample = next(spec.sizes for spec in inputs if spec.name == "timestep")
        self._timesteps = Timesteps(int(per_sample[0]) if per_sample else 1)
        self._patch = self._family.patch_of(denoiser.config)
        self._converted: dict[str, tuple[Snapshot, Inputs]] = {}

    def __call__(self, given: Given, context: str) -> Inputs:
        """The model's inputs by name.

        Args:
            given: The pipeline's tensors by name.
            context: "cond" or "uncond"; converted conditions are kept for each.

        Raises:
            ValueError: The model does not take tensors of this size, length or shape.
        """
        latents, timestep = given["hidden_states"], given["timestep"]
        assert latents is not None and timestep is not None
        self._check_latents(latents)
        timestep = self._timesteps(timestep, latents.shape[0], token_grid(latents, self._patch))
        conditions = self.conditions_of(given)
        known = self._converted.get(context)
        if known is None or not known[0].same(conditions):
            known = self._converted[context] = Snapshot(conditions), self._convert(conditions)
        return {
            "hidden_states": latents.to(self._denoiser.dtype),  # [B, C, F, H, W]
            "timestep": timestep,  # [B] or [B, 2]
            **{name: self._of_sample(name, given, latents.shape[0]) for name in self.steps[2:]},
            **known[1],
        }

    def of_step(self, given: Given) -> Given:
        """The given tensors that change with every step."""
        return {name: given[name] for name in self.steps}

    def conditions_of(self, given: Given) -> Given:
        """The given tensors that do not change with the step: the conditions."""
        return {name: tensor for name, tensor in given.items() if name not in self.steps}

    def finish(self) -> None:
        """Runs the checks of the last call that are still pending; raises as a call does."""
        self._timesteps.finish()

    def forget(self) -> None:
        """Drops the converted conditions, and the pending check of the last timesteps."""
        self._converted.clear()
        self._timesteps.forget()

    def _check_latents(self, latents: Tensor) -> None:
        expected, shape = self._denoiser.latent_shape, tuple(latents.shape)
        if len(shape) != 5:
            raise ValueError(f"hidden_states of shape {shape}: must be latents [B, C, F, H, W]")
        if expected is None or shape[1:] == expected:
            return
        if shape[1] != expected[0]:
            raise ValueError(
                f"hidden_states of shape {shape}: must have {expected[0]} channels; give the pipeline this model's VAE"
            )
        frames, height, width = built = self._family.video_size(self._denoiser.config, *expected[1:])
        asked = self._family.video_size(self._denoiser.config, *shape[2:])
        raise ValueError(
            f"hidden_states of shape {shape}: latents of a video of {'x'.join(map(str, asked))}, but this model was "
            f"made for {'x'.join(map(str, built))} (frames x height x width); call the pipeline with "
            f"num_frames={frames}, height={height}, width={width}, or make another: vorta-trt build CHECKPOINT --size "
            f"{'x'.join(map(str, asked))}"
        )

    def _of_sample(self, name: str, given: Given, batch: int) -> Tensor:
        """An input that has one number per sample, as float32 [B]."""
        if (tensor := given.get(name)) is None:
            raise ValueError(f"{name} None: the model needs it; call it as diffusers' pipeline does")
        tensor = tensor.expand(batch) if tensor.ndim == 0 else tensor
        check_per_sample(**{name: tensor})
        return tensor.to(torch.float32)

    def _convert(self, conditions: Given) -> Inputs:
        if missing := [spec.name for spec in self._conditions if conditions.get(spec.name) is None]:
            raise ValueError(f"{missing[0]} None: the model needs it; call it as diffusers' pipeline does")
        given = {name: tensor for name, tensor in conditions.items() if tensor is not None}
        text = given["encoder_hidden_states"]
        padding = self._padding(text)
        inputs = {}
        for spec in self._conditions:
            tensor = given[spec.name]
            missing_rows = padding if "text" in spec.sizes else 0
            if spec.kind == "mask":
                tensor = tensor != 0  # [B, *]
                rows = tuple(given[spec.masks].shape[:2])
                if tensor.shape != rows:
                    raise ValueError(
                        f"{spec.name} of shape {tuple(tensor.shape)}: must be {rows}, one entry per row of {spec.masks}"
                    )
                check_valid_first(spec.name, tensor)
                tensor = functional.pad(tensor, (0, missing_rows)).to(torch.int32)  # [B, T]
            elif spec.kind == "uniform":
                tensor = tensor.to(torch.float32)  # [B]
            else:
                tensor = tensor.to(self._denoiser.dtype)  # [B, ..., channels]
                if "text" not in spec.sizes:
                    tensor = _as_samples(spec, tensor, text.shape[0])
                elif tensor.ndim == 3:
                    tensor = functional.pad(tensor, (0, 0, 0, missing_rows))  # [B, T, channels]
            inputs[spec.name] = tensor
        return inputs

    def _padding(self, text: Tensor) -> int:
        """Number of rows by which the text is padded."""
        if text.ndim != 3:
            raise ValueError(f"encoder_hidden_states of shape {tuple(text.shape)}: must be [B, T, channels]")
        tokens, rows = self._denoiser.text_tokens, text.shape[1]
        padding = 0 if tokens is None else tokens - rows
        padded = self._family.joint_attention  # a mask tells padding from text
        if tokens is not None and (padding < 0 or (padding and not padded)):
            longest = self._family.prompt_tokens(self._denoiser.config, tokens)
            raise ValueError(
                f"encoder_hidden_states with {rows} rows: this model takes {'at most ' if padded else ''}{tokens}; "
                f"call the pipeline with max_sequence_length={longest}"
            )
        return padding


def _as_samples(spec: ModelInput, tensor: Tensor, batch: int) -> Tensor:
    """Reshapes a condition to [B, *]; the pipeline may give several rows per sample, such as one per image."""
    sizes = spec.shape(0)
    if tensor.numel() != batch * math.prod(sizes) or tensor.shape[-1] != sizes[-1]:
        raise ValueError(
            f"{spec.name} of shape {tuple(tensor.shape)}: must be {(batch, *sizes)} for {batch} samples; give what the "
            f"pipeline's own encoders make of what this model takes"
        )
    return tensor.reshape(batch, *sizes)
