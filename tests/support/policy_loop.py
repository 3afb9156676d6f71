"""One RateLimitPolicy under the controller's rules, on a real Redis and without an API server."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from shipkeeper.limits.failures import StoreError
from shipkeeper.resources.ratelimitpolicy import KIND, RateLimitPolicy
from shipkeeper_operator.effects.ratelimitpolicy import perform
from shipkeeper_operator.observe.ratelimitpolicy import observe
from shipkeeper_operator.reconcile.outcome import Event, Outcome
from shipkeeper_operator.reconcile.ratelimitpolicy import reconcile


class Secrets:
    """The cluster as an observer of policies sees it: Secrets, by namespace and name."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Mapping[str, Any]] = {}

    def put(self, url: str, key: str = "url") -> None:
        encoded = base64.b64encode(url.encode()).decode()
        self.held["birthday", "birthday-redis"] = {"data": {key: encoded}}

    def get(self, kind: str, namespace: str, name: str) -> None:
        return None

    def children(self, kind: str, owner_uid: str) -> Sequence[Mapping[str, Any]]:
        return ()

    def pods(self, namespace: str, labels: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
        return ()

    def serves(self, kind: str) -> bool:
        return False

    async def secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        return self.held.get((namespace, name))


class Loop:
    """One policy under the controller's rules: act, observe again, write status where it differs."""

    def __init__(self, spec: dict[str, Any], *, uid: str) -> None:
        store = {"urlFrom": {"name": "birthday-redis", "key": "url"}, **spec.pop("store", {})}
        self.secrets = Secrets()
        self.now = datetime.now(UTC)
        self.manifest: dict[str, Any] = {
            "apiVersion": "shipkeeper.dev/v1alpha1",
            "kind": "RateLimitPolicy",
            "metadata": {"name": "birthday-limits", "namespace": "birthday", "uid": uid, "generation": 1},
            "spec": {"store": store, **spec},
        }
        self.status_writes = 0
        self.events: list[Event] = []
        self.outcome: Outcome[Any, Any] | None = None

    @property
    def resource(self) -> RateLimitPolicy:
        return KIND.parse(self.manifest)

    async def decide(self) -> Outcome[Any, Any]:
        resource = self.resource
        return reconcile(resource, await observe(resource, self.secrets), now=self.now)

    async def look(self) -> dict[str, tuple[str, str]]:
        """Make one pass and return the conditions as {type: (status, reason)}."""
        for _ in range(4):
            outcome = await self.decide()
            try:
                for effect in outcome.effects:
                    await perform(effect)
            except StoreError:
                outcome = await self.decide()
                break
            if not outcome.effects:
                break
        wire = outcome.status.to_wire()
        if wire != self.manifest.get("status"):
            self.status_writes += 1
        self.manifest["status"] = wire
        self.events += outcome.events
        self.outcome = outcome
        return {each["type"]: (each["status"], each["reason"]) for each in wire.get("conditions", [])}

    def edit(self, **changes: Any) -> None:
        self.manifest["spec"] |= changes
        self.manifest["metadata"]["generation"] += 1

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    def delete(self) -> None:
        self.manifest["metadata"]["deletionTimestamp"] = self.now.isoformat()

    @property
    def status(self) -> dict[str, Any]:
        wire: dict[str, Any] = self.manifest["status"]
        return wire
