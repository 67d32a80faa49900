# SPDX-License-Identifier: Apache-2.0
"""Opening bundles: damage, edits by hand, and machines that do not fit, each by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vorta_trt.engines import Bundle, BundleError
from vorta_trt.engines import bundle as bundle_module
from vorta_trt.engines.manifest import Manifest, read_manifest
from vorta_trt.plugins.gpu import ComputeCapability, Device, DriverReport


def edit(bundle: Path, reseal: bool = False, **changes: Any) -> None:
    """Changes fields of manifest.json ("engine__version" for nested ones), as an editor would or with a new digest."""
    document = json.loads((bundle / "manifest.json").read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = document
        for part in outer:
            inner = inner[part]
        inner[last] = value
    (bundle / "manifest.json").write_text(json.dumps(document))
    if reseal:
        Manifest.model_validate_json(json.dumps(document)).write(bundle / "manifest.json")


def problems(bundle: Path, **options: Any) -> str:
    with pytest.raises(BundleError) as failure:
        Bundle.open(bundle, **options)
    return "\n".join(failure.value.problems)


def with_gpu(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    device = Device("Some GPU", ComputeCapability.parse(capability), 80 * 2**30)
    report = DriverReport((device,), "13.0", None)
    monkeypatch.setattr(bundle_module, "driver_report", lambda: report)


def test_a_whole_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.plan_path == bundle / "transformer.plan" and opened.plan_path.is_file()
    library = opened.plugin_library()
    assert library is not None and opened.manifest.plugin is not None
    assert library.abi_hash == opened.manifest.plugin.abi_hash


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such bundle"):
        Bundle.open(tmp_path / "nothing.bundle")
    assert "no manifest.json" in problems(tmp_path)
    (tmp_path / "engine.plan").write_bytes(b"plan")
    assert "no manifest.json" in problems(tmp_path / "engine.plan")


def test_a_truncated_plan(bundle: Path) -> None:
    plan = bundle / "transformer.plan"
    size = plan.stat().st_size
    plan.write_bytes(plan.read_bytes()[: size // 3])
    assert f"transformer.plan is cut short: {size // 3} bytes instead of {size}" in problems(bundle, verify=False)


def test_a_plan_with_one_flipped_bit(bundle: Path) -> None:
    plan = bundle / "transformer.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    assert "transformer.plan was changed: its SHA-256 differs" in problems(bundle)
    Bundle.open(bundle, verify=False)  # only sizes


def test_every_damage_is_named_at_once(bundle: Path) -> None:
    (bundle / "layers.json").unlink()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "small.onnx.data").unlink()
    found = problems(bundle)
    for words in ("layers.json is missing", "model.onnx is cut short", "small.onnx.data is missing"):
        assert words in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tau": 0.5}, "tau: is not known"),
        ({"precision": "int8"}, "precision 'int8': must be 'fp32', 'fp16' or 'bf16'"),
        ({"engine__version": 17}, "engine.version 17: must be a valid string"),
        ({"engine__and_newer": "yes"}, "engine.and_newer 'yes': must be a valid boolean"),
        ({"inputs": []}, "inputs []: List should have at least 1 item"),
        ({"files": {}}, "files: transformer.plan is missing"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "String should match pattern"),
        ({"schema_version": 3}, "has schema_version 3, this vorta-trt reads 1 and 2"),
        ({"schema_version": None}, "has schema_version None"),
    ],
)
def test_an_edited_manifest_that_breaks_the_schema(bundle: Path, changes: dict[str, Any], words: str) -> None:
    edit(bundle, **changes)
    assert words in problems(bundle)


@pytest.mark.parametrize(
    "changes", [{"precision": "fp16"}, {"engine__compute_capabilities": ["9.0"]}, {"digest": None}]
)
def test_an_edited_manifest_that_keeps_the_schema(bundle: Path, changes: dict[str, Any]) -> None:
    edit(bundle, **changes)
    assert "manifest.json was changed after the build" in problems(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff", "null"])
def test_a_manifest_that_is_no_manifest(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_bytes(content.encode("latin-1"))
    assert "manifest.json" in problems(bundle)


def test_another_tensorrt_version(bundle: Path) -> None:
    edit(bundle, reseal=True, engine__version="1.3.0.35")
    assert "built with TensorRT-RTX 1.3.0.35, but 1." in problems(bundle)
    Bundle.open(bundle, runtime=False)  # to look at, that is no problem


def test_an_unknown_flavour(bundle: Path) -> None:
    edit(bundle, reseal=True, engine__flavour="openvino")
    assert "'openvino': unknown; use one of rtx, tensorrt, tensorrt8, lean, dispatch" in problems(bundle)


def test_a_flavour_that_is_not_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.engines.flavours import Flavour

    monkeypatch.setattr(Flavour, "version", None)
    assert "tensorrt_rtx is not installed" in problems(bundle)


@pytest.mark.parametrize(
    ("gpu", "fits"), [("8.6", True), ("12.1", True), ("13.0", True), ("9.0", False), ("7.5", False)]
)
def test_the_gpu_of_this_machine(bundle: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, fits: bool) -> None:
    with_gpu(monkeypatch, gpu)
    found = [problem for problem in Bundle.open(bundle, runtime=False).check_runtime() if "built for" in problem]
    assert bool(found) != fits
    if not fits:
        assert f"built for compute capability 8.0, 8.6, 8.9, 12.0 and newer, but this GPU is Some GPU ({gpu}" in (
            found[0].replace("compute capability " + gpu, gpu)
        )


@pytest.mark.parametrize(
    ("gpu", "remedy"),
    [
        ("8.9", "build for it with --compute-capability 8.9"),
        ("13.0", "build for it with --tensorrt rtx and without --compute-capability"),  # no target, but runs
        ("9.0", "build for it with --tensorrt tensorrt on a machine with that GPU"),
    ],
)
def test_a_remedy_that_the_build_takes(bundle: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, remedy: str) -> None:
    edit(bundle, reseal=True, engine__compute_capabilities=["8.6"], engine__and_newer=False)
    with_gpu(monkeypatch, gpu)
    found = [problem for problem in Bundle.open(bundle, runtime=False).check_runtime() if "built for" in problem]
    assert remedy in found[0]


def test_a_library_without_kernels_for_the_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.plugins import PluginLibrary

    monkeypatch.setattr(PluginLibrary, "cuda_architectures", ("90a-real",))
    with_gpu(monkeypatch, "8.9")
    assert "has kernels for 90a-real, none for this GPU" in problems(bundle)


def test_another_plugin_abi(bundle: Path) -> None:
    edit(bundle, reseal=True, plugin__abi_hash="f" * 64)
    found = problems(bundle)
    assert f"built with plugin ABI {'f' * 64}" in found and "install that version" in found


def test_the_bundles_own_library_serves_where_the_installed_one_does_not(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.plugins import LibraryNotFoundError

    def absent() -> None:
        raise LibraryNotFoundError("libvorta_trt.so: no such file")

    monkeypatch.setattr(bundle_module, "load_library", absent)
    library = Bundle.open(bundle).plugin_library()
    assert library is not None and library.path == (bundle / "libvorta_trt.so").resolve()
    (bundle / "libvorta_trt.so").unlink()
    assert "libvorta_trt.so: no such file" in problems(bundle)


def test_a_manifest_of_the_first_version(tmp_path: Path) -> None:
    """Of a bundle that still had a routes.json; it reads, and its digest is the one that it was sealed with."""
    old = Path(__file__).parents[1] / "data/manifest_first_version.json"
    manifest, found = read_manifest(old)
    assert manifest is not None and found == []
    assert "routes.json" in manifest.files
    assert (manifest.family, manifest.precision, manifest.attention_precision) == ("wan", "bf16", "same")
    manifest.write(tmp_path / "manifest.json")
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(old.read_text())
    (tmp_path / "manifest.json").write_text(old.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    _, found = read_manifest(tmp_path / "manifest.json")
    assert len(found) == 1 and "schema_version 0" in found[0] and "build the bundle again" in found[0]


def test_extra_files_do_no_harm(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    Bundle.open(bundle)
