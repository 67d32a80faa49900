# SPDX-License-Identifier: Apache-2.0
"""fp8 attention between the ONNX file and the engine: recorded, shown, and refused where it has no kernels."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from vorta_trt.engines import BuildError, Bundle, BundleError, build_engine, fp8, inspect_bundle, inspect_onnx
from vorta_trt.engines import bundle as bundle_module
from vorta_trt.engines.gpu import Target
from vorta_trt.engines.manifest import Manifest
from vorta_trt.export import OnnxFileError
from vorta_trt.plugins import load_library
from vorta_trt.plugins.gpu import ComputeCapability, Device, DriverReport

from ..plugins.test_gpu_architectures import script as gpu_architectures

HOPPER = Target((ComputeCapability(9, 0),), and_newer=False)
ADA = Target((ComputeCapability(8, 9),), and_newer=False)
Holding = Callable[..., None]


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Holding:
    """Makes the library one that was compiled for other architectures."""

    def hold(*architectures: str) -> None:
        real = load_library()
        special = gpu_architectures.special_code(architectures)
        families = [
            replace(family, architectures=tuple(special.get(family.name[:4], architectures)))
            for family in real.kernel_families
        ]
        library = SimpleNamespace(path=real.path, cuda_architectures=architectures, kernel_families=families)
        monkeypatch.setattr(fp8, "load_library", lambda: library)

    return hold


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: str) -> Device:
    device = Device("Some GPU", ComputeCapability.parse(capability), 80 * 2**30)
    monkeypatch.setattr(bundle_module, "driver_report", lambda: DriverReport((device,), "13.0", None))
    return device


@pytest.fixture(scope="module")
def fp8_bundle(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("fp8")
    model = make_model(folder / "fp8.onnx", attention_precision="fp8")
    return build_engine(model, folder / "fp8.bundle", strict=False)


def test_the_manifest_and_inspect_tell(built: Bundle, fp8_bundle: Bundle) -> None:
    for bundle, precision, words in (
        (built, "same", "products in the type of the inputs"),
        (fp8_bundle, "fp8", "fp8 products, where the kernels have them"),
    ):
        manifest = json.loads((bundle.path / "manifest.json").read_text())
        assert manifest["attention_precision"] == manifest["metadata"]["attention_precision"] == precision
        report = inspect_bundle(bundle.path, verify=True)
        assert report.manifest.attention_precision == precision
        assert f"attention  {words}" in list(report.lines())
        assert json.loads(report.model_dump_json())["manifest"]["attention_precision"] == precision


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_inspect_tells_of_an_onnx_file(make_model: Any, tmp_path: Path, precision: str) -> None:
    report = inspect_onnx(make_model(tmp_path / "m.onnx", attention_precision=precision))
    assert report.attention_precision == precision
    assert [line for line in report.lines() if line.startswith("attention  ")]


def test_a_manifest_from_before_it_means_same(bundle: Path) -> None:
    """It lacks the field, and its digest was made without it."""
    document = json.loads((bundle / "manifest.json").read_text())
    del document["attention_precision"], document["metadata"]["attention_precision"]
    content = {name: value for name, value in document.items() if name != "digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    document["digest"] = hashlib.sha256(canonical).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(document))
    assert Bundle.open(bundle).manifest.attention_precision == "same"


def test_an_edit_by_hand_is_noticed(bundle: Path, fp8_bundle: Bundle, tmp_path: Path) -> None:
    for source, other in ((bundle, "fp8"), (fp8_bundle.path, "same")):
        document = json.loads((source / "manifest.json").read_text()) | {"attention_precision": other}
        manifest = Manifest.model_validate_json(json.dumps(document))
        assert manifest.digest != manifest.computed_digest()


def test_rtx_builds_for_the_gpus_with_fp8_kernels(make_model: Any, tmp_path: Path, holding: Holding) -> None:
    """Without a GPU; the library need not run here."""
    holding("80", "89-real", "120-real")
    model = make_model(tmp_path / "fp8.onnx", attention_precision="fp8", head_dim=64)
    bundle = build_engine(model, tmp_path / "fp8.bundle", compute_capabilities=["8.9", "12.0"])
    assert bundle.manifest.attention_precision == "fp8"
    assert bundle.manifest.engine.compute_capabilities == ["8.9", "12.0"]


def test_rtx_default_includes_gpus_without_fp8_kernels(
    make_model: Any, tmp_path: Path, holding: Holding, caplog: pytest.LogCaptureFixture
) -> None:
    holding("80", "89-real", "120-real")
    model = make_model(tmp_path / "fp8.onnx", attention_precision="fp8")
    reasons = (
        r"attention_precision fp8 needs GPUs of compute capability 8\.9 or newer, and this engine is built for 8\.0, "
        r"8\.6, 8\.9, 12\.0 and newer; build for .* \(--compute-capability 8\.9 --compute-capability 12\.0\), or use "
        r"--attention-precision same; or pass strict=False \(--no-strict\)"
    )
    with pytest.raises(BuildError, match=reasons):
        build_engine(model, tmp_path / "fp8.bundle")
    assert [entry.name for entry in tmp_path.iterdir()] == ["fp8.onnx"]
    build_engine(model, tmp_path / "fp8.bundle", strict=False)
    assert "attention_precision fp8 needs GPUs" in caplog.text


@pytest.mark.parametrize(
    ("held", "target", "lacks", "remedy"),
    [
        (("80",), ADA, "8.9", "80;89-real"),
        (("80", "90a-real"), ADA, "8.9", "80;89-real"),
        (("80", "89-real"), HOPPER, "9.0", "80;90a-real"),
        (("80", "120-real"), Target((ADA.capabilities[0], ComputeCapability(12, 0)), False), "8.9", "80;89-real"),
        (("80",), Target((ADA.capabilities[0], ComputeCapability(12, 0)), False), "8.9, 12.0", "80;89-real;120-real"),
    ],
)
def test_kernels_that_were_not_compiled(
    holding: Holding, held: tuple[str, ...], target: Target, lacks: str, remedy: str
) -> None:
    """PTX of 80 makes no 8-bit products on a newer GPU."""
    holding(*held)
    with pytest.raises(BuildError, match="fp8") as caught:
        fp8.check_build(Path("wan.onnx"), "fp8", target, (128,), strict=True)
    message = str(caught.value)
    assert f"for compute capability {lacks}: it was compiled for {', '.join(held)};" in message
    assert f'VORTA_CUDA_ARCHITECTURES="{remedy}"' in message and "--attention-precision same" in message


@pytest.mark.parametrize(
    ("held", "target"),
    [
        (("80", "89-real"), ADA),
        (("89",), Target((ComputeCapability(8, 9), ComputeCapability(12, 0)), False)),  # PTX of 89 does
        (("120-real",), Target((ComputeCapability(12, 1),), False)),
        (("90",), HOPPER),  # emulated there
    ],
)
def test_kernels_that_were_compiled(holding: Holding, held: tuple[str, ...], target: Target) -> None:
    holding(*held)
    fp8.check_build(Path("wan.onnx"), "fp8", target, (64, 128), strict=True)


@pytest.mark.parametrize("head_dims", [(64,), (128, 128), (64, 128)])
def test_an_engine_for_the_right_gpu_and_heads_is_built(head_dims: Any, holding: Holding) -> None:
    holding("80", "90a-real")
    fp8.check_build(Path("wan.onnx"), "fp8", HOPPER, head_dims, strict=True)
    fp8.check_build(Path("wan.onnx"), "same", Target((), False), (16,), strict=True)


def test_other_head_dimensions_have_no_kernels(holding: Holding) -> None:
    holding("80", "90a-real")
    message = r"wan\.onnx: .*needs head_dim 64 or 128, and this model has 96; use --attention-precision"
    with pytest.raises(BuildError, match=message):
        fp8.check_build(Path("wan.onnx"), "fp8", HOPPER, (128, 96), strict=True)


@pytest.mark.parametrize(
    ("gpu", "problem"),
    [
        ("9.0", None),
        ("8.9", None),
        ("12.1", None),
        ("8.6", "needs a GPU of compute capability 8.9 or newer, but this GPU is Some GPU"),
        ("11.0", "does not hold for compute capability 11.0"),
    ],
)
def test_the_gpu_of_this_machine(
    fp8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, holding: Holding, gpu: str, problem: str | None
) -> None:
    holding("80", "89-real", "90a-real", "120-real")
    device = on_gpu(monkeypatch, gpu)
    found = [text for text in fp8_bundle.check_runtime() if "attention_precision" in text]
    assert len(found) == (problem is not None)
    assert all(str(problem) in text and "--attention-precision same" in text for text in found)
    assert fp8.run_problems("same", device) == []


def test_a_file_of_another_origin_is_known_by_its_nodes(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "foreign.onnx", attention_precision="fp8", metadata=False)
    bundle = build_engine(model, tmp_path / "foreign.bundle", strict=False)
    assert (bundle.manifest.precision, bundle.manifest.attention_precision) == (None, "fp8")


def test_a_file_from_before_it_builds_without_a_word(
    make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT's parser warns of plugin fields that a node lacks, though the plugin has a default."""
    bundle = build_engine(make_model(tmp_path / "m.onnx", attention_precision=None), tmp_path / "m.bundle")
    assert bundle.manifest.attention_precision == "same"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (None, "speaks of attention precision 'fp8', but its RoutedAttention nodes of 'same'"),
        ("fp4", "attention_precision 'fp4': must be 'same' or 'fp8'; export it again"),
    ],
)
def test_nodes_that_contradict(make_model: Any, tmp_path: Path, attribute: str | None, message: str) -> None:
    path = make_model(tmp_path / "m.onnx", attention_precision="fp8")
    model = onnx.load(path)
    for node in model.graph.node:
        for given in [a for a in node.attribute if a.name == "attention_precision"]:
            node.attribute.remove(given)
            if attribute is not None:
                node.attribute.append(onnx.helper.make_attribute("attention_precision", attribute))
    onnx.save(model, path)
    with pytest.raises(OnnxFileError, match=message):
        build_engine(path, tmp_path / "m.bundle")


def test_a_precision_that_does_not_exist(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text()) | {"attention_precision": "fp4"}
    (bundle / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="attention_precision 'fp4'.*'same' or 'fp8'"):
        Bundle.open(bundle)
