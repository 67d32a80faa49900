# SPDX-License-Identifier: Apache-2.0
"""Training data: both layouts, and every kind of bad sample, named before training starts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vorta_trt.model.families.wan.training import WanTraining
from vorta_trt.model.files import PointerError
from vorta_trt.model.training.data import DataError, LatentDataset

from .samples import CHANNELS, SHAPE, SIZE, TEXT_DIM, Setup, write_data

NAMES = ["cat", "dog", "sea"]


def open_checked(path: Path, family: WanTraining, skip_bad: bool = False) -> LatentDataset:
    dataset = LatentDataset(path, family, SHAPE)
    dataset.leave_out(dataset.find_bad(lambda what, done, total: None), skip_bad)
    return dataset


def test_prepared_data(setup: Setup, family: WanTraining) -> None:
    dataset = open_checked(setup.data, family)
    assert len(dataset) == 3
    assert dataset.video_size == SIZE
    latents, conditions = dataset.batch([2, 0])
    assert latents.shape == (2, *SHAPE)
    assert latents.dtype == torch.float32
    stored = load_file(setup.data / "latents" / "the sea.safetensors")["latents"]
    assert torch.equal(latents[0], stored)
    assert conditions["prompt_embeds"].shape == (2, 512, TEXT_DIM)  # as the pipeline pads it
    assert bool((conditions["prompt_embeds"][1, 5:] == 0).all())
    assert bool((conditions["prompt_embeds"][1, :5] != 0).all())


def reference_layout(folder: Path) -> Path:
    """Two samples as the authors' code stores them; latents with one frame too many."""
    generator = torch.Generator().manual_seed(1)
    for name in ("latent", "prompt_embed"):
        (folder / name).mkdir(parents=True)
    entries = []
    for index, lead in enumerate([(1,), ()]):  # with a batch axis and without
        frames = SHAPE[1] + 1
        torch.save(torch.randn(*lead, CHANNELS, frames, *SHAPE[2:], generator=generator), folder / f"latent/{index}.pt")
        torch.save(torch.randn(9, TEXT_DIM, generator=generator), folder / f"prompt_embed/{index}.pt")
        entries.append({"latent_path": f"{index}.pt", "prompt_embed_path": f"{index}.pt", "caption": "c", "length": 4})
    (folder / "videos2caption.json").write_text(json.dumps(entries))
    return folder


def test_the_reference_layout(tmp_path: Path, family: WanTraining) -> None:
    folder = reference_layout(tmp_path / "data")
    for path in (folder, folder / "videos2caption.json"):
        dataset = open_checked(path, family)
        latents, conditions = dataset.batch([0, 1])
        assert torch.equal(latents[0], torch.load(folder / "latent/0.pt")[0, :, 1:])  # the last frames count
        assert torch.equal(latents[1], torch.load(folder / "latent/1.pt")[:, 1:])
        assert torch.equal(conditions["prompt_embeds"][0, :9], torch.load(folder / "prompt_embed/0.pt"))


def _remove_latents(folder: Path) -> None:
    (folder / "latents/dog.safetensors").unlink()


def _remove_prompt(folder: Path) -> None:
    (folder / "prompts/dog.safetensors").unlink()


def _wrong_shape(folder: Path) -> None:
    save_file({"latents": torch.zeros(CHANNELS, 3, 8, 10)}, folder / "latents/dog.safetensors")


def _nan(folder: Path) -> None:
    latents = torch.zeros(SHAPE)
    latents[0, 0, 0, :2] = torch.nan
    save_file({"latents": latents}, folder / "latents/dog.safetensors")


def _infinite_prompt(folder: Path) -> None:
    save_file({"prompt_embeds": torch.full((2, TEXT_DIM), torch.inf)}, folder / "prompts/dog.safetensors")


def _wrong_text(folder: Path) -> None:
    save_file({"prompt_embeds": torch.zeros(2, TEXT_DIM + 1)}, folder / "prompts/dog.safetensors")


