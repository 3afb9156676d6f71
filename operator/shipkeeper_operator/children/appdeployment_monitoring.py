"""How Prometheus finds an application and what it alerts about, for clusters that run the Prometheus operator."""

from collections.abc import Sequence
from typing import Any, Final

from shipkeeper.resources.appdeployment import AppDeployment
from shipkeeper.resources.appdeployment_pod import MAIN_PORT_NAME

from .appdeployment_names import app_metadata, pod_labels
from .metadata import Manifest

SERVICE_MONITOR: Final = "ServiceMonitor"
PROMETHEUS_RULE: Final = "PrometheusRule"
_API_VERSION: Final = "monitoring.coreos.com/v1"


def build_monitoring(resource: AppDeployment, *, served_kinds: frozenset[str]) -> tuple[Manifest, ...]:
    """Return the ServiceMonitor and PrometheusRule, as far as the cluster knows those kinds and they are declared."""
    monitoring = resource.spec.monitoring
    if monitoring.mode != "Auto":
        return ()
    built: list[Manifest] = []
    if SERVICE_MONITOR in served_kinds:
        built.append(_service_monitor(resource))
    if PROMETHEUS_RULE in served_kinds and monitoring.alerts == "Enabled":
        built.append(_prometheus_rule(resource))
    return tuple(built)


def needs_scrape_annotations(resource: AppDeployment, *, served_kinds: frozenset[str]) -> bool:
    """Whether the pods themselves must tell Prometheus where their metrics are."""
    mode = resource.spec.monitoring.mode
    return mode == "Annotations" or (mode == "Auto" and SERVICE_MONITOR not in served_kinds)


def _service_monitor(resource: AppDeployment) -> Manifest:
    monitoring = resource.spec.monitoring
    return {
        "apiVersion": _API_VERSION,
        "kind": SERVICE_MONITOR,
        "metadata": _metadata(resource),
        "spec": {
            "selector": {"matchLabels": pod_labels(resource)},
            "endpoints": [{"port": MAIN_PORT_NAME, "path": monitoring.path, "interval": monitoring.interval}],
        },
    }


def _prometheus_rule(resource: AppDeployment) -> Manifest:
    return {
        "apiVersion": _API_VERSION,
        "kind": PROMETHEUS_RULE,
        "metadata": _metadata(resource),
        "spec": {"groups": [{"name": f"{resource.metadata.name}.shipkeeper", "rules": list(alert_rules(resource))}]},
    }


def alert_rules(resource: AppDeployment) -> Sequence[dict[str, Any]]:
    """Return the alerts, in Prometheus' own form (`promtool check rules` reads them as a group's rules)."""
    app = resource.metadata
    # An alert's expression loses the labels of what it is about: they are said here, so that it can be routed.
    about = {"namespace": app.namespace, "service": app.name}
    up = f'up{{namespace="{app.namespace}",service="{app.name}"}}'
    requests = f'http_requests_total{{namespace="{app.namespace}",service="{app.name}"'
    return (
        {
            "alert": "ApplicationDown",
            "expr": f"absent({up} == 1)",
            "for": "5m",
            "labels": {**about, "severity": "critical"},
            "annotations": {
                "summary": f"No pod of {app.namespace}/{app.name} answers Prometheus",
                "action": f"kubectl -n {app.namespace} describe appdep {app.name}",
            },
        },
        {
            "alert": "ApplicationErrorRate",
            "expr": f'sum(rate({requests},status=~"5.."}}[5m])) / sum(rate({requests}}}[5m])) > 0.05',
            "for": "10m",
            "labels": {**about, "severity": "warning"},
            "annotations": {
                "summary": f"More than 5 % of the requests to {app.namespace}/{app.name} fail",
                "action": f"kubectl -n {app.namespace} logs deploy/{app.name}",
            },
        },
    )


def _metadata(resource: AppDeployment) -> dict[str, Any]:
    metadata = app_metadata(resource)
    # The user's labels come second but ours are not to be lost: they say whose object it is.
    return {**metadata, "labels": {**resource.spec.monitoring.labels, **metadata["labels"]}}
