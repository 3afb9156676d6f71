"""What is true of an application now: its objects and pods, what it requires, and the names of its API keys."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from shipkeeper.resources.appdeployment import AppDeployment
from shipkeeper_operator.children.appdeployment import CHILD_KINDS
from shipkeeper_operator.children.appdeployment_monitoring import PROMETHEUS_RULE, SERVICE_MONITOR
from shipkeeper_operator.children.appdeployment_names import (
    ACCEPTED_KEY,
    ACCEPTED_PREVIOUS_KEY,
    CALLER_KEY,
    api_key_secret_name,
    is_ours,
    pod_labels,
    volume_claim_name,
)
from shipkeeper_operator.children.appdeployment_pod import AcceptedKeys
from shipkeeper_operator.effects.appdeployment_keys import (
    ACCEPTED_ID,
    CALLER_ID,
    ISSUED_AT,
    MINIMUM_KEY_LENGTH,
    PREVIOUS_ID,
    REVISION,
    VALID_UNTIL,
)
from shipkeeper_operator.reconcile.appdeployment_facts import ObservedApiKey, ObservedApp, ObservedClaim
from shipkeeper_operator.reconcile.appdeployment_gate import required

from .reader import ClusterReader, Object

# Pods that ended (evicted, for instance) stay as objects until they are collected.
_ENDED = ("Succeeded", "Failed")


async def observe(resource: AppDeployment, reader: ClusterReader) -> ObservedApp:
    """Read what a decision about the application needs. Only the API key's Secret takes a request."""
    metadata = resource.metadata
    children = {kind: reader.children(kind, metadata.uid) for kind in CHILD_KINDS}
    found = {
        (kind, name): obj
        for kind, name in required(resource)
        if (obj := reader.get(kind, metadata.namespace, name)) is not None
    }
    return ObservedApp(
        deployment=next((each for each in children["Deployment"] if each["metadata"]["name"] == metadata.name), None),
        pods=tuple(_live_pods(resource, reader)),
        migrations={name: obj for (kind, name), obj in found.items() if kind == "MigrationJob"},
        policies={name: obj for (kind, name), obj in found.items() if kind == "RateLimitPolicy"},
        api_key=await _api_key(resource, reader),
        claim=_claim(resource, reader),
        served_kinds=frozenset(kind for kind in (SERVICE_MONITOR, PROMETHEUS_RULE) if reader.serves(kind)),
        children=frozenset((kind, each["metadata"]["name"]) for kind, owned in children.items() for each in owned),
    )


def _live_pods(resource: AppDeployment, reader: ClusterReader) -> Iterator[Object]:
    for pod in reader.pods(resource.metadata.namespace, pod_labels(resource)):
        if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") not in _ENDED:
            yield pod


def _claim(resource: AppDeployment, reader: ClusterReader) -> ObservedClaim | None:
    name = volume_claim_name(resource)
    live = reader.get("PersistentVolumeClaim", resource.metadata.namespace, name) if name is not None else None
    if live is None:
        return None
    sqlite = resource.spec.database.sqlite if resource.spec.database is not None else None
    size = sqlite.size if sqlite is not None else None
    asked = live["spec"].get("resources", {}).get("requests", {}).get("storage", "0")
    return ObservedClaim(
        phase=live.get("status", {}).get("phase", "Pending"),
        is_ours=is_ours(live["metadata"].get("labels", {}), resource),
        too_small=size is not None and parse_quantity(size) > parse_quantity(asked),
    )


async def _api_key(resource: AppDeployment, reader: ClusterReader) -> ObservedApiKey | None:
    """Read the generated key's Secret, where there is one or was one, and keep no key."""
    declared = resource.spec.api_key is not None and resource.spec.api_key.key_from is None
    known = resource.status.api_key if resource.status is not None else None
    if not declared and (known is None or known.phase == "External"):
        return None
    secret = await reader.secret(resource.metadata.namespace, api_key_secret_name(resource))
    return None if secret is None else _observed_key(resource, secret)


def _observed_key(resource: AppDeployment, secret: Mapping[str, Any]) -> ObservedApiKey:
    metadata = secret["metadata"]
    said, data = metadata.get("annotations", {}), secret.get("data", {})
    owners = [reference["uid"] for reference in metadata.get("ownerReferences", ())]
    names = (CALLER_KEY, ACCEPTED_KEY, *((ACCEPTED_PREVIOUS_KEY,) if said.get(PREVIOUS_ID) else ()))
    issued_at = _instant(said.get(ISSUED_AT))
    is_whole = all(_is_key(data.get(name, "")) for name in names) and bool(
        said.get(CALLER_ID) and said.get(ACCEPTED_ID)
    )
    return ObservedApiKey(
        uid=metadata["uid"],
        is_ours=resource.metadata.uid in owners,
        caller_id=said.get(CALLER_ID, ""),
        accepted=AcceptedKeys(current=said.get(ACCEPTED_ID, ""), previous=said.get(PREVIOUS_ID) or None),
        issued_at=issued_at or datetime.min,
        revision=said.get(REVISION) or None,
        previous_valid_until=_instant(said.get(VALID_UNTIL)),
        is_whole=is_whole and issued_at is not None,
    )


def _is_key(encoded: str) -> bool:
    """Whether a value is long enough to be a key of ours; its text goes nowhere."""
    try:
        return len(base64.b64decode(encoded, validate=True)) >= MINIMUM_KEY_LENGTH
    except binascii.Error:
        return False


def _instant(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
