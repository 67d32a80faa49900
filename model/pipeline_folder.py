# SPDX-License-Identifier: Apache-2.0
"""Loading what a diffusers pipeline folder holds beside its transformer: text encoders, tokenizers, VAE, scheduler."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import ModelFamily

# transformers and diffusers load models with torch's classes patched for the whole process, so that whatever makes a
# module meanwhile, in another thread, gets parameters without memory. Loading and making modules take turns.
LOADING = threading.RLock()


def load_pipeline(
    checkpoint: Path,
    family: ModelFamily,
    dtype: torch.dtype,
    *,
    purpose: str,
    transformer: Any = None,
    without: Collection[str] = (),
) -> Any:
    """The pipeline on the CPU, without the transformer of the checkpoint.

    Args:
        family: whose pipeline it is.
        dtype: of the text encoders; everything else is float32.
        purpose: what needs it, for errors. transformer: what takes the place of the transformer.
        without: further parts that are not loaded, of the family's components; the pipeline has None in their place.
    Raises:
        FileNotFoundError, CheckpointError: it is not the whole folder of such a pipeline.
    """
    import diffusers
    import transformers

    classes = check_pipeline(checkpoint, family, purpose=purpose)
    kind: Any = getattr(diffusers, family.pipeline_class)
    with LOADING, quiet_libraries():
        encoders = {
            name: getattr(transformers, encoder).from_pretrained(checkpoint / name, dtype=dtype).eval()
            for name, encoder in classes.items()
            if name.startswith("text_encoder") and encoder is not None and name not in without
        }
        absent = dict.fromkeys(without)
        return kind.from_pretrained(checkpoint, transformer=transformer, **encoders, **absent)


def check_pipeline(checkpoint: Path, family: ModelFamily, *, purpose: str) -> dict[str, str | None]:
    """The classes of the folder's parts by name, after a look at model_index.json; raises as `load_pipeline` does."""
    index = checkpoint / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"checkpoint {checkpoint}: has no model_index.json; {purpose} needs the whole pipeline folder, with text "
            f"encoder, tokenizer and VAE"
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        found = content.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a JSON object ({error}); download the checkpoint again") from error
    if found != family.pipeline_class:
        raise CheckpointError(
            f"checkpoint {checkpoint}: is a {found}; {purpose} needs the {family.pipeline_class} folder that the "
            f"transformer comes from"
        )
    classes = {name: entry[1] for name, entry in content.items() if isinstance(entry, list)}
    missing = [name for name in family.components if classes.get(name) is None]
    if missing:
        raise CheckpointError(
            f"checkpoint {checkpoint}: has no {', '.join(missing)}; {purpose} needs the whole pipeline folder; "
            f"download all of it"
        )
    return classes


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the progress bars of diffusers and transformers, which would run through ours."""
    import diffusers
    import transformers

    libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
