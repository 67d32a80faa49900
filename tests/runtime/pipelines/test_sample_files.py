# SPDX-License-Identifier: Apache-2.0
"""How the videos of many prompts are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vorta_trt.model.write_errors import WriteError
from vorta_trt.runtime.pipelines.sample_files import Naming, SampleFile, sample_files

HOUSE = "A 3D model of a 1800s victorian house."
COAST = "A beautiful coastal beach in spring, waves lapping on sand by Hokusai, in the style of Ukiyo"


def names(files: list[SampleFile]) -> list[str]:
    return [sample.file.name for sample in files]


def test_numbers(tmp_path: Path) -> None:
    files = sample_files(tmp_path / "videos", ["a", "b", "a"], ".npy")
    assert names(files) == ["000.npy", "001.npy", "002.npy"]
    assert [(sample.prompt, sample.index) for sample in files] == [("a", 0), ("b", 0), ("a", 0)]
    files[2].file.mkdir()
    with pytest.raises(WriteError, match="002.npy: is a folder; give a file name"):
        sample_files(tmp_path / "videos", ["a", "b", "a"], ".npy")
    assert names(sample_files(tmp_path / "more", ["a"], ".mp4", samples=2)) == ["000-0.mp4", "000-1.mp4"]


def test_vbench(tmp_path: Path) -> None:
    """The examples of VBench's own guide."""
    files = sample_files(tmp_path, [HOUSE, COAST], ".mp4", naming=Naming.vbench, samples=5)
    assert names(files) == [f"{prompt}-{index}.mp4" for prompt in (HOUSE, COAST) for index in range(5)]
    assert [sample.index for sample in files] == [*range(5), *range(5)]


def test_vbench_2_cuts_long_prompts(tmp_path: Path) -> None:
    text = "a long story " * 20
    (sample,) = sample_files(tmp_path, [text], ".mp4", naming=Naming.vbench)
    assert sample.file.name == f"{text[:180]}-0.mp4" and sample.prompt == text
    with pytest.raises(ValueError, match="both go to a long story .*; make them in two runs"):
        sample_files(tmp_path, [text, f"{text} ends"], ".mp4", naming=Naming.vbench)


def test_prompts_that_come_again_are_made_once(tmp_path: Path) -> None:
    files = sample_files(tmp_path, [HOUSE, COAST, HOUSE], ".mp4", naming=Naming.vbench, samples=2)
    assert [sample.prompt for sample in files] == [HOUSE, HOUSE, COAST, COAST]


def test_rewritten_prompts_have_the_names_of_the_first(tmp_path: Path) -> None:
    files = sample_files(
        tmp_path, ["at length: a house", "a beach"], ".mp4", naming=Naming.vbench, names=[HOUSE, COAST]
    )
    assert [(sample.prompt, sample.file.name) for sample in files] == [
        ("at length: a house", f"{HOUSE}-0.mp4"),
        ("a beach", f"{COAST}-0.mp4"),
    ]
    with pytest.raises(ValueError, match="names: 1 of them for 2 prompts"):
        sample_files(tmp_path, ["a", "b"], ".mp4", names=["a"])


def test_the_authors_script(tmp_path: Path) -> None:
    files = sample_files(tmp_path, ["A golden retriever, with a shiny coat!", "Hi"], ".mp4", naming=Naming.authors)
    assert names(files) == ["000-a-golden-retriever-w.mp4", "001-hi.mp4"]


def test_what_is_there_is_left_out(tmp_path: Path) -> None:
    (tmp_path / f"{HOUSE}-1.mp4").touch()
    files = sample_files(tmp_path, [HOUSE], ".mp4", naming=Naming.vbench, samples=3, keep=True)
    assert [sample.index for sample in files] == [0, 2]


@pytest.mark.parametrize(
    ("prompt", "problem"), [("either/or", "a slash"), ("a\0b", "a NUL"), ("家" * 100, "306 bytes of at most 255")]
)
def test_names_that_no_file_can_have(prompt: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"would name a file with {problem}; name the videos by number"):
        sample_files(tmp_path, [prompt], ".mp4", naming=Naming.vbench)
    assert names(sample_files(tmp_path, [prompt], ".mp4")) == ["000.mp4"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "videos").touch()
    with pytest.raises(FileExistsError, match="is a file, and several videos go into a folder"):
        sample_files(tmp_path / "videos", ["a"], ".mp4")
