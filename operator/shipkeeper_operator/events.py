"""Kubernetes Events about our resources: said once when something changes, counted when it repeats.

A condition that keeps its status and reason says nothing. One that flaps is a single Event whose series counts.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiException

from shipkeeper.resources.conditions import READY, RECONCILING, STALLED, WITH_RETRY
from shipkeeper_operator.cluster import Cluster
from shipkeeper_operator.errors import NotLeadingError
from shipkeeper_operator.metrics import Metrics
from shipkeeper_operator.observe.reader import Object
from shipkeeper_operator.reconcile.outcome import Event

REPORTING_CONTROLLER = "shipkeeper.dev/operator"
MAX_NOTE = 1024  # The API server's bound.
# As long as client-go's recorder: within it, the same news again raises the count of the first Event.
SERIES_SPAN = timedelta(minutes=6)
_REMEMBERED_EVENTS = 4096

_log = logging.getLogger(__name__)


def transitions(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> tuple[Event, ...]:
    """Return what is worth saying about conditions (wire form) that changed their status or reason.

    One reason is said once, although Ready, Reconciling and Stalled usually share it. It is a warning where a person
    must act or where something that was true no longer is.
    """
    old = {condition["type"]: condition for condition in before}
    said: dict[str, Event] = {}
    for condition in sorted(after, key=lambda condition: condition["type"] != STALLED):
        previous = old.get(condition["type"])
        if previous and (previous["status"], previous["reason"]) == (condition["status"], condition["reason"]):
            continue
        if condition["type"] == RECONCILING:
            continue  # Ready=False has the same words.
        was_true = previous is not None and previous["status"] == "True"
        is_bad = (
            condition["type"] == STALLED
            or (condition["type"] == READY and _reconciling_reason(after) == WITH_RETRY)
            or (was_true and condition["status"] != "True" and not _is_progressing(condition, after))
        )
        if is_bad or condition["reason"] not in said:
            said[condition["reason"]] = Event(
                "Warning" if is_bad else "Normal", condition["reason"], condition["message"]
            )
    return tuple(said.values())


def _is_progressing(condition: Mapping[str, Any], after: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a Ready=False merely says that work is under way: a new generation is being rolled out."""
    return condition["type"] == READY and _reconciling_reason(after) not in ("", WITH_RETRY)


def _reconciling_reason(conditions: Sequence[Mapping[str, Any]]) -> str:
    return next((str(each["reason"]) for each in conditions if each["type"] == RECONCILING), "")


@dataclass
class _Series:
    name: str
    count: int
    last: datetime


class EventRecorder:
    """Writes Events; a failure to write one is logged and forgotten, since the status already says it."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        instance: str,
        metrics: Metrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Write through the cluster in the name of this replica."""
        self._cluster = cluster
        self._instance = instance
        self._metrics = metrics
        self._now = now
        self._series: OrderedDict[tuple[str, Event], _Series] = OrderedDict()

    async def record(self, resource: Object, events: Iterable[Event]) -> None:
        """Write the events about the resource."""
        for event in events:
            try:
                await self._record_one(resource, event)
            except (ApiException, aiohttp.ClientError, OSError, TimeoutError, NotLeadingError) as error:
                self._metrics.events.labels(event.type, "failed").inc()
                _log.warning("An Event could not be written: %s (%s)", event.reason, type(error).__name__)
            else:
                self._metrics.events.labels(event.type, "written").inc()

    async def _record_one(self, resource: Object, event: Event) -> None:
        now, key = self._now(), (resource["metadata"]["uid"], event)
        namespace = resource["metadata"]["namespace"]
        series = self._series.get(key)
        if series is not None and now - series.last < SERIES_SPAN:
            series.count, series.last = series.count + 1, now
            body = {"series": {"count": series.count, "lastObservedTime": _micro_time(now)}}
            try:
                await self._cluster.merge("Event", namespace, series.name, body)
                return
            except ApiException as error:
                if error.status != 404:
                    raise  # It outlived its time to live: say it anew.
        name = f"{resource['metadata']['name']}.{int(now.timestamp() * 1_000_000):x}"
        await self._cluster.create("Event", namespace, self._body(resource, event, name=name, now=now))
        self._series[key] = _Series(name=name, count=1, last=now)
        self._series.move_to_end(key)
        if len(self._series) > _REMEMBERED_EVENTS:
            self._series.popitem(last=False)

    def _body(self, resource: Object, event: Event, *, name: str, now: datetime) -> dict[str, Any]:
        metadata = resource["metadata"]
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "eventTime": _micro_time(now),
            "reportingController": REPORTING_CONTROLLER,
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "reason": event.reason[:128],
            "type": event.type,
            "note": event.message if len(event.message) <= MAX_NOTE else event.message[: MAX_NOTE - 3] + "...",
            "regarding": {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
        }


def _micro_time(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
