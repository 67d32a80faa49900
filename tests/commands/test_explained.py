# SPDX-License-Identifier: Apache-2.0
"""Messages of errors: packages that do not fit each other are no bug of ours, and the first cause is named."""

from __future__ import annotations

import pytest

from vorta_trt.commands.errors import explained


def test_a_package_that_cannot_be_imported() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            try:
                raise RuntimeError("operator torchvision::nms does not exist")
            except RuntimeError as first:
                raise ModuleNotFoundError("Could not import module 'BloomPreTrainedModel'.") from first
        except ModuleNotFoundError as second:  # as diffusers says it
            raise RuntimeError("Failed to import diffusers.models because of the following error") from second
    said = explained(caught.value)
    assert "cannot be imported: RuntimeError: operator torchvision::nms does not exist" in said
    assert "bug of" not in said and "constraints.txt" in said


def test_a_bug() -> None:
    assert explained(KeyError("layers")) == (
        "KeyError: 'layers' (this is a bug of vorta-trt; see it with --debug and report it)"
    )
