"""The only module that talks to the API server: reads from the watch cache, writes by server-side apply.

A write happens only where the live object does not say what we want, so an idle operator makes none. The answer to each
write goes into the cache at once: the next pass sees it, without waiting for the watch to echo it.
"""

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubernetes.aio.client import ApiException
from kubernetes.aio.dynamic import DynamicClient

from shipkeeper_operator.cache import ObjectName, WatchCache, owner_uids, trimmed
from shipkeeper_operator.children.metadata import FIELD_MANAGER, FINALIZER, MANAGED_BY
from shipkeeper_operator.comparison import APPLIED_ANNOTATION, digest, fingerprint, satisfies, with_digest
from shipkeeper_operator.errors import (
    NameTakenError,
    NotLeadingError,
    StaleReadError,
    StatusRejectedError,
    api_message,
)
from shipkeeper_operator.kinds import ApiKind
from shipkeeper_operator.metrics import Metrics
from shipkeeper_operator.observe.reader import Object

REQUEST_TIMEOUT_SECONDS = 15
LIST_CHUNK = 100
LEASE = "Lease"
"""The one kind that is written without leading: by it leadership is won."""
_MANAGED_BY_SELECTOR = ",".join(f"{label}={value}" for label, value in MANAGED_BY.items())


@dataclass(frozen=True)
class Drift:
    """What the cache did not know, found by comparing it with a list of the API server."""

    changed: tuple[dict[str, Any], ...]
    gone: tuple[Object, ...]


