# SPDX-License-Identifier: Apache-2.0
"""`ServeSettings`: everything a server is started with; JSON in and out, so that processes can be given it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DAY = 24 * 3600.0
MIB = 1 << 20
STALL_SECONDS = 1800.0  # a step of a large model on a processor may take minutes


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(_Settings):
    """One model that is served."""

    source: Path
    """A bundle, or an exported ONNX file."""
    name: str = ""
    """Name by which requests ask for the model; by default the file's name without its suffix."""
    checkpoint: Path | None = None
    """The pipeline folder, as for `VortaPipeline`."""
    preset: str | None = None
    """Sampling settings of a published model, which are the defaults of requests; see `RequestPlanner.preset`."""
    pipeline: dict[str, Any] = {}
    """Keywords of `VortaPipeline`: executor, device, residency, ..."""
    gpus: int | None = Field(default=None, ge=1)
    """How many GPUs make a video together, each with a process of its own; None: as many as the model is built for."""

    @model_validator(mode="before")
    @classmethod
    def _name_it(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and values.get("source") is not None:
            return {**values, "name": Path(values["source"]).resolve().stem}
        return values


class ServeSettings(_Settings):
    """A server's models, folder of jobs, and limits."""

    models: tuple[ModelSettings, ...] = Field(min_length=1)
    """The models. The first is the one for requests that name none."""
    jobs: Path
    """The folder of the jobs and their results."""
    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    """API keys of those who may use the server; none: everyone who can reach it may."""
    hosts: tuple[str, ...] = ()
    """Host names under which the server may be addressed; none: any name."""
    most_queued: int = Field(default=64, ge=1)
    """How many jobs may wait."""
    most_queued_per_key: int | None = Field(default=None, ge=1)
    """How many jobs of one API key may wait; None is half of `most_queued` where there are several keys."""
    most_videos: int = Field(default=4, ge=1)
    """The most videos that one request may ask for (`n`)."""
    most_upload_bytes: int = Field(default=32 * MIB, ge=1)
    """Largest size of a request's body."""
    image_hosts: tuple[str, ...] = ()
    """Servers from which images may be fetched over HTTPS; none: no URL of a request is opened."""
    most_image_pixels: int = Field(default=40_000_000, ge=1)
    """Largest number of pixels of an image in a request."""
    keep_seconds: float = Field(default=7 * DAY, gt=0)
    """How long results stay after completion."""
    lease_seconds: float = Field(default=30.0, gt=0)
    """After how long without a sign of life a worker's job is taken from it."""
    stall_seconds: float = Field(default=STALL_SECONDS, gt=0)
    """After how long without a new step or stage, while it works or starts, a worker is killed."""
    most_attempts: int = Field(default=3, ge=1)
    """How many times a job is begun whose workers are lost."""
    workers: int = Field(default=1, ge=1)
    """Worker processes, each of which loads the models."""

    @field_validator("models")
    @classmethod
    def _check_names(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        names = [model.name for model in models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"models {', '.join(twice)}: have the same name; name them, e.g. small=model.bundle")
        return models

    @property
    def limit_per_user(self) -> int:
        """How many jobs of one user may wait."""
        if self.most_queued_per_key is not None:
            return self.most_queued_per_key
        return self.most_queued if len(self.api_keys) < 2 else max(1, self.most_queued // 2)
