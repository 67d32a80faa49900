# SPDX-License-Identifier: Apache-2.0
"""The peers compute what the reference computes, as far as the CPU can run them, and say why where it cannot."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.benchmarks import flash4_peer, flex_peer, gather_peer
from vorta_trt.benchmarks.cases import SUBJECTS, Case, Inputs, make_inputs
from vorta_trt.benchmarks.peer import Prepared, Unavailable
from vorta_trt.benchmarks.peers import CUDNN, PEERS, select_peers
from vorta_trt.benchmarks.tile_mask import mask_function
from vorta_trt.model import AttentionGeometry, Branch, routed_attention_reference


def reference(case: Case, inputs: Inputs, branch: Branch) -> Tensor:
    routes = torch.full((1, case.heads), int(branch), dtype=torch.int32)
    tensors = (inputs.query, inputs.key, inputs.value)
    return routed_attention_reference(*tensors, routes, case.geometry, inputs.text_length)


def check(case: Case, prepared: Prepared, wanted: Tensor) -> None:
    output = prepared.output(prepared.run())
    torch.testing.assert_close(output[:, : case.valid], wanted[:, : case.valid], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # told once a process
@pytest.mark.parametrize("reorder", [True, False])
def test_flex_attention(case: Case, inputs: Inputs, reorder: bool) -> None:
    prepared = flex_peer.prepare(case, inputs, reorder=reorder, compiled=False)
    check(case, prepared, reference(case, inputs, Branch.SLIDING))


def test_the_block_mask_is_that_of_torch(case: Case) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = case.geometry.tokens
    function = mask_function(case.geometry, case.text_length)
    expected = create_block_mask(function, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=flex_peer.BLOCK)
    ours = flex_peer.block_mask(case, torch.device("cpu"))
    assert torch.equal(ours.to_dense(), expected.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert ours.seq_lengths == expected.seq_lengths


def test_gather_and_scatter(case: Case, inputs: Inputs) -> None:
    prepared = gather_peer.prepare(case, inputs, backend=None)
    wanted = reference(case, inputs, Branch.CORESET)
    check(case, prepared, wanted)
    assert prepared.exact is not None
    one = prepared.exact(inputs.head(1, torch.float32))
    torch.testing.assert_close(one, wanted[:, : case.valid, 1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 12])
def test_gather_with_all_or_only_the_centres(make_case: Callable[..., Case], keep: int, seed: int) -> None:
    case = make_case(geometry=AttentionGeometry((4, 6, 4), (2, 3, 2), (1, 1, 1), (2, 3, 2), keep))
    inputs = make_inputs(case, "cpu", seed)
    check(case, gather_peer.prepare(case, inputs, backend=None), reference(case, inputs, Branch.CORESET))


# -- flash-attn-4, through a stand-in that does what its block lists say -----------------------------------------------


def fake_flash_attention(*tensors: Tensor, block_sparse_tensors: Any = None) -> tuple[Tensor, None]:
    query, key, value = (tensor.transpose(1, 2) for tensor in tensors)  # [1, N, S, D]
    mask = torch.ones(query.shape[1], query.shape[2], query.shape[2], dtype=torch.bool)
    if block_sparse_tensors is not None:
        rows, columns = block_sparse_tensors.block_size
        assert not block_sparse_tensors.mask_block_cnt.any()
        mask[:] = False
        counts, indices = block_sparse_tensors.full_block_cnt[0], block_sparse_tensors.full_block_idx[0]
        for head, row in ((head, row) for head in range(counts.shape[0]) for row in range(counts.shape[1])):
            for column in indices[head, row, : counts[head, row]].tolist():
                mask[head, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = True
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), None


@pytest.fixture
def flash_attention_4(monkeypatch: pytest.MonkeyPatch) -> Any:
    modules = {
        name: types.ModuleType(name) for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.block_sparsity")
    }
    modules["flash_attn.cute"].flash_attn_func = fake_flash_attention  # type: ignore[attr-defined]
    modules["flash_attn.cute.block_sparsity"].BlockSparseTensorsTorch = types.SimpleNamespace  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    flash4_peer._import.cache_clear()
    yield
    flash4_peer._import.cache_clear()


@pytest.mark.usefixtures("flash_attention_4")
def test_flash_attention_4_dense(case: Case, inputs: Inputs) -> None:
    check(case, flash4_peer.prepare_dense(case, inputs), reference(case, inputs, Branch.FULL))


@pytest.mark.usefixtures("flash_attention_4")
def test_flash_attention_4_with_block_lists(make_case: Callable[..., Case], seed: int) -> None:
    case = make_case(geometry=AttentionGeometry((4, 16, 32), (2, 8, 8), (1, 1, 3), (2, 2, 2), 4), heads=2, head_dim=8)
    inputs = make_inputs(case, "cpu", seed)
    check(case, flash4_peer.prepare_sparse(case, inputs), reference(case, inputs, Branch.SLIDING))


@pytest.mark.usefixtures("flash_attention_4")
@pytest.mark.parametrize(
    ("name", "message"),
    [("wan-14b", "a tile 5x9x8 has 360 tokens, no multiple of its blocks of 128"), ("text", "text tokens are no part")],
)
def test_flash_attention_4_says_what_its_blocks_cannot_express(
    make_case: Callable[..., Case], name: str, message: str, seed: int
) -> None:
    text = AttentionGeometry((2, 8, 16), (2, 8, 8), (1, 1, 1), (2, 2, 2), 4, "key", 3)
    case = make_case(geometry=text if name == "text" else SUBJECTS[name].geometry, heads=1, head_dim=8)
    with pytest.raises(Unavailable, match=message):
        flash4_peer.prepare_sparse(case, make_inputs(case, "cpu", seed))


def test_flash_attention_4_missing(make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    flash4_peer._import.cache_clear()
    case = make_case()
    with pytest.raises(Unavailable, match=r"flash_attn.cute cannot be imported \(.*\).*flash-attn-4"):
        flash4_peer.prepare_dense(case, make_inputs(case, "cpu", seed))


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_selection() -> None:
    assert select_peers() == PEERS
    assert select_peers(["none"]) == ()
    assert [peer.option for peer in select_peers(["gather"])] == ["cudnn", "gather"]
    assert [peer.branch for peer in select_peers(["none", "flash4"])] == ["full", "sliding"]
    assert select_peers(["cudnn"]) == (CUDNN,)
    with pytest.raises(ValueError, match="peer 'fa3': must be one of cudnn, flash2, flash4, flex, gather, or none"):
        select_peers(["fa3"])
