"""Labels and owner references: how a child says whose it is. Every name used for that stands here."""

from collections.abc import Mapping
from typing import Any

from shipkeeper.resources.base import API_VERSION, GROUP, ObjectMeta

Manifest = Mapping[str, Any]
"""A Kubernetes object as JSON."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "shipkeeper"}
FINALIZER = f"{GROUP}/finalizer"
FIELD_MANAGER = "shipkeeper"

# The label's value is the resource's name; pods carry it too, so that a pod's event wakes the right resource.
OWNER_LABELS = {
    "AppDeployment": f"{GROUP}/appdeployment",
    "MigrationJob": f"{GROUP}/migrationjob",
    "RateLimitPolicy": f"{GROUP}/ratelimitpolicy",
}


def owner_reference(kind: str, owner: ObjectMeta) -> dict[str, Any]:
    """Return the reference by which the garbage collector deletes a child with its owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def child_labels(kind: str, owner: ObjectMeta, *, component: str) -> dict[str, str]:
    """Return the labels of a child (and of its pods)."""
    return {
        **MANAGED_BY,
        "app.kubernetes.io/name": owner.name,
        "app.kubernetes.io/instance": owner.name,
        "app.kubernetes.io/component": component,
        OWNER_LABELS[kind]: owner.name,
    }


def child_metadata(kind: str, owner: ObjectMeta, *, name: str, component: str) -> dict[str, Any]:
    """Return the metadata of a child: name, namespace, labels and owner."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": child_labels(kind, owner, component=component),
        "ownerReferences": [owner_reference(kind, owner)],
    }