def _cut_off(folder: Path) -> None:
    file = folder / "latents/dog.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _other_name(folder: Path) -> None:
    save_file({"video": torch.zeros(SHAPE)}, folder / "latents/dog.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove_latents, r"its latents .*latents/dog.safetensors do not exist"),
        (_remove_prompt, r"has a caption but no text embedding, .*prompts/dog.safetensors does not exist"),
        (_wrong_shape, r"latents have shape \(4, 3, 8, 10\), must be \(4, 3, 8, 12\)"),
        (_nan, r"latents has 2 values that are NaN or infinite"),
        (_infinite_prompt, r"prompt_embeds has 32 values that are NaN or infinite"),
        (_wrong_text, r"prompt_embeds has shape \(2, 17\), must be \[1 to 512 tokens, 16\]"),
        (_cut_off, r"latents/dog.safetensors is not readable as safetensors"),
        (_other_name, r"has no tensor 'latents' \(it has video\)"),
    ],
)
def test_a_bad_sample_is_named_or_skipped(
    spoil: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    family: WanTraining,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_data(tmp_path, NAMES)
    spoil(folder)
    with pytest.raises(
        DataError, match=rf"(?s)1 of 3 samples cannot be used:\n  sample 'dog': .*{message}.*--skip-bad"
    ) as got:
        open_checked(folder, family)
    assert "cat" not in str(got.value)
    with caplog.at_level(logging.WARNING):
        dataset = open_checked(folder, family, skip_bad=True)
    assert [sample.name for sample in dataset.samples] == ["cat", "sea"]
    assert "1 of 3 samples cannot be used and are skipped" in caplog.text
    assert "'dog'" in caplog.text


def test_a_bad_sample_of_the_reference_layout(tmp_path: Path, family: WanTraining) -> None:
    folder = reference_layout(tmp_path / "data")
    (folder / "latent/1.pt").write_bytes(b"not a tensor")
    with pytest.raises(DataError, match=r"sample '1': .*1.pt cannot be read with torch.load\(weights_only=True\)"):
        open_checked(folder, family)
    torch.save([1, 2], folder / "latent/1.pt")
    with pytest.raises(DataError, match=r"sample '1': .*1.pt holds a list, must be one tensor"):
        open_checked(folder, family)
    entries = json.loads((folder / "videos2caption.json").read_text())
    del entries[1]["prompt_embed_path"]
    (folder / "videos2caption.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match="sample '1': has a caption but no text embedding"):
        open_checked(folder, family)
    assert len(open_checked(folder, family, skip_bad=True)) == 1


def test_text_masks_that_nobody_reads_may_be_absent(tmp_path: Path, family: WanTraining) -> None:
    folder = reference_layout(tmp_path / "data")
    entries = json.loads((folder / "videos2caption.json").read_text())
    entries = [{**entry, "prompt_attention_mask": f"{index}.pt"} for index, entry in enumerate(entries)]
    (folder / "videos2caption.json").write_text(json.dumps(entries))
    assert len(open_checked(folder, family)) == 2
    (folder / "prompt_attention_mask").mkdir()
    (folder / "prompt_attention_mask/0.pt").write_bytes(b"not a tensor")
    assert len(open_checked(folder, family)) == 2


def test_all_samples_bad(tmp_path: Path, family: WanTraining) -> None:
    folder = write_data(tmp_path, NAMES)
    for name in NAMES:
        (folder / f"latents/{name}.safetensors").unlink()
    with pytest.raises(DataError, match="has no usable sample"):
        open_checked(folder, family, skip_bad=True)
    with pytest.raises(DataError, match="3 of 3 samples cannot be used"):
        open_checked(folder, family)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no usable sample"):
        open_checked(write_data(tmp_path / "none", []), family)


CAT = {"name": "cat", "caption": "a cat"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1"}, "version '1': must be 1"),
        ({"version": None}, "version None: must be 1"),
        ({"family": 5}, "family 5: must be a valid string"),
        ({"video_size": [9, 64]}, "video_size.2: is missing"),
        ({"video_size": [9, 64, 96.0]}, "video_size.2 96.0: must be a valid integer"),
        ({"video_size": [9, -64, 96]}, "video_size.1 -64: must be greater than or equal to 1"),
        ({"video_size": [9, 64, float("nan")]}, "video_size.2 nan: must be a valid integer"),
        ({"video_size": "9x64x96"}, "video_size '9x64x96': must be a valid array"),
        ({"samples": {"cat": "a cat"}}, "samples {'cat': 'a cat'}: must be a valid array"),
        ({"samples": [CAT, {"name": 5, "caption": "a"}]}, "samples.1.name 5: must be a valid string"),
        ({"samples": [{"name": "", "caption": "a"}]}, "samples.0.name '': String should have at least 1 character"),
        ({"samples": [CAT, CAT]}, "sample 'cat' stands there 2 times"),
    ],
)
def test_values_that_dataset_json_cannot_have(
    tmp_path: Path, family: WanTraining, changes: dict[str, object], message: str
) -> None:
    write_data(tmp_path, ["cat"], **changes)
    with pytest.raises(DataError) as caught:
        LatentDataset(tmp_path, family)
    assert f"data {tmp_path}/dataset.json: {message}" in str(caught.value)
    assert "prepare the data again" in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"latent_path": 5}], "0.latent_path 5: must be a valid string"),
        ([{}], "0.latent_path: is missing"),
        (["0.pt"], "0 '0.pt': must be an object"),
        ([{"latent_path": "0.pt", "prompt_embed_path": ["0.pt"]}], "0.prompt_embed_path ['0.pt']: must be a valid str"),
    ],
)
def test_values_that_the_reference_layout_cannot_have(
    tmp_path: Path, family: WanTraining, entries: object, message: str
) -> None:
    (tmp_path / "videos2caption.json").write_text("\ufeff" + json.dumps(entries), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        LatentDataset(tmp_path, family)
    assert f"data {tmp_path}/videos2caption.json: {message}" in str(caught.value)


def test_files_that_vanish_after_the_check(tmp_path: Path, family: WanTraining) -> None:
    dataset = open_checked(write_data(tmp_path, NAMES), family)
    (tmp_path / "latents/dog.safetensors").unlink()
    with pytest.raises(DataError, match="sample 'dog': its latents .* do not exist"):
        dataset.batch([0, 1])


def test_folders_that_are_no_data(tmp_path: Path, family: WanTraining) -> None:
    with pytest.raises(FileNotFoundError, match=r"data .*absent: does not exist.*`vorta-trt train-router"):
        open_checked(tmp_path / "absent", family)
    with pytest.raises(FileNotFoundError, match=r"has neither dataset.json nor videos2caption.json"):
        open_checked(tmp_path, family)
    (tmp_path / "dataset.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(PointerError, match=r"dataset.json: is a pointer of Git LFS"):
        LatentDataset(tmp_path, family)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        open_checked(tmp_path, family)
    write_data(tmp_path, NAMES, version=9)
    with pytest.raises(DataError, match="dataset.json: version 9: must be 1; prepare"):
        open_checked(tmp_path, family)
    write_data(tmp_path, NAMES, family="hunyuan_video")
    with pytest.raises(DataError, match="was prepared for family 'hunyuan_video', the checkpoint is 'wan'"):
        open_checked(tmp_path, family)
    write_data(tmp_path, NAMES, samples=[{"name": "cat"}])
    with pytest.raises(DataError, match="samples.0.caption: is missing"):
        open_checked(tmp_path, family)