class Cluster:
    """Reads and writes of one operator process. Implements `ClusterReader`."""

    def __init__(
        self,
        client: DynamicClient,
        *,
        kinds: Iterable[ApiKind],
        own_kinds: frozenset[str],
        metrics: Metrics,
        namespaces: Sequence[str] = (),
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take what to talk with. `may_write` is asked before every write: a process that lost its Lease must not."""
        self._client = client
        self._kinds = {kind.kind: kind for kind in kinds}
        self._resources = {kind.kind: kind.resource() for kind in self._kinds.values()}
        self._own_kinds = own_kinds
        self._metrics = metrics
        self._namespaces = tuple(namespaces)
        self._may_write = may_write
        self._answers: dict[tuple[str, ObjectName, str], tuple[str, str]] = {}
        self.absent_kinds: frozenset[str] = frozenset()
        """Kinds of ours that this cluster does not know."""
        self.cache = WatchCache()
        self.last_success = float("-inf")
        """Monotonic time of the last request that the API server answered."""

    # --- Reads ---------------------------------------------------------------------------------------------------

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return the cached object of a watched kind, trimmed, or None."""
        return self.cache.get(kind, namespace, name)

    def children(self, kind: str, owner_uid: str) -> Sequence[Object]:
        """Return the cached objects of that kind whose ownerReferences name the uid."""
        return self.cache.children(kind, owner_uid)

    def pods(self, namespace: str, labels: Mapping[str, str]) -> Sequence[Object]:
        """Return the cached pods of the namespace that carry all these labels."""
        return self.cache.pods(namespace, labels)

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows the kind."""
        return kind in self._kinds and kind not in self.absent_kinds

    async def secret(self, namespace: str, name: str) -> Object | None:
        """Read a Secret from the API server, or None where there is none."""
        return await self.fetch("Secret", namespace, name)

    async def fetch(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Read one object from the API server itself, or None where there is none."""
        try:
            return await self._request(
                "get", kind, self._client.get(self._resources[kind], name=name, namespace=namespace, **_PLAIN)
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    async def is_served(self, kind: str) -> bool:
        """Whether the API server knows the kind (its CRD is installed)."""
        try:
            await self._list_chunk(kind, namespace=None, limit=1, token=None)
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    async def compare_with_server(self, kind: str) -> Drift:
        """List the kind, bring the cache up to it, and return what the watch had not told."""
        changed: list[dict[str, Any]] = []
        seen: set[str] = set()
        oldest_list = 0
        for namespace in self._namespaces or (None,):
            token, version = None, 0
            while version == 0 or token:
                page = await self._list_chunk(kind, namespace=namespace, limit=LIST_CHUNK, token=token)
                token, version = page["metadata"].get("continue"), int(page["metadata"]["resourceVersion"])
                oldest_list = min(oldest_list or version, version)
                for item in page["items"]:
                    # Items of a list carry no type of their own.
                    obj = {"apiVersion": self._kinds[kind].api_version, "kind": kind, **item}
                    seen.add(obj["metadata"]["uid"])
                    if self.cache.put(obj):
                        changed.append(trimmed(obj))
        return Drift(changed=tuple(changed), gone=tuple(self._drop_unlisted(kind, seen, oldest_list)))

    def _drop_unlisted(self, kind: str, listed: set[str], list_version: int) -> Iterable[Object]:
        """Forget cached objects that a list did not show although they are older than it."""
        unlisted = [
            (name, uid)
            for name, uid, version in self.cache.versions(kind)
            if uid not in listed and version <= list_version
        ]
        for name, uid in unlisted:
            obj = self.cache.get(kind, *name)
            if obj is not None and self.cache.remove(kind, name, uid=uid):
                yield obj

    async def _list_chunk(self, kind: str, *, namespace: str | None, limit: int, token: str | None) -> dict[str, Any]:
        selector = None if kind in self._own_kinds else _MANAGED_BY_SELECTOR
        return await self._request(
            "list",
            kind,
            self._client.get(
                self._resources[kind],
                namespace=namespace,
                label_selector=selector,
                limit=limit,
                _continue=token,
                **_PLAIN,
            ),
        )

    # --- Writes --------------------------------------------------------------------------------------------------

    async def apply(self, manifest: Mapping[str, Any], *, owner_uid: str) -> dict[str, Any] | None:
        """Make a child as the manifest says. Returns the object where that took a write, None where it did not.

        Raises NameTakenError where the name belongs to somebody else's object.
        """
        kind, name = manifest["kind"], (manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        live = self.cache.get(kind, *name)
        if live is None:
            # The cache holds only what carries our label, so absence there says nothing about other people's objects.
            live = await self.fetch(kind, *name)
        if live is not None:
            if owner_uid not in owner_uids(live):
                raise NameTakenError(kind, *name)
            if self._is_applied(live, manifest):
                return None
        answer = await self._apply(kind, name, with_digest(manifest))
        self._answers[kind, name, ""] = (digest(manifest), fingerprint(trimmed(answer)))
        return answer

    def _is_applied(self, live: Object, manifest: Mapping[str, Any]) -> bool:
        """Whether the live object is what applying the manifest gives."""
        metadata, intent = live["metadata"], digest(manifest)
        if metadata.get("annotations", {}).get(APPLIED_ANNOTATION) != intent:
            return False
        if satisfies(live, manifest):
            return True
        # Something on the server rewrites what we send (a webhook). If it is as it was after our last write, so be it.
        key = (manifest["kind"], (metadata["namespace"], metadata["name"]), "")
        return self._answers.get(key) == (intent, fingerprint(trimmed(live)))

    async def prune(self, owner_uid: str, *, kinds: Iterable[str], keep: Collection[tuple[str, str]]) -> list[Object]:
        """Delete the owner's children of these kinds whose kind and name are not to be kept; return them."""
        removed = []
        for kind in kinds:
            for child in self.cache.children(kind, owner_uid):
                metadata = child["metadata"]
                if (kind, metadata["name"]) in keep or "deletionTimestamp" in metadata:
                    continue
                await self.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])
                removed.append(child)
        return removed

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str) -> None:
        """Delete exactly that object, and in the background what it owns. It may be gone already."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            answer = await self._write(
                "delete",
                kind,
                lambda: self._client.delete(
                    self._resources[kind], name=name, namespace=namespace, body=options, **_PLAIN
                ),
            )
        except ApiException as error:
            if error.status not in (404, 409):  # 409: another object has the name now.
                raise
            answer = {"kind": "Status"}
        self._answers.pop((kind, (namespace, name), ""), None)
        if answer.get("kind") == kind and "deletionTimestamp" in answer["metadata"]:
            self.cache.put(answer)  # It waits for its finalizers.
        else:
            self.cache.remove(kind, (namespace, name), uid=uid)

    async def write_status(self, resource: Object, status: Mapping[str, Any]) -> dict[str, Any] | None:
        """Set the whole status of one of our resources; None where it is so already.

        Raises ApiException 404 or 409 where the resource is gone or has changed since it was read.
        """
        metadata, held = resource["metadata"], resource.get("status", {})
        kind, name = resource["kind"], (metadata["namespace"], metadata["name"])
        intent = digest(status)
        if held == status or self._answers.get((kind, name, "status")) == (intent, digest(held)):
            return None
        manifest = {
            "apiVersion": resource["apiVersion"],
            "kind": kind,
            # With the version, a resource that changed since, or was made anew, gets no status that is not about it.
            "metadata": {"name": name[1], "namespace": name[0], "resourceVersion": metadata["resourceVersion"]},
            "status": status,
        }
        try:
            answer = await self._apply(kind, name, manifest, subresource="/status")
        except ApiException as error:
            if error.status == 422:
                raise StatusRejectedError(api_message(error)) from error
            raise
        self._answers[kind, name, "status"] = (intent, digest(answer.get("status", {})))
        return answer

    async def set_finalizer(self, resource: Object, *, present: bool) -> dict[str, Any] | None:
        """Add or remove our finalizer, touching no other; None where it is so already."""
        metadata = resource["metadata"]
        finalizers = list(metadata.get("finalizers", ()))
        if (FINALIZER in finalizers) == present or (present and "deletionTimestamp" in metadata):
            return None
        wanted = [*finalizers, FINALIZER] if present else [name for name in finalizers if name != FINALIZER]
        operations = [
            # A change by anybody else since this was read makes the test fail: then we look again.
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": "/metadata/finalizers", "value": wanted},
        ]
        kind, name = resource["kind"], (metadata["namespace"], metadata["name"])
        try:
            answer = await self._patch(kind, name, operations, content_type="application/json-patch+json")
        except ApiException as error:
            if error.status == 422:  # The answer to a failed test.
                raise StaleReadError(f"{kind} {name[0]}/{name[1]} changed while it was looked at") from error
            raise
        if not wanted and "deletionTimestamp" in metadata:
            self.cache.remove(kind, name, uid=metadata["uid"])  # That was all that held it.
        else:
            self.cache.put(answer)
        return answer

    async def create(self, kind: str, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object that is not a child (an Event, the Lease)."""
        return await self._write(
            "create",
            kind,
            lambda: self._client.create(
                self._resources[kind], body=dict(body), namespace=namespace, field_manager=FIELD_MANAGER, **_PLAIN
            ),
        )

    async def merge(self, kind: str, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Merge-patch an object that is not a child (an Event's series)."""
        return await self._patch(kind, (namespace, name), dict(body), content_type="application/merge-patch+json")

    async def replace(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object that is not a child (the Lease), if nobody changed it since it was read."""
        metadata = body["metadata"]
        return await self._write(
            "update",
            kind,
            lambda: self._client.replace(
                self._resources[kind], body=dict(body), name=metadata["name"], namespace=metadata["namespace"], **_PLAIN
            ),
        )

    def forget(self, kind: str, namespace: str, name: str) -> None:
        """Drop what is remembered about a resource that is gone."""
        self._answers.pop((kind, (namespace, name), "status"), None)

    async def _apply(
        self, kind: str, name: ObjectName, manifest: Mapping[str, Any], *, subresource: str = ""
    ) -> dict[str, Any]:
        resource = self._resources[kind]
        answer = await self._write(
            "apply",
            kind + subresource,
            lambda: self._client.request(
                "patch",
                resource.path(name=name[1], namespace=name[0]) + subresource,
                body=dict(manifest),
                content_type="application/apply-patch+yaml",
                field_manager=FIELD_MANAGER,
                force_conflicts=True,
                **_PLAIN,
            ),
        )
        if kind in self._kinds and kind != "Secret":
            self.cache.put(answer)
        return answer

    async def _patch(self, kind: str, name: ObjectName, body: Any, *, content_type: str) -> dict[str, Any]:
        return await self._write(
            "patch",
            kind,
            lambda: self._client.patch(
                self._resources[kind],
                body=body,
                name=name[1],
                namespace=name[0],
                content_type=content_type,
                field_manager=FIELD_MANAGER,
                **_PLAIN,
            ),
        )

    async def _write(self, verb: str, kind: str, send: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        if kind != LEASE and not self._may_write():
            raise NotLeadingError("this replica does not hold the Lease")
        return await self._request(verb, kind, send())

    async def _request(self, verb: str, kind: str, response: Awaitable[Any]) -> dict[str, Any]:
        started = time.monotonic()
        code = "error"
        try:
            answer: dict[str, Any] = await (await response).json()
            code = "200"
        except ApiException as error:
            code = str(error.status)
            self.last_success = time.monotonic()
            raise
        finally:
            self._metrics.requested(verb, kind, code, time.monotonic() - started)
        self.last_success = time.monotonic()
        return answer


_PLAIN: dict[str, Any] = {"serialize": False, "_request_timeout": REQUEST_TIMEOUT_SECONDS}
"""Answers as plain JSON, and never an endless wait."""
