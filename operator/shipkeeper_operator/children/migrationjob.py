"""The objects that one MigrationJob owns: the Job that works, what it may do, what it is told and where it reports."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

import yaml

from shipkeeper.migrations import exitcodes
from shipkeeper.resources.base import API_VERSION, GROUP
from shipkeeper.resources.migrationjob import Database, MigrationJob

from .metadata import Manifest, child_labels, child_metadata

KIND: Final = "MigrationJob"
COMPONENT: Final = "migration"
APPROVED_PLAN_ANNOTATION: Final = f"{GROUP}/approved-plan"
REPORT_KEY: Final = "report.json"

_FILE_FOLDER: Final = "/etc/shipkeeper/migration"
_FILE_NAME: Final = "migration.yaml"
# These end or begin a Job; every other change needs another one, whose worker knows it.
_WITHOUT_EFFECT_ON_WORK: Final = ("suspend", "cancel")
# A batch in flight is finished before the worker goes; a longer statement is cancelled and redone.
_GRACE_SECONDS: Final = 120


@dataclass(frozen=True)
class WorkerSettings:
    """What the operator's own installation decides about workers."""

    image: str
    """Image that holds `shipkeeper-worker`: the operator's own."""


def worker_name(resource: MigrationJob) -> str:
    """Return the name of the ServiceAccount, Role and RoleBinding of the worker."""
    return f"{resource.metadata.name}-worker"


def report_name(resource: MigrationJob) -> str:
    """Return the name of the ConfigMap in which the worker reports."""
    return f"{resource.metadata.name}-report"


def approved_plan(resource: MigrationJob) -> str | None:
    """Return the plan hash that a person approved, in the spec or (without touching the spec) in the annotation."""
    return resource.spec.approval.plan_hash or resource.metadata.annotations.get(APPROVED_PLAN_ANNOTATION)


def job_name(resource: MigrationJob, *, attempt: int) -> str:
    """Return the one name of the Job of this work and attempt: to create it twice is a conflict, not two Jobs."""
    # Without defaults: a field that a later version adds must not start the finished work of this one again.
    declared = resource.spec.model_dump(mode="json", exclude_defaults=True, exclude=set(_WITHOUT_EFFECT_ON_WORK))
    identity = json.dumps([resource.metadata.uid, attempt, approved_plan(resource), declared], sort_keys=True)
    return f"{resource.metadata.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def build_companions(resource: MigrationJob) -> tuple[Manifest, ...]:
    """Return the report and the right to write it, which stay as long as the resource."""
    return (_report(resource), _service_account(resource), _role(resource), _role_binding(resource))


def build_file(resource: MigrationJob, *, name: str) -> Manifest:
    """Return the ConfigMap that tells the worker of the Job of that name what to do."""
    identity = {
        "name": resource.metadata.name,
        "namespace": resource.metadata.namespace,
        "uid": resource.metadata.uid,
    }
    spec = {name: value for name, value in _told(resource).items() if name not in _WITHOUT_EFFECT_ON_WORK}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": identity, "spec": spec}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(KIND, resource.metadata, name=name, component=COMPONENT),
        "immutable": True,
        "data": {_FILE_NAME: yaml.safe_dump(document, sort_keys=False, allow_unicode=True)},
    }


def build_job(resource: MigrationJob, *, name: str, settings: WorkerSettings) -> Manifest:
    """Return the Job of that name."""
    worker = resource.spec.worker
    spec: dict[str, Any] = {
        "backoffLimit": worker.backoff_limit,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "worker",
                        "operator": "In",
                        "values": [exitcodes.USER_ERROR],
                    },
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {"labels": child_labels(KIND, resource.metadata, component=COMPONENT)},
            "spec": _pod(resource, name=name, settings=settings),
        },
    }
    if worker.active_deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = worker.active_deadline_seconds
    if worker.ttl_seconds_after_finished is not None:
        spec["ttlSecondsAfterFinished"] = worker.ttl_seconds_after_finished
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(KIND, resource.metadata, name=name, component=COMPONENT),
        "spec": spec,
    }


def _told(resource: MigrationJob) -> dict[str, Any]:
    spec = resource.spec.to_wire()
    if (approved := approved_plan(resource)) is not None:
        spec["approval"] = {**spec.get("approval", {}), "planHash": approved}
    return spec


def _report(resource: MigrationJob) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(KIND, resource.metadata, name=report_name(resource), component=COMPONENT),
    }


def _service_account(resource: MigrationJob) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": child_metadata(KIND, resource.metadata, name=worker_name(resource), component=COMPONENT),
        "automountServiceAccountToken": False,
    }


def _role(resource: MigrationJob) -> Manifest:
    rule = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [report_name(resource)],
        "verbs": ["get", "patch"],
    }
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": child_metadata(KIND, resource.metadata, name=worker_name(resource), component=COMPONENT),
        "rules": [rule],
    }


def _role_binding(resource: MigrationJob) -> Manifest:
    name = worker_name(resource)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": child_metadata(KIND, resource.metadata, name=name, component=COMPONENT),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": resource.metadata.namespace}],
    }


def _pod(resource: MigrationJob, *, name: str, settings: WorkerSettings) -> dict[str, Any]:
    databases = [("DATABASE_URL", "database", resource.spec.database)]
    if resource.spec.source is not None:
        databases.append(("SOURCE_DATABASE_URL", "source", resource.spec.source))
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": worker_name(resource),
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(resource, databases=databases, settings=settings)],
        "volumes": [
            {"name": "migration", "configMap": {"name": name}},
            {"name": "tmp", "emptyDir": {}},
            *(_claim_volume(volume, database) for _, volume, database in databases if database.sqlite is not None),
        ],
    }
    worker = resource.spec.worker
    if worker.node_selector:
        pod["nodeSelector"] = dict(worker.node_selector)
    if worker.tolerations:
        pod["tolerations"] = [toleration.to_wire() for toleration in worker.tolerations]
    return pod


def _container(
    resource: MigrationJob, *, databases: list[tuple[str, str, Database]], settings: WorkerSettings
) -> dict[str, Any]:
    return {
        "name": "worker",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["shipkeeper-worker"],
        "env": [
            {"name": "SHIPKEEPER_MIGRATION_FILE", "value": f"{_FILE_FOLDER}/{_FILE_NAME}"},
            {"name": "SHIPKEEPER_NAMESPACE", "value": resource.metadata.namespace},
            {"name": "SHIPKEEPER_REPORT", "value": report_name(resource)},
            *(_database_variable(variable, volume, database) for variable, volume, database in databases),
        ],
        "resources": resource.spec.worker.resources.to_wire(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "migration", "mountPath": _FILE_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 # The pod's own emptyDir.
            *(_claim_mount(volume) for _, volume, database in databases if database.sqlite is not None),
        ],
    }


def _database_variable(variable: str, volume: str, database: Database) -> dict[str, Any]:
    if database.sqlite is not None:
        return {"name": variable, "value": f"sqlite+aiosqlite:////data/{volume}/{database.sqlite.path}"}
    assert database.url_from is not None  # noqa: S101 # The model requires exactly one of the two.
    return {"name": variable, "valueFrom": {"secretKeyRef": database.url_from.to_wire()}}


def _claim_mount(volume: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": volume, "mountPath": f"/data/{volume}"}
    # The file that is copied from is never written, not even by accident.
    return mount | {"readOnly": True} if volume == "source" else mount


def _claim_volume(volume: str, database: Database) -> dict[str, Any]:
    assert database.sqlite is not None  # noqa: S101
    return {"name": volume, "persistentVolumeClaim": {"claimName": database.sqlite.claim_name}}
