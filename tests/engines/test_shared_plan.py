# SPDX-License-Identifier: Apache-2.0
"""Plans that share bytes: whatever is shared, what is loaded is the plan, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vorta_trt.engines import Bundle, BundleError, build_engine
from vorta_trt.engines.shared_plan import BLOCK, open_plan, plan_bytes, share_plan

from .test_several_engines import changed


def parts(seed: int | None = None) -> list[bytes]:
    seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
    print(f"bytes from seed {seed}")
    random = np.random.default_rng(seed)
    return [random.bytes(int(length)) for length in random.integers(2 * BLOCK, 40 * BLOCK, size=6)]


@pytest.mark.parametrize("order", ["012345", "210543", "0", "x0x1y2", "00", "zx5z", "0123x45", "54321"])
def test_a_plan_comes_out_as_it_was(tmp_path: Path, order: str) -> None:
    """Shifted, reordered, repeated or left out; x and y are new bytes, z are zeros."""
    weights = parts()
    pieces = dict(enumerate(weights)) | {"x": b"new bytes", "y": weights[0][::-1], "z": bytes(3 * BLOCK + 5)}
    base, plan = tmp_path / "base.plan", tmp_path / "other.plan"
    base.write_bytes(bytes(7) + bytes(5 * BLOCK).join(weights))
    whole = b"".join(pieces[int(name) if name.isdigit() else name] for name in order)
    plan.write_bytes(whole)
    entry = share_plan(plan, base)
    assert entry is not None and plan.stat().st_size == entry.bytes
    known = {name for name in order if name.isdigit()}
    new = sum(len(pieces[name]) for name in order if not name.isdigit())
    edges = 2 * BLOCK * len(order)  # a run is found by a whole block of the base
    assert entry.bytes < new + edges * (len(order) > len(known)) + 2000
    with open_plan(plan, base) as content:
        assert bytes(content) == whole and plan_bytes(plan, base) == len(whole)


def test_plans_that_have_nothing_in_common_stay_whole(tmp_path: Path) -> None:
    base, plan = tmp_path / "base.plan", tmp_path / "other.plan"
    base.write_bytes(b"".join(parts()))
    plan.write_bytes(whole := b"".join(parts()))
    assert share_plan(plan, base) is None and plan.read_bytes() == whole
    with open_plan(plan, None) as content:
        assert bytes(content) == whole


def test_another_base_is_noticed(tmp_path: Path) -> None:
    base, plan = tmp_path / "base.plan", tmp_path / "other.plan"
    base.write_bytes(whole := b"".join(parts()))
    plan.write_bytes(whole)
    share_plan(plan, base)
    base.write_bytes(whole[: len(whole) // 2])
    for bad in (plan.read_bytes(), b"not a plan\n"):
        plan.write_bytes(bad)
        with pytest.raises(BundleError, match=r"other\.plan is damaged, or not of this bundle"), open_plan(plan, base):
            pass


def test_the_sizes_of_a_bundle_share_their_weights(make_model: object, tmp_path: Path) -> None:
    assert callable(make_model)
    first = make_model(tmp_path / "first.onnx", ffn=4096, blocks=3)
    other = changed(first, tmp_path / "other.onnx", latent_shape=(16, 3, 16, 16))
    bundle = build_engine([first, other], tmp_path / "several.bundle")
    small, large = Bundle.open(bundle.path, runtime=False).views()
    assert large.plan_base == small.plan_path and small.plan_base is None
    assert large.plan_path.stat().st_size < 0.5 * small.plan_path.stat().st_size  # kernels are plan, too
    alone = build_engine(other, tmp_path / "alone.bundle")
    assert abs(large.plan_bytes - alone.plan_bytes) < 0.01 * alone.plan_bytes  # whole again
    with large.open_plan() as content:
        assert len(content) == large.plan_bytes
    assert large.check_files() == []
