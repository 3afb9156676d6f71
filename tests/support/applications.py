"""Applications and what surrounds them, as the API server would show it, for tests without one."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shipkeeper.resources.appdeployment import KIND, AppDeployment
from shipkeeper_operator.children.appdeployment_pod import AcceptedKeys
from shipkeeper_operator.reconcile.appdeployment_facts import ObservedApiKey

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def application(*, status: Mapping[str, Any] | None = None, generation: int = 1, **spec: Any) -> AppDeployment:
    """Return an AppDeployment `app` in namespace `shop`."""
    manifest: dict[str, Any] = {
        "apiVersion": "shipkeeper.dev/v1alpha1",
        "kind": "AppDeployment",
        "metadata": {"name": "app", "namespace": "shop", "uid": "uid-1", "generation": generation},
        "spec": {"image": "registry.test/app:1", **spec},
    }
    if status is not None:
        manifest["status"] = dict(status)
    return KIND.parse(manifest)


def as_served(
    manifest: Mapping[str, Any], *, have: int = 0, updated: int | None = None, **status: Any
) -> dict[str, Any]:
    """Return a Deployment as the API server shows it, with so many available pods."""
    return {
        **manifest,
        "metadata": {**manifest["metadata"], "uid": "uid-2", "generation": 1},
        "status": {
            "observedGeneration": 1,
            "replicas": have,
            "updatedReplicas": have if updated is None else updated,
            "readyReplicas": have,
            "availableReplicas": have,
            **status,
        },
    }


def requirement(kind: str, name: str, *, generation: int = 1, observed: int = 1, **conditions: str) -> dict[str, Any]:
    """Return a MigrationJob or RateLimitPolicy with these conditions."""
    written = [{"type": type_, "status": status, "reason": "Because"} for type_, status in conditions.items()]
    return {
        "kind": kind,
        "metadata": {"name": name, "generation": generation},
        "status": {"observedGeneration": observed, "conditions": written},
    }


def pod(
    *,
    name: str = "app-1",
    state: Mapping[str, Any] | None = None,
    ready: bool = True,
    image: str = "registry.test/app:1",
    **container: Any,
) -> dict[str, Any]:
    """Return a pod as the operator's cache keeps it; secure unless said otherwise."""
    return {
        "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "app",
                    "image": image,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {
                    "name": "app",
                    "image": image,
                    "ready": ready,
                    "restartCount": 0,
                    "started": True,
                    "state": dict(state or {"running": {"startedAt": "2026-03-01T11:00:00Z"}}),
                    **container,
                }
            ],
        },
    }


def api_key(*, caller: str = "k1", current: str = "k1", previous: str | None = None, **said: Any) -> ObservedApiKey:
    """Return a generated key of the application, issued at noon on the first of March."""
    facts = {"uid": "uid-3", "is_ours": True, "issued_at": NOW, "revision": None, **said}
    return ObservedApiKey(caller_id=caller, accepted=AcceptedKeys(current, previous), **facts)
