"""The CRDs as a real API server serves them: established, kept whole, shown, scaled, explained, shared by managers."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytz
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client, config

from demo.kubectl import Kubectl
from shipkeeper.resources import KINDS
from shipkeeper.resources.base import API_VERSION, GROUP, VERSION
from shipkeeper.resources.crd import resource_schema
from shipkeeper.resources.kinds import Kind
from shipkeeper.resources.schema import walk
from support.apiserver import REPOSITORY, ApiServer
from support.dry_run import Admission
from support.paths import ABSENT, changed
from support.structural import complete_objects, valid_specs

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
SAMPLES = [
    document
    for path in sorted((REPOSITORY / "manifests" / "samples").rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if document and document.get("apiVersion") == API_VERSION
]


def kind_named(name: str) -> Kind:
    (found,) = [kind for kind in KINDS if kind.kind == name]
    return found


@every_kind
def test_a_crd_is_established_and_structural(kubectl: Kubectl, kind: Kind) -> None:
    crd = json.loads(kubectl.run("get", "customresourcedefinition", f"{kind.plural}.{GROUP}", "--output", "json"))
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


@every_kind
def test_what_is_stored_is_what_was_sent(admission: Admission, kind: Kind) -> None:
    """Nothing is pruned from an object that holds every field; the status is written apart, as the operator does."""
    for index, document in enumerate(complete_objects(kind)):
        sent = changed(document, ("metadata.name", f"stored-whole-{index}"))
        stored = admission.create(kind, sent, dry_run=False)
        assert_kept(sent["spec"], stored["spec"])
        if "status" in sent:
            written = admission.write_status(kind, sent["metadata"]["name"], sent["status"])
            assert written["status"] == sent["status"]


@every_kind
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_random_valid_spec_is_accepted_and_kept(admission: Admission, kind: Kind, data: st.DataObject) -> None:
    """Model and API server agree: what the one accepts, the other takes, defaults alike and stores unchanged."""
    drawn = data.draw(valid_specs(kind.spec))
    manifest = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": {"name": "random"}, "spec": drawn}
    stored = admission.create(kind, manifest)
    assert_kept(drawn, stored["spec"])
    assert kind.spec.model_validate(stored["spec"]) == kind.spec.model_validate(drawn)


def assert_kept(sent: Any, stored: Any) -> None:
    """Fail unless all that was sent is there; the API server may have added defaults."""
    if isinstance(sent, dict):
        assert set(sent) <= set(stored), (sent, stored)
        for key, value in sent.items():
            assert_kept(value, stored[key])
    elif isinstance(sent, list):
        assert len(sent) == len(stored)
        for one, other in zip(sent, stored, strict=True):
            assert_kept(one, other)
    else:
        assert sent == stored


@every_kind
def test_a_minimal_object_is_defaulted_as_the_model_defaults_it(admission: Admission, kind: Kind) -> None:
    minimal: Any = {
        "AppDeployment": {"image": "app:1"},
        "RateLimitPolicy": {
            "store": {"urlFrom": {"name": "redis", "key": "url"}},
            "limits": [{"name": "day", "amount": 15, "period": "Day"}],
        },
        "MigrationJob": {
            "database": {"urlFrom": {"name": "database", "key": "url"}},
            "steps": [{"name": "clean", "sql": {"statement": "SELECT 1", "unless": "SELECT 1"}}],
        },
    }[kind.kind]
    manifest = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": {"name": "minimal"}, "spec": minimal}
    stored = admission.create(kind, manifest)
    by_model = kind.spec.model_validate(minimal)
    assert kind.spec.model_validate(stored["spec"]) == by_model
    assert without_empty(by_model.to_wire()) == stored["spec"]


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ({}, [])}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


def test_there_are_samples_of_every_kind() -> None:
    assert {document["kind"] for document in SAMPLES} == {kind.kind for kind in KINDS}


@pytest.mark.parametrize("document", SAMPLES, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}")
def test_every_sample_is_valid(admission: Admission, document: dict[str, Any]) -> None:
    kind = kind_named(document["kind"])
    kind.parse(document)
    admission.create(kind, changed(document, ("metadata.namespace", admission.namespace)))


def test_the_api_server_knows_every_time_zone_that_the_models_know(admission: Admission) -> None:
    """All of them at once, in the mappings of a hundred columns a step."""
    zones = sorted(pytz.all_timezones)
    document = complete_objects(kind_named("MigrationJob"))[0]
    steps = [
        {
            "name": f"step-{first}",
            "consolidate": {
                "source": "messages",
                "target": "interactions",
                "key": ["id"],
                "identity": [{"column": "legacy_id", "source": "id"}],
                "columns": [
                    {"name": f"column_{index}", "timestamp": {"column": "sent_at", "naiveZone": zone}}
                    for index, zone in enumerate(zones[first : first + 100])
                ],
            },
        }
        for first in range(0, len(zones), 100)
    ]
    stored = admission.create(kind_named("MigrationJob"), changed(document, ("spec.steps", steps)))
    columns = [column for step in stored["spec"]["steps"] for column in step["consolidate"]["columns"]]
    assert [column["timestamp"]["naiveZone"] for column in columns] == zones


@pytest.fixture(scope="module")
def shown(api_server: ApiServer) -> str:
    """A namespace in which the complete objects are stored, status and all."""
    namespace = api_server.create_namespace("shown")
    admission = Admission(api_server.kubeconfig, namespace)
    for kind in KINDS:
        document = complete_objects(kind)[0]
        admission.create(kind, document, dry_run=False)
        admission.write_status(kind, document["metadata"]["name"], document["status"])
    return namespace


@every_kind
def test_every_printer_column_shows_something(api_server: ApiServer, shown: str, kind: Kind) -> None:
    api = config.new_client_from_config(config_file=str(api_server.kubeconfig))
    address = f"{api.configuration.host}/apis/{GROUP}/{VERSION}/namespaces/{shown}/{kind.plural}"
    accepted = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    table = json.loads(api.rest_client.request("GET", address, headers=accepted).response.data)
    columns = [column["name"] for column in table["columnDefinitions"]]
    assert columns == ["Name", *(column.name for column in kind.columns)]
    (row,) = table["rows"]
    assert [name for name, cell in zip(columns, row["cells"], strict=True) if cell in (None, "", "<unknown>")] == []


def test_all_kinds_are_in_one_category(kubectl: Kubectl, shown: str, tmp_path: Path) -> None:
    # kubectl keeps what it knew of a server before our CRDs were there, and asks anew for kinds, not for categories.
    fresh = f"--cache-dir={tmp_path}"
    names = kubectl.run("get", "shipkeeper", fresh, "--namespace", shown, "--output", "name").split()
    assert sorted(names) == sorted(f"{kind.singular}.{GROUP}/every-field" for kind in KINDS)


@every_kind
def test_the_short_names_work(kubectl: Kubectl, shown: str, kind: Kind) -> None:
    for short_name in kind.short_names:
        name = kubectl.run("get", short_name, "--namespace", shown, "--output", "name").strip()
        assert name == f"{kind.singular}.{GROUP}/every-field"


def test_an_app_is_scaled_by_kubectl(kubectl: Kubectl, api_server: ApiServer, shown: str) -> None:
    kubectl.run("scale", "appdep", "every-field", "--namespace", shown, "--replicas", "5")
    found = kubectl.get("appdeployment", "every-field", namespace=shown)
    assert found is not None
    assert found["spec"]["replicas"] == 5
    api = client.CustomObjectsApi(config.new_client_from_config(config_file=str(api_server.kubeconfig)))
    scale: Any = api.get_namespaced_custom_object_scale(GROUP, VERSION, shown, "appdeployments", "every-field")
    assert scale["spec"]["replicas"] == 5
    assert scale["status"] == {"replicas": 3, "selector": "app.kubernetes.io/instance=every-field"}


@every_kind
def test_kubectl_explains_every_field(kubectl: Kubectl, kind: Kind) -> None:
    explained = " ".join(
        kubectl.run("explain", kind.singular, "--recursive", "--output", "plaintext-openapiv2").split()
    )
    assert kind.description.split(".")[0] in explained
    in_full = " ".join(kubectl.run("explain", f"{kind.singular}.spec").split())
    for name, node in resource_schema(kind)["properties"]["spec"]["properties"].items():
        assert name in in_full
        assert " ".join(node["description"].split()) in in_full
    for path, _ in walk(resource_schema(kind)):
        field = path.rsplit(".", 1)[-1].removesuffix("{}").removesuffix("[]").removesuffix("[]")
        assert field in explained, path


def test_conditions_of_two_managers_live_in_one_list(kubectl: Kubectl, namespace: str) -> None:
    """Server-side apply merges conditions by type: neither manager removes what the other says."""
    document = complete_objects(kind_named("RateLimitPolicy"))[0]
    kubectl.apply(changed(document, ("metadata.namespace", namespace), ("status", ABSENT)))

    def apply_condition(manager: str, type_: str, status: str) -> None:
        condition = {
            "type": type_,
            "status": status,
            "lastTransitionTime": "2026-03-01T09:30:00Z",
            "reason": "Tested",
            "message": "Tested.",
        }
        applied = {
            "apiVersion": API_VERSION,
            "kind": "RateLimitPolicy",
            "metadata": {"name": "every-field", "namespace": namespace},
            "status": {"conditions": [condition]},
        }
        kubectl.run(
            *("apply", "--server-side", "--subresource=status", "--field-manager", manager, "--filename", "-"),
            stdin=json.dumps(applied),
        )

    apply_condition("one", "Ready", "False")
    apply_condition("two", "Audited", "True")
    apply_condition("one", "Ready", "True")

    def conditions() -> dict[str, str]:
        found = kubectl.get("ratelimitpolicy", "every-field", namespace=namespace)
        assert found is not None
        return {each["type"]: each["status"] for each in found["status"]["conditions"]}

    assert conditions() == {"Ready": "True", "Audited": "True"}


def test_steps_stay_in_the_order_in_which_they_are_applied(kubectl: Kubectl, namespace: str) -> None:
    """They are merged by name and run in order: moving one, or putting one between, must move it on the server too."""

    def applied(*names: str) -> list[str]:
        steps = [{"name": name, "sql": {"statement": "SELECT 1", "unless": "SELECT 1"}} for name in names]
        manifest = {
            "apiVersion": API_VERSION,
            "kind": "MigrationJob",
            "metadata": {"name": "ordered", "namespace": namespace},
            "spec": {"database": {"urlFrom": {"name": "database", "key": "url"}}, "steps": steps},
        }
        kubectl.apply(manifest)
        found = kubectl.get("migrationjob", "ordered", namespace=namespace)
        assert found is not None
        return [step["name"] for step in found["spec"]["steps"]]

    for order in ("ab", "ba", "acb", "bcad", "x", "bx"):
        assert applied(*order) == list(order)


def test_a_status_sent_with_a_spec_is_not_taken(admission: Admission) -> None:
    """The status subresource: who may write specs cannot pretend that they are fulfilled."""
    kind = kind_named("RateLimitPolicy")
    assert "status" not in admission.create(kind, complete_objects(kind)[0])
