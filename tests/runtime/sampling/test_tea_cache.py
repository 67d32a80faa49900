# SPDX-License-Identifier: Apache-2.0
"""TeaCache skips the steps that the original's loop skips."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vorta_trt.model.families import get_family
from vorta_trt.model.families.family import PublishedTeaCache
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache
from vorta_trt.runtime.sampling.tea_fit import TeaCoefficients, fit_coefficients, output_changes

STEPS = 50
WAN = {"1.3B": (30, 12), "14B": (40, 40)}
DISTANCES = {  # on which the published polynomials are positive, but for a few
    ("1.3B", "embedding"): (0.02, 0.2),
    ("14B", "embedding"): (0.12, 0.35),
    ("1.3B", "modulation"): (0.003, 0.1),
    ("14B", "modulation"): (0.005, 0.08),
}


class FakePath:
    """A timestep path with given embeddings [P, E], of a Wan of given size and its published name."""

    family = "wan"

    def __init__(self, embeddings: Tensor, layers: int = 2, heads: int = 3) -> None:
        self.embeddings = embeddings
        self.num_layers, self.num_heads = layers, heads
        size = next((name for name, sizes in WAN.items() if sizes == (layers, heads)), None)
        self.checkpoint = None if size is None else f"Wan2.1-T2V-{size}-Diffusers"

    def embedding(self, timesteps: Any, signal: str = "embedding") -> Tensor:
        assert len(timesteps) == len(self.embeddings)
        return self.embeddings


def embeddings_with(distances: list[float], seed: int, channels: int = 64) -> Tensor:
    """Random embeddings whose relative L1 distances are these."""
    random = np.random.default_rng(seed)
    rows = [random.standard_normal(channels)]
    for distance in distances:
        direction = random.standard_normal(channels)
        scale = distance * np.abs(rows[-1]).mean() / np.abs(direction).mean()
        rows.append(rows[-1] + scale * direction)
    return torch.from_numpy(np.stack(rows))


def the_originals_loop(embeddings: Tensor, coefficients: Any, threshold: float, first: int, cutoff: int) -> list[bool]:
    """What TeaCache4Wan2.1 computes in one of its two contexts, written down from its description."""
    polynomial = np.poly1d(coefficients)
    computed, accumulated, previous = [], 0.0, None
    for step, embedding in enumerate(embeddings):
        if step < first or step >= cutoff:
            compute, accumulated = True, 0.0
        else:
            assert previous is not None
            accumulated += polynomial(float((embedding - previous).abs().mean() / previous.abs().mean()))
            compute = not accumulated < threshold
            if compute:
                accumulated = 0.0
        previous = embedding
        computed.append(compute)
    return computed


def steps_of(cache: TeaCache, embeddings: Tensor, forced: list[bool] | None = None) -> tuple[bool, ...]:
    steps = len(embeddings)
    timesteps = np.linspace(1000, 20, steps).tolist()
    return cache.compute(timesteps, FakePath(embeddings), forced or [False] * steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("signal", ["embedding", "modulation"])
@pytest.mark.parametrize("size", WAN)
def test_the_published_settings_skip_what_the_original_skips(size: str, signal: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    low, high = DISTANCES[size, signal]
    embeddings = embeddings_with(random.uniform(low, high, STEPS - 1).tolist(), seed)
    cache = TeaCache.published(FakePath(embeddings, *WAN[size]), signal=signal)  # type: ignore[arg-type]
    published = published_for(size, signal)
    assert (cache.coefficients, cache.threshold) == (published.coefficients, published.threshold)
    # The last step is always computed; the original does so for the embedding only.
    expected = the_originals_loop(embeddings, cache.coefficients, cache.threshold, published.first, STEPS - 1)
    assert list(steps_of(cache, embeddings)) == expected
    assert 0 < sum(expected) < STEPS


def published_for(size: str, signal: str) -> PublishedTeaCache:
    published = get_family("wan").tea_cache(f"Wan2.1-T2V-{size}", signal)
    assert published is not None
    return published


def test_the_published_tables_are_those_of_the_original() -> None:
    assert published_for("1.3B", "embedding").coefficients[0] == 2.39676752e03
    assert published_for("14B", "embedding").coefficients[-1] == -13.02252404
    assert published_for("14B", "modulation").first == 5  # use_ret_steps
    for size, threshold in (("480P", 0.26), ("720P", 0.3)):
        image = get_family("wan").tea_cache(f"Wan2.1-I2V-14B-{size}", "embedding")
        assert image is not None and (len(image.coefficients), image.threshold, image.first) == (5, threshold, 1)
    assert all(len(published_for(size, signal).coefficients) == 5 for size, signal in DISTANCES)


@pytest.mark.parametrize("name", ["Wan2.1-T2V-14B", "wan2.1-t2v-14b-diffusers", "Wan2.1-T2V-14B-Diffusers"])
def test_a_checkpoint_is_known_by_its_published_name(name: str, seed: int) -> None:
    path: Any = FakePath(embeddings_with([0.1], seed), *WAN["14B"])
    path.checkpoint = name
    assert TeaCache.published(path).coefficients == published_for("14B", "embedding").coefficients


@pytest.mark.parametrize(
    "name", [None, "Wan2.2-T2V-A14B-Diffusers", "Wan2.1-T2V-14B-StepDistill-CfgDistill", "my-Wan2.1-T2V-14B", "demo"]
)
def test_sizes_alone_are_no_identity(name: str | None, seed: int) -> None:
    """Wan 2.2 A14B has the layers and heads of Wan 2.1 14B, and its fine-tunes and distillations have them as well."""
    path: Any = FakePath(embeddings_with([0.1], seed), *WAN["14B"])
    path.checkpoint = name
    with pytest.raises(ValueError, match="none are published under that name.*Wan2.1-T2V-14B .*under another name"):
        TeaCache.published(path)
    assert TeaCache.published(path, model="Wan2.1-T2V-14B").first == 1
    with pytest.raises(ValueError, match="model 'Wan2.2-T2V-A14B': must be one of Wan2.1-T2V-1.3B, Wan2.1-T2V-14B"):
        TeaCache.published(path, model="Wan2.2-T2V-A14B")


def test_a_published_name_on_another_size_is_refused(seed: int) -> None:
    path: Any = FakePath(embeddings_with([0.1], seed))
    path.checkpoint = "Wan2.1-T2V-14B-Diffusers"
    with pytest.raises(ValueError, match="of 2 layers and 3 heads"):
        TeaCache.published(path)


def test_models_without_published_coefficients(seed: int) -> None:
    path = FakePath(embeddings_with([0.1], seed))
    with pytest.raises(ValueError, match="of 2 layers and 3 heads, signal 'embedding': none are published"):
        TeaCache.published(path)  # type: ignore[arg-type]
    path.family, path.num_layers, path.num_heads = "hunyuan_video", *WAN["14B"]
    with pytest.raises(ValueError, match="of 40 layers and 40 heads, .* name; fit them"):
        TeaCache.published(path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timestep embedder is not at hand"):
        TeaCache(0.1, IDENTITY).compute([3.0, 2.0], None, [False, False])


def test_distances_are_relative_to_the_step_before(seed: int) -> None:
    wanted = np.random.default_rng(seed).uniform(0.01, 0.4, 9).tolist()
    path = FakePath(embeddings_with(wanted, seed))
    assert TeaCache(0.1, IDENTITY).distances([0.0] * 10, path) == pytest.approx(wanted)  # type: ignore[arg-type]


def test_a_higher_threshold_never_computes_more(seed: int) -> None:
    random = np.random.default_rng(seed)
    embeddings = embeddings_with(random.uniform(0, 0.2, STEPS - 1).tolist(), seed)
    counts = [sum(steps_of(TeaCache(threshold, IDENTITY), embeddings)) for threshold in np.linspace(0, 3, 40)]
    assert counts[0] == STEPS  # threshold 0
    assert counts[-1] < STEPS / 4
    assert all(more >= fewer for more, fewer in itertools.pairwise(counts))


def test_threshold_0_computes_everything_whatever_the_polynomial_says(seed: int) -> None:
    embeddings = embeddings_with([0.1] * 9, seed)
    assert all(steps_of(TeaCache(0, (-5.0,)), embeddings))


def test_a_polynomial_of_another_schedule_is_refused(seed: int) -> None:
    """Few large steps: the published polynomial would skip all but the ends."""
    path: Any = FakePath(embeddings_with([0.5, 0.6, 0.7, 0.2, 0.2], seed), *WAN["14B"])
    with pytest.raises(ValueError, match="at most of the 5 steps they say that the output changes by less than"):
        TeaCache.published(path).compute([0.0] * 6, path, [False] * 6)


def test_the_accumulated_change_starts_again_at_computed_and_at_forced_steps(seed: int) -> None:
    embeddings = embeddings_with([0.1] * 11, seed)
    computed = steps_of(TeaCache(0.25, IDENTITY), embeddings)
    assert [step for step, flag in enumerate(computed) if flag] == [0, 3, 6, 9, 11]
    forced = [step == 4 for step in range(12)]
    computed = steps_of(TeaCache(0.25, IDENTITY), embeddings, forced)
    assert [step for step, flag in enumerate(computed) if flag] == [0, 3, 4, 7, 10, 11]


def test_the_ends_are_always_computed(seed: int) -> None:
    embeddings = embeddings_with([0.0] * 9, seed)
    assert steps_of(TeaCache(9, IDENTITY), embeddings) == (True, *[False] * 8, True)
    computed = steps_of(TeaCache(9, IDENTITY, first=3, last=2), embeddings)
    assert computed == (True, True, True, *[False] * 5, True, True)
    assert steps_of(TeaCache(9, IDENTITY), embeddings[:1]) == (True,)


def test_a_polynomial_used_far_from_its_fit_is_noted(seed: int) -> None:
    path: Any = FakePath(embeddings_with([0.05, 0.2, 0.6], seed), *WAN["14B"])
    (note,) = TeaCache.published(path).notes([0.0] * 4, path)
    assert "less than nothing at 2 of 3 steps" in note
    fitted = TeaCache(0.1, IDENTITY, fitted_range=(0.1, 0.3))
    (note,) = fitted.notes([0.0] * 4, path)
    assert "2 of 3 distances lie outside 0.1 to 0.3" in note
    assert TeaCache(0.1, IDENTITY).notes([0.0] * 4, path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, IDENTITY), "threshold -0.1: must be 0"),
        ((float("nan"), IDENTITY), "threshold nan: must be 0"),
        ((0.1, ()), r"coefficients \(\): must be finite"),
        ((0.1, (1.0, float("inf"))), "must be finite numbers"),
        ((0.1, IDENTITY, "latents"), "signal 'latents': must be one of embedding, modulation"),
        ((0.1, IDENTITY, "embedding", 0), "first 0, last 1: the first and last step are always computed"),
    ],
)
def test_settings_that_are_none(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeaCache(*arguments)


# -- fitting -----------------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_polynomial_that_made_the_data(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.uniform(-2, 2, 5)
    distances = random.uniform(0, 1, 200)
    found = fit_coefficients(distances.tolist(), np.polyval(truth, distances).tolist())
    assert found == pytest.approx(truth.tolist(), rel=1e-6, abs=1e-6)


def test_output_changes_are_relative_l1(seed: int) -> None:
    samples = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    expected = [
        float((after.double() - before.double()).abs().sum() / before.double().abs().sum())
        for before, after in itertools.pairwise(samples)
    ]
    assert output_changes(samples) == pytest.approx(expected)
    assert output_changes([]) == []


def test_fitted_coefficients_are_kept_in_a_file(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    distances = random.uniform(0.1, 0.4, 30).tolist()
    fitted = TeaCoefficients.fit(distances, [2 * distance for distance in distances], "modulation")
    fitted.save(tmp_path / "tea.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tea.json"]
    assert TeaCoefficients.load(tmp_path / "tea.json") == fitted
    cache = fitted.cache(0.3)
    assert (cache.signal, cache.threshold) == ("modulation", 0.3)
    assert cache.fitted_range == (min(distances), max(distances))
    assert cache.changes([0.2]) == pytest.approx([0.4], abs=1e-6)


def test_data_that_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="3 distances, 2 output changes: must be as many"):
        fit_coefficients([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="4 different distances: a polynomial of degree 4 needs at least 5"):
        fit_coefficients([1, 2, 3, 4, 4], [1, 2, 3, 4, 4])
    with pytest.raises(ValueError, match="not finite"):
        fit_coefficients([1, 2, 3, 4, float("nan")], [1, 2, 3, 4, 5])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "signal": "latents"}'])
def test_files_that_are_no_coefficients(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="TeaCache coefficients .*x.json: .*; write them with"):
        TeaCoefficients.load(path)
    path.write_text(json.dumps({"format": 1, "signal": "embedding", "coefficients": [1], "fitted_range": [1]}))
    with pytest.raises(ValueError, match="fitted_range.1: is missing"):
        TeaCoefficients.load(path)
