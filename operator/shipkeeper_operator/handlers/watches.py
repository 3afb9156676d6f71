"""kopf as informer: its watches fill the cache and wake the queues, and nothing else of it is used.

Two things an event handler of kopf cannot know are found on the HTTP session that we hand to it. That a watch has
(re)begun after a list: only then can a list of our own tell what is missing in the cache and what is gone from the
cluster (kopf reports no deletion that happened while it was not watching), and so when the cache is complete. And that
bytes still arrive on each watch, bookmarks included: a silent watch is a dead one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiException

from shipkeeper.resources.base import GROUP
from shipkeeper_operator.children.metadata import MANAGED_BY
from shipkeeper_operator.cluster import LIST_CHUNK, Cluster
from shipkeeper_operator.connection import Connection
from shipkeeper_operator.errors import api_message
from shipkeeper_operator.handlers.stateless import NoDiffBase, NoProgress
from shipkeeper_operator.kinds import ApiKind
from shipkeeper_operator.metrics import Metrics
from shipkeeper_operator.routing import Key, Routes

_RETRY_SECONDS = 2.0

_log = logging.getLogger(__name__)


class _EndlessBackoff:
    """Delays between attempts of kopf's requests, in seconds: an API server that is away must not end the operator."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.1
        while True:
            yield delay
            delay = min(delay * 2, 5.0)


@dataclass
class _Stream:
    """One watch as seen on the wire."""

    listed: bool = False
    content: aiohttp.StreamReader | None = None
    seen_bytes: int = 0
    active_at: float = float("-inf")


@dataclass
class _Watch:
    """The state of one kind's watches (one per namespace, or one for the cluster)."""

    streams: dict[str, _Stream] = field(default_factory=dict)
    compare: asyncio.Event = field(default_factory=asyncio.Event)
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    absent: bool = False


