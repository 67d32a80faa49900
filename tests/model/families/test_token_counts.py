# SPDX-License-Identifier: Apache-2.0
"""The tokens of a prompt, and how many of them a model takes: those that diffusers' pipeline keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from vorta_trt.model.families import get_family
from vorta_trt.model.families.training import TokenCount, TrainingFamily, training_family
from vorta_trt.model.pipeline_folder import load_pipeline

from ...kept import Kept
from ...tiny import make_tiny

ROWS = {"wan": 512, "hunyuan_video": 256, "hunyuan_video_15": 1000}
WHOLE = {"truncation": False, "padding": False, "return_tensors": None}


class Watched:
    """A tokenizer that ends the encoding, and has then the tokens of the whole text, and how many are kept."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens, self.longest = 0, 0

    def __call__(self, text: Any, **options: Any) -> Any:
        self._end(self._tokenizer(text, **(options | WHOLE)).input_ids, options)

    def apply_chat_template(self, chat: Any, **options: Any) -> Any:
        self._end(self._tokenizer.apply_chat_template(chat, **(options | WHOLE)).input_ids, options)

    def _end(self, ids: Any, options: Any) -> None:
        assert options["truncation"]
        self.tokens, self.longest = len(ids if isinstance(ids[0], int) else ids[0]), options["max_length"]
        raise InterruptedError


def loaded(kept: Kept, name: str) -> tuple[TrainingFamily, Any]:
    """The family of a tiny model, and diffusers' pipeline of its checkpoint."""
    tiny = make_tiny(kept, name)
    config = tiny.model(materialize=False).config
    pipeline = load_pipeline(tiny.checkpoint, get_family(tiny.family), config, torch.float32, purpose="a test")
    return training_family(tiny.family, config), pipeline


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    "name", ["wan", "hunyuan_video", "hunyuan_video latent_concat", "hunyuan_video token_replace", "hunyuan_video_15"]
)
def test_what_is_counted_is_what_the_pipeline_cuts(kept: Kept, name: str, negative: bool) -> None:
    family, pipeline = loaded(kept, name)
    (count,) = family.token_counts(pipeline, "red " * 10)
    few, rows = count.tokens, count.taken
    assert rows == ROWS[name.split()[0]]
    images = {"image": Image.new("RGB", (96, 64))} if " " in name else None
    encode = family.encode_negative if negative else family.encode_caption
    texts = {more: "red " * (10 + rows - few + more) for more in (0, 1, 1000)}
    assert {more: family.token_counts(pipeline, text) for more, text in texts.items()} == {
        more: [TokenCount(rows + more, rows)] for more in texts
    }
    pipeline.tokenizer = watched = Watched(pipeline.tokenizer)
    for more, text in texts.items():
        with pytest.raises(InterruptedError):
            encode(pipeline, text, torch.device("cpu"), images)
        assert watched.tokens == watched.longest + more


@pytest.mark.parametrize("quotes", ['"{}"', "“{}”", '"{}" and “red”, "red"'])
def test_what_is_quoted_is_cut_by_itself(kept: Kept, quotes: str) -> None:
    """The pipeline reads quoted text by another tokenizer, of bytes, and keeps 256 of its tokens."""
    family, pipeline = loaded(kept, "hunyuan_video_15")
    _, count = family.token_counts(pipeline, "a sign: " + quotes.format("ä"))
    assert count.taken == 256 and str(count) == f"{count.tokens} tokens of quoted text, and the model takes 256"
    pipeline.tokenizer_2 = watched = Watched(pipeline.tokenizer_2)
    for more in (0, 1, 100):
        text = "a sign: " + quotes.format("ä" + "w" * (256 - count.tokens + more))
        with pytest.raises(InterruptedError):
            family.encode_caption(pipeline, text, torch.device("cpu"))
        assert watched.tokens == 256 + more and watched.longest == 256
        pipeline.tokenizer_2 = watched._tokenizer
        assert family.token_counts(pipeline, text)[1] == TokenCount(256 + more, 256, "quoted text")
        pipeline.tokenizer_2 = watched
