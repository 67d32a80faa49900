# SPDX-License-Identifier: Apache-2.0
"""ONNX -> bundle with TensorRT-RTX on this machine: what comes out, and what is refused with which words."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from vorta_trt.engines import BuildError, BuildProgress, Bundle, FlavourError, build_engine, bundle_writer
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.inspect import inspect_bundle
from vorta_trt.engines.network import check_plugin_layers
from vorta_trt.engines.plan import BuildOptions
from vorta_trt.export import OnnxFileError
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins import library_path
from vorta_trt.plugins.operator_schema import LARGEST_BUCKET


def nothing_left(folder: Path, *allowed: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(allowed)


def test_a_bundle_has_everything_the_manifest_lists(built: Bundle) -> None:
    manifest = built.manifest
    assert set(manifest.files) == {
        "transformer.plan",
        "layers.json",
        "libvorta_trt.so",
        "model.onnx",
        "small.onnx.data",
    }
    assert {path.name for path in built.path.iterdir()} == {*manifest.files, "manifest.json"}
    assert (manifest.family, manifest.precision, manifest.op_version) == ("wan", "bf16", 1)
    assert manifest.geometry is not None and manifest.geometry["grid"] == [2, 6, 6]
    assert manifest.metadata is not None and manifest.metadata["tau"] == 0.3
    assert manifest.plugin is not None and manifest.plugin.layers == 2
    assert manifest.engine.flavour == "rtx"
    assert manifest.engine.compute_capabilities == ["8.0", "8.6", "8.9", "12.0"] and manifest.engine.and_newer
    assert "TF32" not in manifest.engine.flags
    assert manifest.engine.memory.weights is not None and manifest.engine.memory.weights > 0
    hidden, routes = manifest.inputs
    assert (hidden.name, hidden.dtype, hidden.shape) == ("hidden_states", "bfloat16", [-1, 72, 32])
    assert hidden.profile is not None and (hidden.profile.min[0], hidden.profile.opt[0], hidden.profile.max[0]) == (
        1,
        1,
        2,
    )
    assert (routes.name, routes.dtype) == ("routes", "int32")
    assert [output.name for output in manifest.outputs] == ["sample"]


def test_the_onnx_file_in_the_bundle_is_complete(built: Bundle) -> None:
    assert built.onnx_path is not None
    model = onnx.load(str(built.onnx_path))  # with its external weights
    assert len(read_onnx(built.onnx_path).routed_nodes) == 2
    assert all(tensor.raw_data or tensor.int64_data or tensor.int32_data for tensor in model.graph.initializer)


def test_paths_with_spaces_and_new_folders(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "a model" / "with space.onnx", external_data=True)
    bundle = build_engine(model, tmp_path / "new folder" / "my engine.bundle", include_plugin=False)
    assert Bundle.open(tmp_path / "new folder" / "my engine.bundle").manifest == bundle.manifest
    assert set(bundle.manifest.files) == {"transformer.plan", "layers.json"}
    assert bundle.manifest.plugin is not None and not bundle.manifest.plugin.included


def test_chosen_capabilities_batch_and_options(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx")
    bundle = build_engine(
        model,
        tmp_path / "m.bundle",
        batch=(2, 2, 4),
        compute_capabilities=["sm_120", "8.9"],
        workspace_gib=1,
        optimization_level=1,
    )
    engine = bundle.manifest.engine
    assert (engine.compute_capabilities, engine.and_newer) == (["8.9", "12.0"], False)
    assert (engine.optimization_level, engine.workspace_bytes) == (1, 2**30)
    profile = bundle.manifest.inputs[0].profile
    assert profile is not None and (profile.min[0], profile.opt[0], profile.max[0]) == (2, 2, 4)


def test_the_plan_carries_the_plugin_library_on_demand(make_model: Any, tmp_path: Path, built: Bundle) -> None:
    bundle = build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", plugin_in_plan=True)
    library = library_path().read_bytes()
    assert library in bundle.plan_path.read_bytes()
    assert bundle.manifest.has_plugin_in_plan and not built.manifest.has_plugin_in_plan
    assert "in_plan" not in (built.path / "manifest.json").read_text()  # as bundles were before there was the option
    assert any(line.endswith(", included, in the plan") for line in inspect_bundle(bundle.path).lines())


def test_progress_is_reported_and_phases_end(make_model: Any, tmp_path: Path) -> None:
    events: list[BuildProgress] = []
    build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", progress=events.append)
    ends = {event.phase: event.step == event.steps for event in events}
    assert ends["Building engine"] and all(ends.values())
    assert all(0 <= event.step <= event.steps for event in events)


def test_progress_bar(make_model: Any, tmp_path: Path) -> None:
    build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", progress=True)


def test_an_error_of_the_progress_callback_stops_the_build(make_model: Any, tmp_path: Path) -> None:
    def stop(event: BuildProgress) -> None:
        if event.phase == "Optimizing graph":
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", progress=stop)
    assert nothing_left(tmp_path, "m.onnx")


def test_an_existing_bundle_is_replaced_only_on_demand(make_model: Any, tmp_path: Path) -> None:
    target = tmp_path / "m.bundle"
    first = build_engine(make_model(tmp_path / "m.onnx", blocks=1), target)
    second_model = make_model(tmp_path / "n.onnx", blocks=2)
    with pytest.raises(WriteError, match="this bundle exists; pass overwrite=True"):
        build_engine(second_model, target)
    assert Bundle.open(target).manifest == first.manifest
    second = build_engine(second_model, target, overwrite=True)
    assert Bundle.open(target).manifest == second.manifest != first.manifest
    assert nothing_left(tmp_path, "m.onnx", "n.onnx", "m.bundle")


def test_a_folder_that_is_no_bundle_is_never_replaced(make_model: Any, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(WriteError, match="exists and is not a bundle"):
        build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "photos", overwrite=True)


# --- The plugin trap ---------------------------------------------------------


def test_a_function_body_that_wins_over_the_plugin_is_an_error(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", plugin_attributes=False)
    with pytest.raises(BuildError, match=r"only 0 of 2 RoutedAttention nodes .* lack.* plugin_namespace") as failure:
        build_engine(model, tmp_path / "m.bundle")
    assert "blocks.0.attn1/RoutedAttention" in str(failure.value)
    assert nothing_left(tmp_path, "m.onnx")


def test_one_lost_node_among_good_ones_is_named(make_model: Any, tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "m.onnx", blocks=3)))
    node = next(node for node in model.graph.node if node.name == "blocks.1.attn1/RoutedAttention")
    kept = [attribute for attribute in node.attribute if not attribute.name.startswith("plugin_")]
    node.ClearField("attribute")
    node.attribute.extend(kept)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(BuildError, match=r"only 2 of 3 .*: blocks\.1\.attn1/RoutedAttention lack"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle")


PARSE_WITHOUT_PLUGIN = """
import sys
from pathlib import Path
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.network import parse_onnx
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.engines.plan import BuildOptions
flavour = get_flavour("rtx")
parse_onnx(flavour, flavour.module.Builder(flavour.logger), read_onnx(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("function_body", [True, False])
def test_without_the_plugin_parsing_fails(
    make_model: Any, tmp_path: Path, run_python: Any, function_body: bool
) -> None:
    model = make_model(tmp_path / "m.onnx", function_body=function_body)
    result = run_python(PARSE_WITHOUT_PLUGIN, model)
    assert result.returncode == 1 and "BuildError" in result.stderr
    assert "vorta::RoutedAttention is not registered" in result.stderr
    if not function_body:
        assert "blocks.0.attn1/RoutedAttention (RoutedAttention)" in result.stderr  # the parser's own error, by node


BUILDS = """
import os, sys
from vorta_trt.engines import build_engine
model, *libraries = sys.argv[1:]
for library in libraries:
    os.environ["VORTA_TRT_LIBRARY"] = library
    try:
        build_engine(model, "m.bundle")
        print("built")
    except Exception as error:
        print(*str(error).split(), os.path.exists("m.bundle"))
"""


def test_the_plugin_library_is_that_of_the_environment(make_model: Any, tmp_path: Path, run_python: Any) -> None:
    """One that is missing, or is something else, is refused; a relative path is right."""
    import re

    from vorta_trt.plugins import library_path, rtx_shim_path

    (tmp_path / "garbage.so").write_text("garbage")
    (tmp_path / "shim.so").symlink_to(rtx_shim_path())
    (tmp_path / "libvorta_trt.so").symlink_to(library_path())
    model = make_model(tmp_path / "m.onnx")
    names = ("absent.so", "garbage.so", "shim.so", "libvorta_trt.so")
    result = run_python(BUILDS, model, *names, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    refusals = ("absent.so.*no such file", "garbage.so.*(invalid ELF header|file too short)", "has no getCreators")
    for line, words in zip(said, (*refusals, "built"), strict=True):
        assert re.search(words, line), result.stdout
    assert all(line.endswith(" False") for line in said[:3]), "nothing is written"
    assert Bundle.open(tmp_path / "m.bundle").manifest.plugin is not None


def test_float32_attention_is_refused_by_name(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT, metadata=False)
    with pytest.raises(BuildError, match="query is float32.*export the model with precision") as failure:
        build_engine(model, tmp_path / "m.bundle", strict=False)
    assert "blocks.0.attn1/RoutedAttention" in str(failure.value)
    assert "cudaError" not in str(failure.value)  # TensorRT's echo on machines without a driver
    assert nothing_left(tmp_path, "m.onnx")


def test_a_file_in_fp32_is_refused_before_the_build(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writer, "build_plan", lambda *arguments: pytest.fail("it was built"))
    model = make_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT)
    words = r"m.onnx: precision 'fp32': the plugin computes in fp16 and bf16; export the model with --precision bf16"
    with pytest.raises(ValueError, match=words):
        build_engine(model, tmp_path / "m.bundle")
    assert nothing_left(tmp_path, "m.onnx")


def test_somebody_elses_plugin_layers_do_not_count(make_model: Any, tmp_path: Path) -> None:
    onnx_file = read_onnx(make_model(tmp_path / "m.onnx"))
    with pytest.raises(BuildError, match="only 0 of 2"):
        check_plugin_layers(get_flavour("rtx"), onnx_file, {})


# --- Broken files ------------------------------------------------------------


def test_corrupt_onnx_files(make_model: Any, tmp_path: Path) -> None:
    whole = make_model(tmp_path / "m.onnx").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"not a model at all\n" * 9)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises((OnnxFileError, BuildError), match=f"{name}.onnx"):
            build_engine(path, tmp_path / "m.bundle")
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        build_engine(tmp_path / "missing.onnx", tmp_path / "m.bundle")
    assert not (tmp_path / "m.bundle").exists()


def test_external_weights_missing_or_cut(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", external_data=True)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(OnnxFileError, match=r"m\.onnx\.data: cut short, \d+ bytes instead of \d+"):
        build_engine(model, tmp_path / "m.bundle")
    data.unlink()
    with pytest.raises(OnnxFileError, match=r"its weights m\.onnx\.data are missing"):
        build_engine(model, tmp_path / "m.bundle")


def test_external_weights_outside_the_folder(make_model: Any, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", external_data=True)
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match="must lie beside the model"):
        build_engine(path, tmp_path / "m.bundle")


def test_an_unknown_operator_is_reported_by_node(make_model: Any, tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "m.onnx")))
    model.graph.node[-1].op_type = "Frobnicate"
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(BuildError, match=r"proj_out/MatMul \(Frobnicate\)"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle")


def test_models_that_vorta_trt_did_not_export(
    make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(tmp_path / "m.onnx", metadata=False)
    with pytest.raises(OnnxFileError, match="no vorta_trt metadata.*strict=False"):
        build_engine(model, tmp_path / "m.bundle")
    with caplog.at_level(logging.WARNING):
        bundle = build_engine(model, tmp_path / "m.bundle", strict=False)
    assert "no vorta_trt metadata" in caplog.text
    assert bundle.manifest.family is None and bundle.manifest.plugin is not None


def test_metadata_that_contradicts_the_graph(make_model: Any, tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "m.onnx", blocks=2)))
    for entry in model.metadata_props:
        if entry.key == "vorta_trt":
            entry.value = json.dumps({**json.loads(entry.value), "num_layers": 3})
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(OnnxFileError, match="3 layers, but it has 2"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle")


def test_a_bucket_that_the_kernels_do_not_take(make_model: Any, tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "m.onnx")))
    for entry in model.metadata_props:
        if entry.key == "vorta_trt":
            content = json.loads(entry.value)
            content["geometry"]["bucket"] = [1, 5, LARGEST_BUCKET // 4]
            entry.value = json.dumps(content)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(BuildError, match=f"bucket .*80 tokens.* at most {LARGEST_BUCKET}; make"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle")
    assert not (tmp_path / "m.bundle").exists()


def test_a_dynamic_dimension_besides_the_batch(make_model: Any, tmp_path: Path) -> None:
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"input x \[-1, -1\]: only the first dimension"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle", strict=False)


# --- Options -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": (2, 1, 2)}, r"batch \(2, 1, 2\)"),
        ({"batch": (0, 1, 2)}, "1 <= min"),
        ({"optimization_level": 6}, "optimization_level 6"),
        ({"workspace_gib": -1.0}, "workspace_gib -1"),
        ({"workspace_gib": 1e300}, r"workspace_gib 1e\+300: must be positive and below 2\^33"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BuildOptions(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compute_capabilities": ["9.0"]}, r"cannot build for 9\.0; it knows 7\.5, 8\.0"),
        ({"compute_capabilities": ["current"]}, "needs a GPU"),
        ({"hardware_compatibility": "ampere_plus"}, "has no such option"),
    ],
)
def test_options_the_flavour_lacks(make_model: Any, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if options.get("compute_capabilities") == ["current"]:
        from vorta_trt.plugins.gpu import driver_report

        if driver_report().devices:
            pytest.skip("this machine has a GPU")
    with pytest.raises(FlavourError, match=words):
        build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", **options)
    assert nothing_left(tmp_path, "m.onnx")


def test_a_timing_cache_is_ignored_loudly_on_rtx(
    make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", timing_cache=tmp_path / "cache")
    assert "has no timing cache" in caplog.text and not (tmp_path / "cache").exists()
