"""Argo CD and Flux see our resources as kstatus does: the shipped Lua runs in a real Lua 5.1, as in Argo CD."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime

from shipkeeper.resources import KINDS
from shipkeeper.resources.base import API_VERSION, GROUP

ROOT = Path(__file__).parents[3]
GITOPS = ROOT / "manifests" / "gitops"
CUSTOMIZATIONS = GITOPS / "argocd" / "resource_customizations" / GROUP
HEALTH_OF_KSTATUS = {
    "Current": "Healthy",
    "InProgress": "Progressing",
    "Failed": "Degraded",
    "Terminating": "Progressing",
}
# Where Argo CD has a word for what kstatus can only call under way or failed.
FINER = {"suspended": "Suspended", "awaiting-approval": "Suspended"}

CASES = [
    pytest.param(kind.kind, case, id=f"{kind.kind}-{Path(case['inputPath']).stem}")
    for kind in KINDS
    for case in yaml.safe_load((CUSTOMIZATIONS / kind.kind / "health_test.yaml").read_text())["tests"]
]


def health(kind: str, document: dict[str, Any]) -> dict[str, str]:
    """Run a kind's script on an object, as Argo CD does: the object is the global `obj`, the answer is returned."""
    lua = LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    lua.globals().obj = lua.table_from(document, recursive=True)
    return dict(lua.execute((CUSTOMIZATIONS / kind / "health.lua").read_text()))


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_health_is_as_the_case_says(kind: str, case: dict[str, Any]) -> None:
    document = yaml.safe_load((CUSTOMIZATIONS / kind / case["inputPath"]).read_text())
    assert document["kind"] == kind
    assert health(kind, document) == case["healthStatus"]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_health_agrees_with_kstatus(kind: str, case: dict[str, Any]) -> None:
    document = yaml.safe_load((CUSTOMIZATIONS / kind / case["inputPath"]).read_text())
    expected = FINER.get(Path(case["inputPath"]).stem, HEALTH_OF_KSTATUS[kstatus(document)])
    assert case["healthStatus"]["status"] == expected


def kstatus(document: dict[str, Any]) -> str:
    """Return what kstatus says of a custom resource: its tests, in its order."""
    metadata, status = document["metadata"], document.get("status", {})
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    # Without any condition kstatus calls an object current; Argo CD would go on before we have looked at it.
    return "Current" if conditions.get("Ready") == "True" else "InProgress"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_case_is_a_valid_object_and_every_object_a_case(kind: Any) -> None:
    folder = CUSTOMIZATIONS / kind.kind
    listed = {case["inputPath"] for case in yaml.safe_load((folder / "health_test.yaml").read_text())["tests"]}
    assert listed == {f"testdata/{path.name}" for path in (folder / "testdata").glob("*.yaml")}
    for path in listed:
        kind.parse(yaml.safe_load((folder / path).read_text()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_an_object_with_odd_parts_is_never_healthy(kind: Any) -> None:
    metadata = {"name": "odd", "generation": 1}
    statuses: list[dict[str, Any]] = [
        {},
        {"conditions": []},
        {"observedGeneration": 1},
        {"observedGeneration": 1, "conditions": []},
    ]
    for status in statuses:
        assert health(kind.kind, {"metadata": metadata, "status": status})["status"] == "Progressing"


def test_argo_cd_gets_the_script_of_every_kind() -> None:
    component = yaml.safe_load((GITOPS / "argocd" / "kustomization.yaml").read_text())
    (generator,) = component["configMapGenerator"]
    entries = dict(entry.split("=", 1) for entry in generator["files"])
    assert entries == {
        f"resource.customizations.health.{GROUP}_{kind.kind}": f"resource_customizations/{GROUP}/{kind.kind}/health.lua"
        for kind in KINDS
    }


def test_flux_checks_every_resource_of_the_sample() -> None:
    flux = yaml.safe_load((GITOPS / "flux" / "birthday.yaml").read_text())
    samples = [
        document
        for path in (ROOT / "manifests" / "samples").glob("*.yaml")
        for document in yaml.safe_load_all(path.read_text())
    ]
    ours = {(each["kind"], each["metadata"]["name"]) for each in samples if each.get("apiVersion") == API_VERSION}
    assert {(check["kind"], check["name"]) for check in flux["spec"]["healthChecks"]} == ours
    assert {check["apiVersion"] for check in flux["spec"]["healthChecks"]} == {API_VERSION}
    assert (ROOT / flux["spec"]["path"]).is_dir()


def test_flux_installs_the_operator_first() -> None:
    documents = list(yaml.safe_load_all((GITOPS / "flux" / "shipkeeper.yaml").read_text()))
    names = {document["metadata"]["name"] for document in documents if document["kind"] == "Kustomization"}
    birthday = yaml.safe_load((GITOPS / "flux" / "birthday.yaml").read_text())
    assert {each["name"] for each in birthday["spec"]["dependsOn"]} == names
    assert all((ROOT / document["spec"]["path"]).is_dir() for document in documents if "path" in document["spec"])
