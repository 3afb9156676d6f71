"""The watch cache: the last known state of every watched object, small, and never older than what was seen before.

Objects are kept as compressed JSON, not as Python dictionaries: a thousand applications with their children then fit
into a few megabytes instead of a hundred. They come in from three sides (watch events, our own lists, the answers to
our own writes) in no certain order, so an object is taken only when its resourceVersion is newer than the held one's.
"""

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shipkeeper_operator.observe.reader import Object

ObjectName = tuple[str, str]
"""Namespace and name."""

# A deleted object's uid is remembered so that a late answer to a write does not bring it back.
_REMEMBERED_DELETIONS = 10_000

_POD_METADATA = ("name", "namespace", "uid", "labels", "ownerReferences", "creationTimestamp", "deletionTimestamp")
_POD_CONTAINER = ("name", "image", "securityContext", "resources")
_POD_STATUS = ("phase", "reason", "message", "conditions", "startTime", "containerStatuses", "initContainerStatuses")


def _picked(source: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: source[name] for name in names if name in source}


def trimmed(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object without what no decision needs: field ownership, and most of a pod."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    annotations = metadata.get("annotations", {})
    if "kubectl.kubernetes.io/last-applied-configuration" in annotations:
        metadata["annotations"] = {
            name: value
            for name, value in annotations.items()
            if name != "kubectl.kubernetes.io/last-applied-configuration"
        }
    if obj.get("kind") != "Pod":
        return {**obj, "metadata": metadata}
    spec = obj.get("spec", {})
    return {
        "apiVersion": obj.get("apiVersion"),
        "kind": "Pod",
        "metadata": _picked(metadata, (*_POD_METADATA, "resourceVersion")),
        "spec": {
            **_picked(spec, ("nodeName", "securityContext", "serviceAccountName", "automountServiceAccountToken")),
            "containers": [_picked(container, _POD_CONTAINER) for container in spec.get("containers", ())],
        },
        "status": _picked(obj.get("status", {}), _POD_STATUS),
    }


def owner_uids(obj: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the uids of the object's owners."""
    return tuple(reference["uid"] for reference in obj["metadata"].get("ownerReferences", ()))


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: str
    version: int
    owners: tuple[str, ...]
    data: bytes

    def read(self) -> dict[str, Any]:
        obj: dict[str, Any] = json.loads(zlib.decompress(self.data))
        return obj


class WatchCache:
    """All watched objects, by kind, by owner and, for pods, by label."""

    def __init__(self) -> None:
        """Make an empty cache."""
        self._objects: dict[str, dict[ObjectName, _Entry]] = {}
        self._owned: dict[tuple[str, str], set[ObjectName]] = {}
        self._pod_labels: dict[tuple[str, str, str], set[ObjectName]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def count(self, kind: str) -> int:
        """Return how many objects of the kind are held."""
        return len(self._objects.get(kind, ()))

    def names(self, kind: str) -> list[ObjectName]:
        """Return the names of all objects of the kind."""
        return list(self._objects.get(kind, ()))

    def versions(self, kind: str) -> Iterator[tuple[ObjectName, str, int]]:
        """Yield name, uid and resourceVersion of every object of the kind."""
        for name, entry in self._objects.get(kind, {}).items():
            yield name, entry.uid, entry.version

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return a fresh copy of the object, or None."""
        entry = self._objects.get(kind, {}).get((namespace, name))
        return None if entry is None else entry.read()

    def children(self, kind: str, owner_uid: str) -> list[Object]:
        """Return the objects of that kind whose owner references name the uid, ordered by name."""
        held = self._objects.get(kind, {})
        return [held[name].read() for name in sorted(self._owned.get((kind, owner_uid), ()))]

    def pods(self, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """Return the pods of the namespace that carry all these labels (at least one), ordered by name."""
        if not labels:
            raise ValueError("pods are looked up by at least one label")
        matching = set.intersection(
            *(self._pod_labels.get((namespace, label, value), set()) for label, value in labels.items())
        )
        held = self._objects.get("Pod", {})
        return [held[name].read() for name in sorted(matching)]

    def put(self, obj: Mapping[str, Any]) -> bool:
        """Take an object if it is newer than the one held; return whether it was."""
        metadata = obj["metadata"]
        kind, name, uid = obj["kind"], (metadata["namespace"], metadata["name"]), metadata["uid"]
        version = int(metadata["resourceVersion"])
        held = self._objects.setdefault(kind, {}).get(name)
        if uid in self._deleted or (held is not None and held.version >= version):
            return False
        if held is not None:
            self._unindex(kind, name, held)
        small = trimmed(obj)
        data = zlib.compress(json.dumps(small, separators=(",", ":"), ensure_ascii=False).encode(), level=1)
        entry = _Entry(uid=uid, version=version, owners=owner_uids(obj), data=data)
        self._objects[kind][name] = entry
        for owner in entry.owners:
            self._owned.setdefault((kind, owner), set()).add(name)
        if kind == "Pod":
            for label, value in metadata.get("labels", {}).items():
                self._pod_labels.setdefault((name[0], label, value), set()).add(name)
        return True

    def remove(self, kind: str, name: ObjectName, *, uid: str) -> bool:
        """Forget an object that was deleted; return whether it was held. One of another uid stays."""
        self._deleted[uid] = None
        if len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        held = self._objects.get(kind, {}).get(name)
        if held is None or held.uid != uid:
            return False
        self._unindex(kind, name, held)
        del self._objects[kind][name]
        return True

    def _unindex(self, kind: str, name: ObjectName, entry: _Entry) -> None:
        for owner in entry.owners:
            _discard(self._owned, (kind, owner), name)
        if kind == "Pod":
            for label, value in entry.read()["metadata"].get("labels", {}).items():
                _discard(self._pod_labels, (name[0], label, value), name)


def _discard(index: dict[Any, set[ObjectName]], key: Any, name: ObjectName) -> None:
    names = index.get(key)
    if names is not None:
        names.discard(name)
        if not names:
            del index[key]
