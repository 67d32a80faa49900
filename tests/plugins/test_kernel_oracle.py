# SPDX-License-Identifier: Apache-2.0
"""The oracle of the kernel tests itself, against outputs of the method's authors' code."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from .authors_cases import FILE, every_case
from .kernel_oracle import Case, expected, select_head


@every_case
def test_oracle_reproduces_the_authors_outputs(name: str, route: int, text: int, coreset_keys: str) -> None:
    tensors = load_file(FILE)
    case = Case(
        name, (10, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, ((route, route),), (5,) if text else (), text,
        coreset_keys, head_dim=16, dtype="float32",
    )  # fmt: skip
    query, key, value = (tensors[part][:, : case.video + text] for part in ("query", "key", "value"))
    for head in range(2):
        selection = select_head(case, query[0, :, head], key[0, :, head])
        exact, by_torch = expected(case, 0, head, (query, key, value), selection)
        wanted = tensors[name][0, :, head]
        torch.testing.assert_close(exact.float(), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_torch, wanted, rtol=0, atol=1e-5)
