"""The pod template of an application: secure by default, drained gracefully, probed as the spec says."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shipkeeper.resources.appdeployment import AppDeployment
from shipkeeper.resources.appdeployment_pod import MAIN_PORT_NAME, EnvironmentVariable, Probe, ReadinessProbe
from shipkeeper.resources.base import SecretKeyReference, parse_duration

from .appdeployment_names import (
    ACCEPTED_KEY,
    ACCEPTED_PREVIOUS_KEY,
    COMPONENT,
    CONTAINER_NAME,
    KEY_IDS_ANNOTATION,
    KIND,
    api_key_secret_name,
    pod_labels,
    service_account_name,
    volume_claim_name,
)
from .appdeployment_overlay import OverlayError, merged
from .metadata import child_labels

# Restricted Pod Security: any non-root user would do; this one is what most images are built for.
_USER: Final = 1000
_DATA_VOLUME: Final = "data"
_TMP_VOLUME: Final = "tmp"


@dataclass(frozen=True)
class AcceptedKeys:
    """Which generated API keys the pods accept, by their random names; never the keys."""

    current: str
    previous: str | None = None

    @property
    def ids(self) -> str:
        """Both names as one text."""
        return self.current if self.previous is None else f"{self.current},{self.previous}"


def build_pod_template(
    resource: AppDeployment, *, keys: AcceptedKeys | None, scrape_annotations: bool
) -> dict[str, Any]:
    """Return the pod template with the overlay merged in. Raises OverlayError where that is not possible.

    `keys`: the generated API keys to accept, where there are any yet.
    """
    template = {
        "metadata": {
            "labels": child_labels(KIND, resource.metadata, component=COMPONENT),
            "annotations": _annotations(resource, keys=keys, scrape_annotations=scrape_annotations),
        },
        "spec": _pod_spec(resource, keys=keys),
    }
    overlay = resource.spec.pod_template
    if overlay is None:
        return template
    result = merged(template, overlay.to_wire(), path="spec.podTemplate")
    if not pod_labels(resource).items() <= result["metadata"]["labels"].items():
        selecting = ", ".join(pod_labels(resource))
        raise OverlayError(f"spec.podTemplate.metadata.labels must not change {selecting}: pods are selected by it")
    return result


def template_hash(template: Mapping[str, Any]) -> str:
    """Return a short hash of a pod template as it was built."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def _annotations(resource: AppDeployment, *, keys: AcceptedKeys | None, scrape_annotations: bool) -> dict[str, str]:
    # `kubectl logs` and `kubectl exec` choose the application also where the overlay adds containers.
    annotations = {"kubectl.kubernetes.io/default-container": CONTAINER_NAME}
    if scrape_annotations:
        annotations |= {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(resource.spec.port),
            "prometheus.io/path": resource.spec.monitoring.path,
        }
    if keys is not None:
        annotations[KEY_IDS_ANNOTATION] = keys.ids
    return annotations


def _pod_spec(resource: AppDeployment, *, keys: AcceptedKeys | None) -> dict[str, Any]:
    spec = resource.spec
    volumes: list[dict[str, Any]] = [{"name": _TMP_VOLUME, "emptyDir": {}}]
    if claim := volume_claim_name(resource):
        volumes.append({"name": _DATA_VOLUME, "persistentVolumeClaim": {"claimName": claim}})
    pod: dict[str, Any] = {
        "serviceAccountName": service_account_name(resource),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _seconds(spec.drain.termination_grace_period),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(resource, keys=keys)],
        "volumes": volumes,
    }
    if spec.spread.topology_keys:
        pod["topologySpreadConstraints"] = [_spread(resource, key) for key in spec.spread.topology_keys]
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [secret.to_wire() for secret in spec.image_pull_secrets]
    return pod


