"""The one loop of every kind: take a key, observe, reconcile, apply, write status, decide when to look again.

Level-triggered: what woke a key is forgotten before the pass starts, so nothing that matters can be missed by missing
an event. A pass that wrote children or had effects observes again before it writes status: status says what was read
back, and one pass writes it once.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from kubernetes.aio.client import ApiException
from pydantic import ValidationError

from shipkeeper.resources.base import Resource, StatusModel
from shipkeeper.resources.conditions import READY, RECONCILING, STALLED, stalled
from shipkeeper.resources.kinds import Kind
from shipkeeper_operator.children.metadata import FINALIZER
from shipkeeper_operator.cluster import Cluster
from shipkeeper_operator.errors import NameTakenError, NotLeadingError, PassTimeoutError, Remedy, Verdict, judge
from shipkeeper_operator.events import EventRecorder, transitions
from shipkeeper_operator.logs import ResourceLogger, resource_logger
from shipkeeper_operator.metrics import Metrics
from shipkeeper_operator.observe.reader import ClusterReader, Object
from shipkeeper_operator.reconcile.outcome import Outcome
from shipkeeper_operator.routing import Key, Routes
from shipkeeper_operator.workqueue import QueueClosedError, WorkQueue

ResourceT = TypeVar("ResourceT")
ObservedT = TypeVar("ObservedT")
StatusT = TypeVar("StatusT", bound=StatusModel)
EffectT = TypeVar("EffectT")

PASS_TIMEOUT_SECONDS = 60
# Observe, act, read back: two rounds are usual. More means that each answer asks for another write.
MAX_ROUNDS = 4
BUG_RETRY_SECONDS = 60.0
REJECTED_RETRY_SECONDS = 300.0
INVALID_SPEC = "InvalidSpec"
UNSETTLED = "unsettled"
# Conflicts with other writers come and go; only what lasts is worth a line.
_USUAL_FAILURES = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResourceController(Generic[ResourceT, ObservedT, StatusT, EffectT]):
    """What a kind brings to the loop: how to look, how to decide, how to act outside the API server."""

    kind: Kind
    observe: Callable[[ResourceT, ClusterReader], Awaitable[ObservedT]]
    reconcile: Callable[..., Outcome[StatusT, EffectT]]
    references: Callable[[ResourceT], Iterable[tuple[str, str]]]
    child_kinds: tuple[str, ...]
    perform: Callable[[EffectT], Awaitable[None]] | None = None
    performer: Callable[[Cluster], Callable[[EffectT], Awaitable[None]]] | None = None
    """Makes `perform`, for effects on objects of the API server that are no children."""


class InvalidResourceError(Exception):
    """The stored spec does not fit the model (an older CRD let it in); the text names the fields."""


class Controller:
    """Workers that reconcile the resources of one kind."""

    def __init__(
        self,
        registration: ResourceController[Any, Any, Any, Any],
        *,
        cluster: Cluster,
        routes: Routes,
        recorder: EventRecorder,
        metrics: Metrics,
        wake: Callable[[Key], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the parts. `wake` puts a key, of any kind, into its queue."""
        self.kind = registration.kind.kind
        self.queue: WorkQueue[Key] = WorkQueue(observer=metrics.queue(self.kind))
        self._registration = registration
        self._cluster = cluster
        self._routes = routes
        self._recorder = recorder
        self._metrics = metrics
        self._wake = wake
        self._now = now
        self._states: dict[Key, str] = {}
        performer = registration.performer
        self._perform_effect = performer(cluster) if performer is not None else registration.perform

    async def work(self) -> None:
        """Reconcile one key after the other until the queue is closed."""
        with suppress(QueueClosedError):
            while True:
                key = await self.queue.get()
                try:
                    await self._handle(key)
                finally:
                    self.queue.done(key)

    def wake_all(self, *, spread_seconds: float = 0) -> None:
        """Look at every resource of the kind again, spread over the time."""
        for namespace, name in self._cluster.cache.names(self.kind):
            self.queue.add_after(Key(self.kind, namespace, name), random.uniform(0, spread_seconds))  # noqa: S311

    def states(self) -> list[str]:
        """Return the state of each resource of the kind as kstatus' words: Ready, Reconciling, Stalled or Unknown."""
        return list(self._states.values())

    async def _handle(self, key: Key) -> None:
        log = resource_logger(_log, kind=key.kind, namespace=key.namespace, name=key.name)
        try:
            result = await self._timed_pass(key, log)
        except Exception as error:
            # The one place where all failures of a pass end; a bug in one resource must not stop the others.
            verdict = judge(error)
            self._metrics.errors.labels(self.kind, verdict.reason).inc()
            self._metrics.reconciles.labels(self.kind, verdict.remedy.value).inc()
            await self._recover(key, verdict, error, log)
        else:
            self._metrics.reconciles.labels(self.kind, result).inc()
            if result == UNSETTLED:
                self.queue.add_rate_limited(key)
            else:
                self.queue.forget(key)

    async def _timed_pass(self, key: Key, log: ResourceLogger) -> str:
        limit = asyncio.timeout(PASS_TIMEOUT_SECONDS)
        try:
            async with limit:
                return await self._pass(key, log)
        except TimeoutError as error:
            if limit.expired():
                raise PassTimeoutError(f"a pass took more than {PASS_TIMEOUT_SECONDS} s") from error
            raise

    async def _recover(self, key: Key, verdict: Verdict, error: Exception, log: ResourceLogger) -> None:
        match verdict.remedy:
            case Remedy.WAIT:
                self.queue.add_rate_limited(key, at_least=verdict.retry_after_seconds or 0)
                level = logging.WARNING if self.queue.failures(key) > _USUAL_FAILURES else logging.DEBUG
                log.log(level, "Trying again: %s: %s", verdict.reason, verdict.message)
            case Remedy.PERSON:
                log.warning("%s: %s", verdict.reason, verdict.message)
                self.queue.add_after(key, REJECTED_RETRY_SECONDS * random.uniform(0.9, 1.1))  # noqa: S311
                await self._say_stalled(key, verdict.reason, verdict.message, log)
            case Remedy.DEVELOPER:
                log.error("A bug in the operator stopped this pass", exc_info=error)
                self.queue.add_after(key, BUG_RETRY_SECONDS * random.uniform(0.9, 1.1))  # noqa: S311

    async def _pass(self, key: Key, log: ResourceLogger) -> str:
        """Observe, decide and act until nothing is left to do now; then write status once."""
        for _ in range(MAX_ROUNDS):
            raw = self._cluster.get(key.kind, key.namespace, key.name)
            if raw is None or _is_terminating(raw):
                self._forget(key)
                return "gone"
            try:
                resource = self._parse(raw)
            except InvalidResourceError as error:
                await self._publish(raw, stalled_status(raw, reason=INVALID_SPEC, message=str(error), now=self._now()))
                return "invalid"
            self._routes.refer(key, self._registration.references(resource))
            outcome = await self._decide(resource)
            wrote = await self._write_children(key, raw, outcome)
            if not await self._perform(outcome.effects, log):
                # Not tried again at once: look what is true now, say so, and come back later.
                await self._conclude(key, await self._decide(resource))
                return UNSETTLED
            if not wrote and not outcome.effects:
                await self._conclude(key, outcome)
                return "success"
        await self._conclude(key, outcome)
        return UNSETTLED

    async def _decide(self, resource: Any) -> Outcome[Any, Any]:
        observed = await self._registration.observe(resource, self._cluster)
        return self._registration.reconcile(resource, observed, now=self._now())

    async def _write_children(self, key: Key, raw: Object, outcome: Outcome[Any, Any]) -> bool:
        """Bring finalizer and children to what was decided; return whether that took a write."""
        uid = raw["metadata"]["uid"]
        held = await self._cluster.set_finalizer(raw, present=True) if outcome.finalizer else None
        changed: list[Object] = [
            answer
            for child in outcome.children
            if (answer := await self._cluster.apply(child, owner_uid=uid)) is not None
        ]
        keep = {(child["kind"], child["metadata"]["name"]) for child in outcome.children} | set(outcome.retained)
        changed += await self._cluster.prune(uid, kinds=self._registration.child_kinds, keep=keep)
        self._tell(key, changed)
        return bool(held or changed)

    async def _perform(self, effects: Iterable[Any], log: ResourceLogger) -> bool:
        """Write outside the API server; return whether all of it succeeded."""
        for effect in effects:
            if self._perform_effect is None:
                raise TypeError(f"{self.kind} has effects but no way to perform them")
            try:
                await self._perform_effect(effect)
            except (ApiException, NameTakenError, NotLeadingError):
                raise  # The API server's answers are judged like those to our other writes.
            except Exception as error:
                # An outside system failed. Its exception's text may hold an address or a credential: only its type.
                log.warning("An effect failed: %s", type(error).__name__)
                self._metrics.errors.labels(self.kind, "EffectFailed").inc()
                return False
        return True

    async def _conclude(self, key: Key, outcome: Outcome[Any, Any]) -> None:
        """Write status and say what changed; let go of a resource whose end is prepared; plan the next look."""
        raw = self._cluster.get(key.kind, key.namespace, key.name)
        if raw is None:
            return  # Deleted during the pass.
        await self._publish(raw, outcome.status.to_wire(), outcome.events)
        if not outcome.finalizer:
            latest = self._cluster.get(key.kind, key.namespace, key.name)
            if latest is not None and (answer := await self._cluster.set_finalizer(latest, present=False)):
                self._tell(key, (answer,))
        if outcome.requeue_after is not None:
            self.queue.add_after(key, outcome.requeue_after.total_seconds())

    async def _publish(self, raw: Object, status: Mapping[str, Any], events: Iterable[Any] = ()) -> None:
        key = Key(raw["kind"], raw["metadata"]["namespace"], raw["metadata"]["name"])
        conditions = status.get("conditions", ())
        self._states[key] = _state(conditions)
        answer = await self._cluster.write_status(raw, status)
        if answer is not None:
            self._tell(key, (answer,))
            before = raw.get("status", {}).get("conditions", ())
            await self._recorder.record(raw, (*transitions(before, conditions), *events))

    async def _say_stalled(self, key: Key, reason: str, message: str, log: ResourceLogger) -> None:
        """Put a failure that only a person can mend into status, keeping what it says besides."""
        raw = self._cluster.get(key.kind, key.namespace, key.name)
        if raw is None:
            return
        try:
            await self._publish(raw, stalled_status(raw, reason=reason, message=message, now=self._now()))
        except Exception as error:  # The retry is already planned; this write may fail for the same reason.
            log.warning("Status could not be written: %s", judge(error).message)

    def _tell(self, key: Key, objects: Iterable[Object]) -> None:
        """Wake whoever our own writes concern; the resource of this pass has seen them already."""
        for obj in objects:
            for other in self._routes.wakes(obj):
                if other != key:
                    self._wake(other)

    def _parse(self, raw: Object) -> Resource[Any, Any]:
        """Read the resource. A status that no longer fits (written by another version) is taken as none."""
        try:
            return self._registration.kind.parse(dict(raw))
        except ValidationError as invalid:
            spec_faults = [fault for fault in invalid.errors() if fault["loc"][:1] != ("status",)]
            if not spec_faults:
                return self._registration.kind.parse({**raw, "status": None})
            # The fault's own input is left out: it may be anything a person pasted there.
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in spec_faults)
            raise InvalidResourceError(faults) from None

    def _forget(self, key: Key) -> None:
        self._states.pop(key, None)
        self._routes.refer(key, ())
        self._cluster.forget(key.kind, key.namespace, key.name)


