"""Which resources to look at when an object changed: itself, its owner, and those that refer to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shipkeeper.resources.base import GROUP
from shipkeeper_operator.children.metadata import OWNER_LABELS


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The identity of one of our resources."""

    kind: str
    namespace: str
    name: str


class Routes:
    """The wake-up rules, and the one piece of them that is learned: who refers to what."""

    def __init__(self, *, own_kinds: Iterable[str], owner_labels: Mapping[str, str] = OWNER_LABELS) -> None:
        """Take the kinds we reconcile and the label by which a pod names its resource, per kind."""
        self._own_kinds = frozenset(own_kinds)
        self._owner_labels = {kind: label for kind, label in owner_labels.items() if kind in self._own_kinds}
        self._referrers: dict[Key, set[Key]] = {}
        self._references: dict[Key, frozenset[Key]] = {}

    def refer(self, referrer: Key, targets: Iterable[tuple[str, str]]) -> None:
        """Remember what the resource refers to: kind and name, in its own namespace. Replaces what was."""
        now = frozenset(Key(kind, referrer.namespace, name) for kind, name in targets)
        before = self._references.get(referrer, frozenset())
        for target in before - now:
            self._referrers[target].discard(referrer)
            if not self._referrers[target]:
                del self._referrers[target]
        for target in now - before:
            self._referrers.setdefault(target, set()).add(referrer)
        if now:
            self._references[referrer] = now
        else:
            self._references.pop(referrer, None)

    def wakes(self, obj: Mapping[str, Any]) -> frozenset[Key]:
        """Return the resources that a change of this object concerns."""
        metadata, kind = obj["metadata"], obj["kind"]
        itself = Key(kind, metadata["namespace"], metadata["name"])
        woken = set(self._referrers.get(itself, ()))
        if kind in self._own_kinds:
            woken.add(itself)
        for reference in metadata.get("ownerReferences", ()):
            if reference["kind"] in self._own_kinds and reference["apiVersion"].partition("/")[0] == GROUP:
                woken.add(Key(reference["kind"], metadata["namespace"], reference["name"]))
        if kind == "Pod":
            labels = metadata.get("labels", {})
            for owner, label in self._owner_labels.items():
                if label in labels:
                    woken.add(Key(owner, metadata["namespace"], labels[label]))
        return frozenset(woken)