class Watches:
    """All watches of the process: what they told, whether they are complete, whether they live."""

    def __init__(
        self,
        kinds: Iterable[ApiKind],
        *,
        cluster: Cluster,
        routes: Routes,
        metrics: Metrics,
        wake: Callable[[Key], None],
    ) -> None:
        """Take the kinds to watch; nothing is requested yet."""
        self._kinds = {kind.kind: kind for kind in kinds}
        self._collections = {kind.collection: kind.kind for kind in self._kinds.values()}
        self._watches = {name: _Watch() for name in self._kinds}
        self._cluster = cluster
        self._routes = routes
        self._metrics = metrics
        self._wake = wake
        self._one_list = asyncio.Lock()  # Lists are the largest answers: one at a time keeps the memory's peak low.

    def is_synced(self) -> bool:
        """Whether the cache holds all there is of every kind."""
        return all(watch.synced.is_set() for watch in self._watches.values())

    async def wait_synced(self) -> None:
        """Wait until the cache holds all there is of every kind: no decision may be made before."""
        for watch in self._watches.values():
            await watch.synced.wait()

    def silence_seconds(self) -> Mapping[str, float]:
        """Return for every kind how long its quietest watch said nothing; infinite for one that never spoke."""
        now = time.monotonic()
        return {
            name: 0.0
            if watch.absent
            else now - min((stream.active_at for stream in watch.streams.values()), default=float("-inf"))
            for name, watch in self._watches.items()
        }

    def sample(self) -> None:
        """Note which watches received bytes since the last sample."""
        for watch in self._watches.values():
            for stream in watch.streams.values():
                if stream.content is not None and stream.content.total_bytes != stream.seen_bytes:
                    stream.seen_bytes = stream.content.total_bytes
                    stream.active_at = time.monotonic()

    def leave_out(self, kinds: Iterable[str]) -> None:
        """Do without these kinds: the API server does not know them."""
        for kind in kinds:
            self._watches[kind].absent = True
            self._watches[kind].synced.set()

    def compare_all(self) -> None:
        """Have every kind compared with a list (the slow resync)."""
        for watch in self._watches.values():
            if not watch.absent:
                watch.compare.set()

    async def keep_complete(self, kind: str) -> None:
        """Compare the cache with a list whenever a watch began after a gap, or when the slow resync asks for it."""
        watch = self._watches[kind]
        while True:
            await watch.compare.wait()
            watch.compare.clear()
            try:
                async with self._one_list:
                    drift = await self._cluster.compare_with_server(kind)
            except (ApiException, aiohttp.ClientError, OSError, TimeoutError) as error:
                cause = api_message(error) if isinstance(error, ApiException) else type(error).__name__
                _log.warning("%s could not be listed: %s", kind, cause)
                self._metrics.lists.labels(kind, "failed").inc()
                await asyncio.sleep(_RETRY_SECONDS)
                watch.compare.set()
                continue
            self._metrics.lists.labels(kind, "compared").inc()
            if watch.synced.is_set():
                self._metrics.missed.labels(kind).inc(len(drift.changed) + len(drift.gone))
            watch.synced.set()
            for obj in (*drift.changed, *drift.gone):
                self._wake_for(obj)

    async def observe_request(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Middleware of kopf's session: see lists and watches go by."""
        found = self._find(request.url.path)
        if found is None:
            return await handler(request)
        watch, stream = found
        if "watch" not in request.url.query:
            stream.listed = True
            return await handler(request)
        response = await handler(request)
        if response.status == 200:
            stream.content, stream.seen_bytes, stream.active_at = response.content, 0, time.monotonic()
            if stream.listed:
                stream.listed = False
                watch.compare.set()
        return response

    def _find(self, path: str) -> tuple[_Watch, _Stream] | None:
        """Return whose collection a request's path is, and which of its watches."""
        namespace = ""
        if "/namespaces/" in path:
            base, _, rest = path.partition("/namespaces/")
            namespace, _, plural = rest.partition("/")
            path = f"{base}/{plural}"
        kind = self._collections.get(path)
        if kind is None:
            return None
        watch = self._watches[kind]
        return watch, watch.streams.setdefault(namespace, _Stream())

    def receive(self, type_: str | None, obj: Mapping[str, Any]) -> None:
        """Take one watch event: into the cache, and wake whom it concerns unless it is our own write's echo."""
        metadata, kind = obj["metadata"], obj["kind"]
        self._metrics.watch_events.labels(kind, type_ or "LISTED").inc()
        if type_ == "DELETED":
            news = self._cluster.cache.remove(kind, (metadata["namespace"], metadata["name"]), uid=metadata["uid"])
        else:
            news = self._cluster.cache.put(obj)
        if news:
            self._wake_for(obj)

    def _wake_for(self, obj: Mapping[str, Any]) -> None:
        for key in self._routes.wakes(obj):
            self._wake(key)


def kopf_registry(kinds: Iterable[ApiKind], *, watches: Watches, connection: Connection) -> kopf.OperatorRegistry:
    """Return kopf's handlers: one `on.event` per watched kind, and the login."""
    registry = kopf.OperatorRegistry()

    async def receive_event(event: Mapping[str, Any], **_: Any) -> None:
        watches.receive(event["type"], event["object"])

    async def log_in(**_: Any) -> kopf.AiohttpSession:
        session = connection.watch_session(watches.observe_request)
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)

    for kind in kinds:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(receive_event)
    kopf.on.login(registry=registry)(log_in)
    return registry


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watch, and do nothing of its own."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.watching.chunk_size = LIST_CHUNK
    # A task of kopf's lives on for so long after its object's last event, and holds that event.
    settings.queueing.idle_timeout = 0.2
    settings.networking.error_backoffs = _EndlessBackoff()
    settings.networking.request_timeout = 30
    # Other people's Deployments and pods are filtered by the API server; our own kinds carry no such label.
    selector = ",".join(f"{label}={value}" for label, value in MANAGED_BY.items())
    settings.watching.label_selectors[lambda resource: resource.group != GROUP] = selector
    return settings