def _is_terminating(raw: Object) -> bool:
    """Whether it is being deleted and does not wait for us: new children would fight the garbage collector."""
    metadata = raw["metadata"]
    return "deletionTimestamp" in metadata and FINALIZER not in metadata.get("finalizers", ())


def _state(conditions: Iterable[Mapping[str, Any]]) -> str:
    """Return kstatus' word for these conditions (wire form)."""
    true = {condition["type"] for condition in conditions if condition["status"] == "True"}
    return next((type_ for type_ in (STALLED, RECONCILING, READY) if type_ in true), "Unknown")


def stalled_status(raw: Object, *, reason: str, message: str, now: datetime) -> dict[str, Any]:
    """Return the resource's status, in wire form, with kstatus' Failed instead of what it claimed before."""
    status = raw.get("status", {})
    previous = {condition["type"]: condition for condition in status.get("conditions", ())}
    kept = [condition for type_, condition in previous.items() if type_ not in (READY, RECONCILING, STALLED)]
    generation = raw["metadata"].get("generation", 0)
    said = []
    for claim in stalled(reason, message[:32768]):
        before = previous.get(claim.type)
        since = before["lastTransitionTime"] if before and before["status"] == claim.status else None
        said.append(
            {
                "type": claim.type,
                "status": claim.status,
                "reason": claim.reason,
                "message": claim.message,
                "observedGeneration": generation,
                "lastTransitionTime": since or now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    return {**status, "observedGeneration": generation, "conditions": [*said, *kept]}
