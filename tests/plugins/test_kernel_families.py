# SPDX-License-Identifier: Apache-2.0
"""The one table of kernel families: what the sources have, what the library says and what the build compiles."""

from __future__ import annotations

import re

import pytest

from vorta_trt.plugins import KERNEL_DTYPES, load_library
from vorta_trt.plugins.gpu import ComputeCapability, architectures_cover
from vorta_trt.plugins.library import KernelFamily

from .conftest import ROOT
from .kernel_call import COMPACT_HEAD_DIMS
from .test_gpu_architectures import script

KERNELS = ROOT / "plugins" / "kernels"
SHORT = {"float16": "fp16", "bfloat16": "bf16"}
FAMILIES = {family.name: family for family in load_library().kernel_families}


def test_every_folder_of_kernels_is_a_family() -> None:
    """Of attention; other operators have instances, too."""
    assert {path.parents[1].name for path in KERNELS.glob("*/instances/attention_*.cu")} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_an_instance_for_each_type_and_head_dimension(family: KernelFamily) -> None:
    files = [path.stem for path in (KERNELS / family.name / "instances").glob("attention_*.cu")]
    found = {match[1] for name in files if (match := re.search(r"_((?:bf16|fp16)_d\d+)$", name))}
    assert len(found) == len(files)
    assert found == {f"{SHORT[dtype]}_d{head_dim}" for dtype in KERNEL_DTYPES for head_dim in family.head_dims}
    assert list(family.head_dims) == sorted(family.head_dims)


def test_instances_for_keys_of_another_sequence_are_of_both_types() -> None:
    """Their head dimensions stand beside their shape; one without its file does not link."""
    shape = (KERNELS / "sm90" / "block_shape.h").read_text()
    found = re.search(r"using CrossHeadDims = Instances<([\d, ]+)>", shape)
    assert found is not None
    files = {path.stem for path in KERNELS.glob("*/instances/cross_*.cu")}
    assert files == {f"cross_attention_{short}_d{d}" for short in SHORT.values() for d in found[1].split(", ")}


def test_some_family_takes_every_head_dimension() -> None:
    for head_dim in range(8, 257, 8):
        assert any(family.takes(head_dim) for family in FAMILIES.values() if family.attention_precision == "same")
    assert not any(family.takes(264) for family in FAMILIES.values())
    assert FAMILIES["sm90"].takes(64) and not FAMILIES["sm90"].takes(56)
    assert FAMILIES["sm80"].takes(56)


def test_the_tests_know_the_head_dimensions_with_compact_rows() -> None:
    assert FAMILIES["sm90"].head_dims == COMPACT_HEAD_DIMS


def test_the_first_that_serves_is_the_fastest() -> None:
    """Special kernels stand before those of every GPU."""
    ranges = [(family.newest_gpu > ComputeCapability(90, 0), family.name) for family in FAMILIES.values()]
    same = [wide for wide, name in ranges if FAMILIES[name].attention_precision == "same"]
    assert same == sorted(same)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_the_build_compiles_a_family_for_gpus_that_it_serves(family: KernelFamily) -> None:
    """`special_code` of the build's script, and what this library was built with, against the table."""
    everything = ("80", "86-real", "89-real", "90a-real", "100-real", "120-real", "120-virtual")
    compiled = script.special_code(everything).get(family.name[:4], everything)
    for text in ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.1"):
        capability = ComputeCapability.parse(text)
        if family.serves(capability):
            assert architectures_cover(compiled, capability), f"{family.name} is not compiled for {text}"
    here = script.special_code(load_library().cuda_architectures).get(family.name[:4])
    assert family.architectures == (tuple(here) if here is not None else load_library().cuda_architectures)
