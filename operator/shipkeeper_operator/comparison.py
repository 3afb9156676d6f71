"""Does a live object already say what we want? The question that keeps an idle operator from writing.

The API server adds defaults, and other controllers own fields of their own, so "equal" is the wrong question. An object
needs no write when every field we send is there with our value, and when what we sent last time is what we would send
now: the second part, a hash in an annotation, is what notices a field that we stopped sending.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from shipkeeper.resources.base import GROUP

APPLIED_ANNOTATION = f"{GROUP}/applied"

# Lists that server-side apply merges by these fields (the `x-kubernetes-list-map-keys` of the built-in types).
# Other lists are replaced as a whole, so they must match item by item.
_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "ownerReferences": ("uid",),
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "conditions": ("type",),
    "finalizers": (),
}
_QUANTITY_MAPS = frozenset({"limits", "requests", "capacity", "overhead", "hard"})
_QUANTITIES = frozenset({"sizeLimit", "divisor", "storage"})


def digest(manifest: Mapping[str, Any]) -> str:
    """Return a short hash of what is sent, stable over key order."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_digest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the annotation that remembers what was sent."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def fingerprint(live: Mapping[str, Any]) -> str:
    """Return a hash of what a person or a controller may decide about an object: no status, no versions."""
    metadata = {
        name: value
        for name, value in live["metadata"].items()
        if name not in ("resourceVersion", "generation", "managedFields")
    }
    content = {name: value for name, value in live.items() if name not in ("status", "metadata")}
    return digest({**content, "metadata": metadata})


def satisfies(live: Any, desired: Any, *, field: str = "") -> bool:
    """Whether the live value holds everything the desired one says. `field` is the name it stands under."""
    if _is_empty(desired) and (live is None or live == desired):
        return True  # The server drops empty and zero values of optional fields.
    if isinstance(desired, Mapping):
        return isinstance(live, Mapping) and _map_satisfies(live, desired, field=field)
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        return isinstance(live, Sequence) and _list_satisfies(live, desired, field=field)
    if live == desired and type(live) is type(desired):
        return True
    return field in _QUANTITIES and _same_quantity(live, desired)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value is False or value == 0 or value == {} or value == [] or value == ()


def _map_satisfies(live: Mapping[str, Any], desired: Mapping[str, Any], *, field: str) -> bool:
    if field in _QUANTITY_MAPS:
        return all(name in live and _same_quantity(live[name], value) for name, value in desired.items())
    for name, value in desired.items():
        if name == "stringData":  # Write-only: the server keeps it base64-encoded in `data`.
            encoded = {key: base64.b64encode(text.encode()).decode() for key, text in value.items()}
            if not satisfies(live.get("data"), encoded, field="data"):
                return False
        elif not satisfies(live.get(name), value, field=name):
            return False
    return True


def _list_satisfies(live: Sequence[Any], desired: Sequence[Any], *, field: str) -> bool:
    if field == "ports" and all(isinstance(item, Mapping) and "containerPort" in item for item in desired):
        return _each_found({_port(item): item for item in live}, {_port(item): item for item in desired})
    if field in _MERGE_KEYS:
        keys = _MERGE_KEYS[field]
        return _each_found(
            {_identity(item, keys): item for item in live}, {_identity(item, keys): item for item in desired}
        )
    return len(live) == len(desired) and all(
        satisfies(live_item, item) for live_item, item in zip(live, desired, strict=True)
    )


def _each_found(live: Mapping[Any, Any], desired: Mapping[Any, Any]) -> bool:
    return all(identity in live and satisfies(live[identity], item) for identity, item in desired.items())


def _identity(item: Any, keys: tuple[str, ...]) -> Any:
    return tuple(item.get(key) for key in keys) if keys else item


def _port(item: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the identity of a container's port: its number and protocol, which is TCP where we do not say."""
    return (item.get("containerPort"), item.get("protocol", "TCP"))


def _same_quantity(live: Any, desired: Any) -> bool:
    try:
        return bool(parse_quantity(str(live)) == parse_quantity(str(desired)))
    except ValueError:
        return False
