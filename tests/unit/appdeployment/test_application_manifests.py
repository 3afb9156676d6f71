"""What is built for an application: the sample's objects as golden files, and each variation of the spec."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shipkeeper.resources.appdeployment import KIND, AppDeployment
from shipkeeper_operator.children.appdeployment import build_companions, build_deployment, build_volume_claim
from shipkeeper_operator.children.appdeployment_monitoring import (
    PROMETHEUS_RULE,
    SERVICE_MONITOR,
    build_monitoring,
    needs_scrape_annotations,
)
from shipkeeper_operator.children.appdeployment_names import is_ours, volume_claim_name
from shipkeeper_operator.children.appdeployment_overlay import OverlayError
from shipkeeper_operator.children.appdeployment_pod import AcceptedKeys, build_pod_template, template_hash
from support.applications import application

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden" / "sample.yaml"


def sample() -> AppDeployment:
    manifest = yaml.safe_load((ROOT / "manifests/samples/appdeployment.yaml").read_text())
    manifest["metadata"]["uid"] = "00000000-0000-0000-0000-000000000001"
    return KIND.parse(manifest)


def test_the_samples_objects_are_as_reviewed() -> None:
    resource = sample()
    template = build_pod_template(resource, keys=AcceptedKeys("k1"), scrape_annotations=True)
    deployment = build_deployment(resource, template=template, released="0123456789abcdef")
    built = [*build_companions(resource), deployment]
    assert built == list(yaml.safe_load_all(GOLDEN.read_text()))


def pod_template(resource: AppDeployment, **options: Any) -> dict[str, Any]:
    return build_pod_template(resource, **{"keys": None, "scrape_annotations": False, **options})


def container(resource: AppDeployment, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod_template(resource, **options)["spec"]["containers"][0]
    return found


def environment(resource: AppDeployment, **options: Any) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(resource, **options)["env"]}


def deployment(resource: AppDeployment) -> dict[str, Any]:
    return dict(build_deployment(resource, template=pod_template(resource), released="hash"))


def companion(resource: AppDeployment, kind: str) -> dict[str, Any] | None:
    return next((dict(each) for each in build_companions(resource) if each["kind"] == kind), None)


def test_environment_of_every_source() -> None:
    resource = application(
        env=[
            {"name": "PLAIN", "value": ""},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "POD", "valueFrom": {"fieldPath": "metadata.name"}},
        ],
        database={"urlFrom": {"name": "d", "key": "url"}, "variable": "DSN"},
        redis={"urlFrom": {"name": "r", "key": "url"}},
    )
    assert environment(resource) == {
        "PLAIN": "",
        "SECRET": {"secretKeyRef": {"name": "s", "key": "k"}},
        "MAP": {"configMapKeyRef": {"name": "m", "key": "k"}},
        "POD": {"fieldRef": {"fieldPath": "metadata.name"}},
        "DSN": {"secretKeyRef": {"name": "d", "key": "url"}},
        "REDIS_URL": {"secretKeyRef": {"name": "r", "key": "url"}},
    }


def test_the_api_key_comes_from_the_generated_or_the_named_secret() -> None:
    generated = application(apiKey={"variable": "KEY", "previousVariable": "OLD_KEY"})
    accepted = {"secretKeyRef": {"name": "app-api-key", "key": "accepted"}}
    previous = {"secretKeyRef": {"name": "app-api-key", "key": "accepted-previous"}}
    assert environment(generated, keys=AcceptedKeys("k1")) == {"KEY": accepted}
    assert environment(generated, keys=AcceptedKeys("k2", "k1")) == {"KEY": accepted, "OLD_KEY": previous}
    template = pod_template(generated, keys=AcceptedKeys("k2", "k1"))
    assert template["metadata"]["annotations"]["shipkeeper.dev/api-key-ids"] == "k2,k1"
    named = application(apiKey={"keyFrom": {"name": "mine", "key": "key"}})
    assert environment(named) == {"API_KEY": {"secretKeyRef": {"name": "mine", "key": "key"}}}


def test_a_sqlite_file_means_one_writer_and_a_claim_without_an_owner() -> None:
    resource = application(
        database={"sqlite": {"size": "1Gi", "storageClassName": "fast", "mountPath": "/var/db", "fileName": "x.db"}}
    )
    assert environment(resource) == {"DATABASE_URL": "sqlite+aiosqlite:////var/db/x.db"}
    assert {"name": "data", "mountPath": "/var/db"} in container(resource)["volumeMounts"]
    volumes = pod_template(resource)["spec"]["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "app-data"}} in volumes
    built = deployment(resource)["spec"]
    assert built["strategy"] == {"type": "Recreate"}
    assert built["progressDeadlineSeconds"] == 600 + 60
    claim = build_volume_claim(resource)
    assert claim is not None
    assert "ownerReferences" not in claim["metadata"]
    assert is_ours(claim["metadata"]["labels"], resource)
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fast",
    }


def test_an_existing_claim_is_used_and_none_is_made() -> None:
    resource = application(database={"sqlite": {"claimName": "old"}})
    assert build_volume_claim(resource) is None
    assert volume_claim_name(resource) == "old"
    assert build_volume_claim(application()) is None
    assert volume_claim_name(application(database={"urlFrom": {"name": "d", "key": "u"}})) is None


def test_probes_of_every_type() -> None:
    resource = application(
        probes={
            "liveness": {"type": "TCP", "port": 9000, "initialDelay": "1m"},
            "readiness": {"type": "Command", "command": ["check"], "successThreshold": 2, "timeout": "7s"},
            "startup": {"type": "None"},
        }
    )
    built = container(resource)
    assert built["livenessProbe"]["tcpSocket"] == {"port": 9000}
    assert (built["livenessProbe"]["initialDelaySeconds"], built["livenessProbe"]["successThreshold"]) == (60, 1)
    assert built["readinessProbe"]["exec"] == {"command": ["check"]}
    assert (built["readinessProbe"]["timeoutSeconds"], built["readinessProbe"]["successThreshold"]) == (7, 2)
    assert "startupProbe" not in built
    assert container(application())["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}


def test_command_arguments_drain_and_pull_secrets() -> None:
    resource = application(
        command=["run"], args=["--fast"], drain={"delay": "0s", "terminationGracePeriod": "50m"},
        imagePullSecrets=[{"name": "registry"}], spread={"topologyKeys": []}, serviceAccountName="mine",
    )  # fmt: skip
    built = container(resource)
    assert (built["command"], built["args"]) == (["run"], ["--fast"])
    assert "lifecycle" not in built
    spec = pod_template(resource)["spec"]
    assert spec["terminationGracePeriodSeconds"] == 3000
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert "topologySpreadConstraints" not in spec
    assert spec["serviceAccountName"] == "mine"
    assert companion(resource, "ServiceAccount") is None
    assert container(application())["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}


def test_a_budget_needs_a_second_replica() -> None:
    assert companion(application(replicas=1), "PodDisruptionBudget") is None
    assert companion(application(replicas=2, disruptionBudget={"mode": "Disabled"}), "PodDisruptionBudget") is None
    budget = companion(application(replicas=2, disruptionBudget={"maxUnavailable": "50%"}), "PodDisruptionBudget")
    assert budget is not None
    assert budget["spec"]["maxUnavailable"] == "50%"


def test_network_policy_follows_service_and_spec() -> None:
    assert companion(application(networkPolicy={"mode": "Disabled"}), "NetworkPolicy") is None
    inside = companion(application(networkPolicy={"allowedNamespaces": ["ingress"], "egress": []}), "NetworkPolicy")
    assert inside is not None
    peers = inside["spec"]["ingress"][0]["from"]
    assert peers[1]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress"}
    assert inside["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert inside["spec"]["egress"] == [{"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}]
    outside = companion(application(service={"type": "LoadBalancer"}), "NetworkPolicy")
    assert outside is not None
    assert "from" not in outside["spec"]["ingress"][0]


def test_service_with_more_ports_and_annotations() -> None:
    resource = application(
        port=8080, service={"port": 81, "annotations": {"lb": "internal"}},
        extraPorts=[{"name": "dns", "port": 53, "protocol": "UDP"}],
    )  # fmt: skip
    service = companion(resource, "Service")
    assert service is not None
    assert service["metadata"]["annotations"] == {"lb": "internal"}
    assert service["spec"]["ports"] == [
        {"name": "http", "port": 81, "targetPort": "http", "protocol": "TCP"},
        {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"},
    ]
    ports = container(resource)["ports"]
    assert ports[0] == {"name": "http", "containerPort": 8080, "protocol": "TCP"}
    assert companion(resource, "NetworkPolicy") is not None


def test_rollout_settings() -> None:
    built = deployment(application(rollout={"maxSurge": "50%", "minReady": "10s", "progressDeadline": "20s"}))["spec"]
    assert built["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "50%"}
    assert built["minReadySeconds"] < built["progressDeadlineSeconds"]


def test_the_overlay_changes_what_the_spec_does_not_name() -> None:
    resource = application(
        podTemplate={
            "metadata": {"labels": {"team": "shop"}, "annotations": {"note": "x"}},
            "spec": {
                "priorityClassName": "high",
                "containers": [
                    {"name": "app", "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]},
                    {"name": "sidecar", "image": "sidecar:1"},
                ],
                "volumes": [{"name": "cache", "emptyDir": {}}],
            },
        }
    )
    template = pod_template(resource)
    assert template["metadata"]["labels"]["team"] == "shop"
    assert template["metadata"]["labels"]["shipkeeper.dev/appdeployment"] == "app"
    assert template["metadata"]["annotations"]["note"] == "x"
    assert template["spec"]["priorityClassName"] == "high"
    assert [each["name"] for each in template["spec"]["containers"]] == ["app", "sidecar"]
    assert [each["mountPath"] for each in template["spec"]["containers"][0]["volumeMounts"]] == ["/tmp", "/cache"]
    assert template["spec"]["containers"][0]["image"] == "registry.test/app:1"


def test_the_overlay_cannot_take_the_pods_from_their_service() -> None:
    resource = application(podTemplate={"metadata": {"labels": {"shipkeeper.dev/appdeployment": "other"}}})
    with pytest.raises(OverlayError, match=r"must not change shipkeeper\.dev/appdeployment"):
        pod_template(resource)


def test_a_template_has_one_hash_per_content() -> None:
    first, same = pod_template(application(replicas=1)), pod_template(application(replicas=3))
    assert template_hash(first) == template_hash(same)
    assert template_hash(first) != template_hash(pod_template(application(args=["x"])))


def test_monitoring_by_what_the_cluster_knows() -> None:
    both = frozenset({SERVICE_MONITOR, PROMETHEUS_RULE})
    resource = application(monitoring={"labels": {"release": "prometheus", "app.kubernetes.io/name": "other"}})
    monitor, rule = build_monitoring(resource, served_kinds=both)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["metadata"]["labels"]["app.kubernetes.io/name"] == "app"
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    assert {each["alert"] for each in rule["spec"]["groups"][0]["rules"]} == {
        "ApplicationDown",
        "ApplicationErrorRate",
    }
    assert not needs_scrape_annotations(resource, served_kinds=both)
    assert needs_scrape_annotations(resource, served_kinds=frozenset())
    assert build_monitoring(resource, served_kinds=frozenset()) == ()
    quiet = application(monitoring={"alerts": "Disabled"})
    assert [each["kind"] for each in build_monitoring(quiet, served_kinds=both)] == [SERVICE_MONITOR]
    annotated = application(monitoring={"mode": "Annotations"})
    assert build_monitoring(annotated, served_kinds=both) == ()
    assert needs_scrape_annotations(annotated, served_kinds=both)
    disabled = application(monitoring={"mode": "Disabled"})
    assert not needs_scrape_annotations(disabled, served_kinds=frozenset())
