"""The objects of an application beside its pods: Deployment, Service, account, disruption budget, network policy."""

from collections.abc import Mapping
from typing import Any, Final

from shipkeeper.resources.appdeployment import AppDeployment
from shipkeeper.resources.appdeployment_pod import MAIN_PORT_NAME
from shipkeeper.resources.base import parse_duration

from .appdeployment_monitoring import PROMETHEUS_RULE, SERVICE_MONITOR
from .appdeployment_names import (
    RELEASED_TEMPLATE_ANNOTATION,
    app_metadata,
    pod_labels,
    unowned_metadata,
    volume_claim_name,
)
from .metadata import Manifest

CHILD_KINDS: Final = (
    "Deployment",
    "Service",
    "ServiceAccount",
    "PodDisruptionBudget",
    "NetworkPolicy",
    SERVICE_MONITOR,
    PROMETHEUS_RULE,
)
"""What an application owns and what is deleted when it is no longer declared."""

_NAMESPACE_NAME_LABEL: Final = "kubernetes.io/metadata.name"
_REVISIONS_KEPT: Final = 5


def build_companions(resource: AppDeployment) -> tuple[Manifest, ...]:
    """Return what stands whether or not pods may run yet."""
    companions: list[Manifest] = [_service(resource)]
    if resource.spec.service_account_name is None:
        companions.append(_service_account(resource))
    if resource.spec.disruption_budget.mode == "Auto" and resource.spec.replicas > 1:
        companions.append(_disruption_budget(resource))
    if resource.spec.network_policy.mode == "Auto":
        companions.append(_network_policy(resource))
    return tuple(companions)


def build_deployment(resource: AppDeployment, *, template: Mapping[str, Any], released: str) -> Manifest:
    """Return the Deployment with this pod template; `released` is the hash of the template that was released."""
    spec, metadata = resource.spec, app_metadata(resource)
    deadline = parse_duration(spec.rollout.progress_deadline)
    if _has_one_writer(resource):
        # The new pod waits for the old one's end, which is no lack of progress.
        deadline += parse_duration(spec.drain.termination_grace_period)
    min_ready = parse_duration(spec.rollout.min_ready)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata, "annotations": {RELEASED_TEMPLATE_ANNOTATION: released}},
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": _REVISIONS_KEPT,
            "minReadySeconds": int(min_ready.total_seconds()),
            # The API server wants it above minReadySeconds.
            "progressDeadlineSeconds": int((deadline + min_ready).total_seconds()),
            "strategy": _strategy(resource),
            "selector": {"matchLabels": pod_labels(resource)},
            "template": template,
        },
    }


def _has_one_writer(resource: AppDeployment) -> bool:
    return resource.spec.database is not None and resource.spec.database.sqlite is not None


def _strategy(resource: AppDeployment) -> dict[str, Any]:
    if _has_one_writer(resource):
        return {"type": "Recreate"}
    surge = resource.spec.rollout.max_surge
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": surge}}


def _service(resource: AppDeployment) -> Manifest:
    spec, metadata = resource.spec, app_metadata(resource)
    if spec.service.annotations:
        metadata["annotations"] = dict(spec.service.annotations)
    main = {"name": MAIN_PORT_NAME, "port": spec.service.port, "targetPort": MAIN_PORT_NAME, "protocol": "TCP"}
    extra = [
        {"name": port.name, "port": port.port, "targetPort": port.name, "protocol": port.protocol}
        for port in spec.extra_ports
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": spec.service.type, "selector": pod_labels(resource), "ports": [main, *extra]},
    }


def _service_account(resource: AppDeployment) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": app_metadata(resource),
        "automountServiceAccountToken": False,
    }


def _disruption_budget(resource: AppDeployment) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": app_metadata(resource),
        "spec": {
            "maxUnavailable": resource.spec.disruption_budget.max_unavailable,
            "selector": {"matchLabels": pod_labels(resource)},
            # A pod that does not serve anyway must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _network_policy(resource: AppDeployment) -> Manifest:
    policy = resource.spec.network_policy
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": pod_labels(resource)},
        "policyTypes": ["Ingress"],
        "ingress": [_ingress(resource)],
    }
    if policy.egress is not None:
        dns = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
        spec["policyTypes"] = ["Ingress", "Egress"]
        spec["egress"] = [dns, *policy.egress]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": app_metadata(resource),
        "spec": spec,
    }


def _ingress(resource: AppDeployment) -> dict[str, Any]:
    spec = resource.spec
    extra = [{"protocol": port.protocol, "port": port.port} for port in spec.extra_ports]
    ports = [{"protocol": "TCP", "port": spec.port}, *extra]
    if spec.service.type != "ClusterIP":
        return {"ports": ports}  # A Service that the outside reaches would otherwise lead nowhere.
    namespaces = [
        {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME_LABEL: namespace}}}
        for namespace in spec.network_policy.allowed_namespaces
    ]
    return {"ports": ports, "from": [{"podSelector": {}}, *namespaces]}


def build_volume_claim(resource: AppDeployment) -> Manifest | None:
    """Return the volume claim of the SQLite file, or None where none is to be made.

    It has no owner: data must not go with the object that describes the application.
    """
    database, name = resource.spec.database, volume_claim_name(resource)
    if database is None or database.sqlite is None or database.sqlite.size is None or name is None:
        return None
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": database.sqlite.size}},
    }
    if database.sqlite.storage_class_name is not None:
        spec["storageClassName"] = database.sqlite.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": unowned_metadata(resource, name=name),
        "spec": spec,
    }
