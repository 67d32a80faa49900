# SPDX-License-Identifier: Apache-2.0
"""The rest of a pipeline, tiny and with random weights: text encoders, tokenizers and VAE beside a transformer.

With what `random_checkpoint` makes, that is a whole pipeline folder, which diffusers loads and samples from. Its videos
are noise; their size, and every class on the way to them, are those of the real pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vorta_trt.model.families import family_of_config
from vorta_trt.model.pipeline_folder import quiet_libraries

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "wall")  # what the tokenizers know
TOKENIZER = ["transformers", "PreTrainedTokenizerFast"]


def complete_pipeline(path: str | Path, *, seed: int = 0) -> Path:
    """Adds text encoders, tokenizers and VAE that fit the transformer in the pipeline folder `path`.

    Returns:
        `path`.
    """
    path = Path(path)
    config = json.loads((path / "transformer" / "config.json").read_text(encoding="utf-8"))
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = family_of_config(config, str(path)).load("random").add_parts(path, config)
    index = path / "model_index.json"
    content = json.loads(index.read_text(encoding="utf-8")) | parts
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def write_tokenizer(
    folder: Path, words: Sequence[str] = WORDS, *, special: Sequence[str] = (), begin: str | None = None
) -> None:
    """Writes a tokenizer with one token per word; the first three words are padding, end, and any unknown word.

    Args:
        folder: folder to write.
        words: words that the tokenizer knows.
        special: words that are a token wherever they stand, even inside of another word.
        begin: word that is put before every text, instead of an end after it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    padding, end, unknown = words[:3]
    model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, mark = (f"$A {end}", end) if begin is None else (f"{begin} $A", begin)
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(mark, words.index(mark))])
    tokenizer.add_special_tokens([*special])
    made: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=padding, eos_token=end, unk_token=unknown
    )
    made.save_pretrained(folder)
