"""The kustomize base and the Helm chart install the same operator, with the same, least privileges."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import programs

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
OWN_IMAGE = "shipkeeper/operator:v0.1.0"
CHART_ONLY_LABELS = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}


def _program(name: str) -> str:
    return str(programs.ensure([name])[name])


def _render(*command: str) -> dict[tuple[str, str], dict[str, Any]]:
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    objects = [document for document in yaml.safe_load_all(rendered) if document]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def _kustomize(folder: str) -> dict[tuple[str, str], dict[str, Any]]:
    return _render(_program("kubectl"), "kustomize", str(ROOT / folder))


def _chart(*options: str) -> dict[tuple[str, str], dict[str, Any]]:
    chart = str(ROOT / "charts/shipkeeper")
    return _render(_program("helm"), "template", "shipkeeper", chart, "--namespace", "shipkeeper-system", *options)


def _without_chart_labels(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_chart_labels(each) for key, each in value.items() if key not in CHART_ONLY_LABELS}
    if isinstance(value, list):
        return [_without_chart_labels(each) for each in value]
    return value


@pytest.fixture(scope="module")
def base() -> dict[tuple[str, str], dict[str, Any]]:
    return _kustomize("manifests/base")


def test_the_chart_renders_what_the_base_has(base: dict[tuple[str, str], dict[str, Any]]) -> None:
    chart = _chart()
    assert set(chart) == {key for key in base if key[0] != "Namespace"}
    for key, rendered in chart.items():
        expected = _without_chart_labels(base[key])
        actual = _without_chart_labels(rendered)
        for part in set(expected) | set(actual):
            if part == "metadata":
                continue
            assert _pruned(actual[part]) == _pruned(expected[part]), f"{key}: {part}"


def _pruned(value: Any) -> Any:
    """Leave out labels that only say of what a thing is a part."""
    if isinstance(value, dict):
        return {
            key: _pruned(each)
            for key, each in value.items()
            if key not in {"app.kubernetes.io/part-of", "app.kubernetes.io/component"}
        }
    if isinstance(value, list):
        return [_pruned(each) for each in value]
    return value


def test_the_chart_keeps_the_definitions_when_it_is_removed() -> None:
    for (kind, _), rendered in _chart().items():
        if kind == "CustomResourceDefinition":
            assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not [key for key in _chart("--set", "crds.enabled=false") if key[0] == "CustomResourceDefinition"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [("replicas=0", "replicas"), ("image.digest=latest", "digest"), ("nothing=1", "nothing")],
)
def test_the_chart_refuses_bad_values(setting: str, named: str) -> None:
    command = [_program("helm"), "template", "x", str(ROOT / "charts/shipkeeper"), "--set", setting]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert named in refused.stderr


@pytest.mark.parametrize("folder", ["manifests/base", "manifests/overlays/local"])
def test_a_worker_runs_from_the_operators_image(folder: str) -> None:
    deployment = _kustomize(folder)["Deployment", "shipkeeper-operator"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert container["image"] == environment["SHIPKEEPER_WORKER_IMAGE"]
    assert container["image"].rsplit(":", 1)[0].endswith("shipkeeper/operator")


def test_no_permission_is_a_wildcard(base: dict[tuple[str, str], dict[str, Any]]) -> None:
    roles = [each for (kind, _), each in base.items() if kind in {"Role", "ClusterRole"}]
    rules = [rule for role in roles for rule in role["rules"]]
    assert rules
    for rule in rules:
        assert not [each for field in ("apiGroups", "resources", "verbs") for each in rule[field] if "*" in each], rule


def test_secrets_cannot_be_listed(base: dict[tuple[str, str], dict[str, Any]]) -> None:
    rules = base["ClusterRole", "shipkeeper-operator"]["rules"]
    verbs = {verb for rule in rules if "secrets" in rule["resources"] for verb in rule["verbs"]}
    assert verbs
    assert not verbs & {"list", "watch", "deletecollection"}
