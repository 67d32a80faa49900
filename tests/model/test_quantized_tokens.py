# SPDX-License-Identifier: Apache-2.0
"""Tokens that the norms of a block leave quantised: which operators run, and that nothing of the numbers changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.random_checkpoint import make_checkpoint

SIZES = {
    "wan": {"layers": 2, "heads": 2, "head_dim": 16, "text_dim": 32, "channels": 4, "ffn_dim": 64, "freq_dim": 32},
    "hunyuan_video": {
        **{"layers": 1, "single_layers": 2, "heads": 2, "head_dim": 32, "text_dim": 32, "channels": 4},
        **{"pooled_dim": 24, "refiner_layers": 1},
    },
}
NORMS = ("norm_modulate", "residual_norm_modulate")


class Calls(TorchDispatchMode):
    """Counts the block operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "vorta":
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=SIZES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("quantized") / "model", family, **SIZES[family])


def load(checkpoint: Path, family: str, *keep: str) -> RoutedTransformer:
    return RoutedTransformer.from_pretrained(
        checkpoint,
        geometry=AttentionGeometry.for_video(9, 64, 96, family),
        dtype=torch.bfloat16,
        linear_precision="fp8",
        linear_keep=("default", *keep),
        block_ops="plugin",
    )


def counted(model: RoutedTransformer) -> tuple[torch.Tensor, Counter[str]]:
    with torch.inference_mode(), Calls() as calls:
        sample, _ = model(**model.inputs(seed=1))
    return sample, calls.counts


@pytest.mark.parametrize("keep", [(), ("*.to_q",), ("*.net.0.proj",)], ids=str)
def test_numbers_are_those_of_layers_that_quantise_for_themselves(
    checkpoint: Path, family: str, keep: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also where some readers of a norm stay in 16 bits."""
    model = load(checkpoint, family, *keep)
    sample, calls = counted(model)
    package = __import__(f"vorta_trt.model.families.{family}.fused", fromlist=["fused"])
    monkeypatch.setattr(package, "all_fp8", lambda *layers: False)
    monkeypatch.setattr(package, "linears", lambda layers, tokens: [package.linear(layer, tokens) for layer in layers])
    expected, without = counted(model)
    assert torch.equal(sample, expected)
    assert calls["fp8_linear"] == without["fp8_linear"] == without["quantize"] > calls["quantize"]
    assert not any(without[f"{norm}_quantize"] for norm in NORMS)
    for norm in NORMS:
        assert calls[norm] + calls[f"{norm}_quantize"] == without[norm]


def test_every_norm_quantises_but_those_that_something_else_reads(checkpoint: Path, family: str) -> None:
    _, calls = counted(load(checkpoint, family))
    if family == "wan":  # of each block: both projections behind attentions, and the second of the feed forward
        assert calls["quantize"] == 2 * 3
        assert (calls["norm_modulate"], calls["norm_modulate_quantize"]) == (0, 1)
        assert (calls["residual_norm_modulate"], calls["residual_norm_modulate_quantize"]) == (1, 5)  # the last norm
    else:  # of the dual-stream block two projections in each stream; where the streams join; the last projections
        assert (calls["quantize"], calls["joined_quantize"]) == (2 * 2 + 1 + 2, 0)
        assert (calls["norm_modulate"], calls["norm_modulate_quantize"]) == (0, 2)
        assert (calls["residual_norm_modulate"], calls["residual_norm_modulate_quantize"]) == (2 + 1, 2 + 1)


def test_a_layer_that_is_kept_shares_its_norm_with_others(checkpoint: Path, family: str) -> None:
    if family != "wan":
        return
    _, calls = counted(load(checkpoint, family, "*.attn1.to_q"))
    assert calls["quantize"] == 2 * 3 + 2  # once for key and value
    assert (calls["norm_modulate"], calls["norm_modulate_quantize"]) == (1, 0)
    assert (calls["residual_norm_modulate"], calls["residual_norm_modulate_quantize"]) == (2, 4)


def test_attention_and_feed_forward_quantised_as_two_inputs(checkpoint: Path, family: str) -> None:
    """Bit for bit what is quantised side by side."""
    if family == "wan":
        return
    model = load(checkpoint, family)
    sample, _ = counted(model)
    blocks: Any = model.single_transformer_blocks
    for block in blocks:
        block.joins = True
    joined, calls = counted(model)
    assert torch.equal(joined, sample) and (calls["quantize"], calls["joined_quantize"]) == (2 * 2 + 1, 2)