def _container(resource: AppDeployment, *, keys: AcceptedKeys | None) -> dict[str, Any]:
    spec = resource.spec
    container: dict[str, Any] = {
        "name": CONTAINER_NAME,
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "env": _environment(resource, keys=keys),
        "ports": [
            {"name": MAIN_PORT_NAME, "containerPort": spec.port, "protocol": "TCP"},
            *({"name": port.name, "containerPort": port.port, "protocol": port.protocol} for port in spec.extra_ports),
        ],
        "resources": spec.resources.to_wire(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": _TMP_VOLUME, "mountPath": "/tmp"}],  # noqa: S108 # The pod's own emptyDir.
        **_probes(resource),
    }
    if spec.command:
        container["command"] = list(spec.command)
    if spec.args:
        container["args"] = list(spec.args)
    if delay := _seconds(spec.drain.delay):
        # Endpoints and proxies learn of the pod's end later than the pod does.
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": delay}}}
    if spec.database is not None and spec.database.sqlite is not None:
        container["volumeMounts"].append({"name": _DATA_VOLUME, "mountPath": spec.database.sqlite.mount_path})
    return container


def _environment(resource: AppDeployment, *, keys: AcceptedKeys | None) -> list[dict[str, Any]]:
    spec = resource.spec
    variables = [_variable(variable) for variable in spec.env]
    if spec.database is not None and spec.database.url_from is not None:
        variables.append(_from_secret(spec.database.variable, spec.database.url_from))
    if spec.database is not None and spec.database.sqlite is not None:
        sqlite = spec.database.sqlite
        url = f"{sqlite.driver}:///{sqlite.mount_path}/{sqlite.file_name}"
        variables.append({"name": spec.database.variable, "value": url})
    if spec.redis is not None:
        variables.append(_from_secret(spec.redis.variable, spec.redis.url_from))
    return [*variables, *_api_key(resource, keys=keys)]


def _api_key(resource: AppDeployment, *, keys: AcceptedKeys | None) -> list[dict[str, Any]]:
    api_key = resource.spec.api_key
    if api_key is None:
        return []
    if api_key.key_from is not None:
        return [_from_secret(api_key.variable, api_key.key_from)]
    secret = api_key_secret_name(resource)
    variables = [_from_secret(api_key.variable, SecretKeyReference(name=secret, key=ACCEPTED_KEY))]
    if keys is not None and keys.previous is not None:
        previous = SecretKeyReference(name=secret, key=ACCEPTED_PREVIOUS_KEY)
        variables.append(_from_secret(api_key.previous_variable, previous))
    return variables


def _from_secret(variable: str, reference: SecretKeyReference) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": reference.to_wire()}}


def _variable(variable: EnvironmentVariable) -> dict[str, Any]:
    source = variable.value_from
    if source is None:
        return {"name": variable.name, "value": variable.value}
    if source.field_path is not None:
        return {"name": variable.name, "valueFrom": {"fieldRef": {"fieldPath": source.field_path}}}
    return {"name": variable.name, "valueFrom": source.to_wire()}


def _probes(resource: AppDeployment) -> dict[str, Any]:
    probes = resource.spec.probes
    built = {
        "livenessProbe": _probe(probes.liveness),
        "readinessProbe": _probe(probes.readiness),
        "startupProbe": _probe(probes.startup),
    }
    return {name: probe for name, probe in built.items() if probe is not None}


def _probe(probe: Probe) -> dict[str, Any] | None:
    """Return the probe as the kubelet wants it. A liveness or startup probe has no success threshold but 1."""
    port = probe.port or MAIN_PORT_NAME
    match probe.type:
        case "HTTP":
            handler: dict[str, Any] = {"httpGet": {"path": probe.path, "port": port}}
        case "TCP":
            handler = {"tcpSocket": {"port": port}}
        case "Command":
            handler = {"exec": {"command": list(probe.command or ())}}
        case "None":
            return None
    return {
        **handler,
        "initialDelaySeconds": _seconds(probe.initial_delay),
        "periodSeconds": _seconds(probe.period),
        "timeoutSeconds": _seconds(probe.timeout),
        "failureThreshold": probe.failure_threshold,
        "successThreshold": probe.success_threshold if isinstance(probe, ReadinessProbe) else 1,
    }


def _spread(resource: AppDeployment, topology_key: str) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": topology_key,
        "whenUnsatisfiable": resource.spec.spread.when_unsatisfiable,
        "labelSelector": {"matchLabels": pod_labels(resource)},
        # Old pods of a rollout must not push the new ones onto one node.
        "matchLabelKeys": ["pod-template-hash"],
    }


def _seconds(duration: str) -> int:
    return int(parse_duration(duration).total_seconds())
