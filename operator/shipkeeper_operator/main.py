"""The operator's process: puts the parts together, runs them, ends them in order."""

import asyncio
import logging
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiException
from kubernetes.aio.config import ConfigException

from shipkeeper_operator.cluster import Cluster
from shipkeeper_operator.connection import Connection, connect
from shipkeeper_operator.controller import Controller, ResourceController
from shipkeeper_operator.effects.stores import STORES
from shipkeeper_operator.errors import api_message
from shipkeeper_operator.events import EventRecorder
from shipkeeper_operator.handlers.watches import Watches, kopf_registry, kopf_settings
from shipkeeper_operator.health import LONGEST_LOOP_LAG_SECONDS, HealthServer, LoopMonitor, Verdict
from shipkeeper_operator.kinds import CHILDREN, OPTIONAL_CHILDREN, POD, UNWATCHED, own_kind
from shipkeeper_operator.leader import Election, ElectionThread, LeadershipLostError
from shipkeeper_operator.logs import configure_logging
from shipkeeper_operator.metrics import Metrics
from shipkeeper_operator.registrations import registrations
from shipkeeper_operator.routing import Key, Routes
from shipkeeper_operator.settings import Settings, SettingsError, read_settings

# kopf reconnects a watch that was silent for 70 s; one that stays silent for this long is beyond its help.
LONGEST_WATCH_SILENCE_SECONDS = 240.0
LONGEST_API_SILENCE_SECONDS = 15.0
DRAIN_SECONDS = 10.0
_CRD_RETRY_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Operator:
    """One replica: a warm cache always, and workers while it leads."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        registrations: Sequence[ResourceController[Any, Any, Any, Any]],
    ) -> None:
        """Put the parts together; nothing is requested yet."""
        self._settings = settings
        self._connection = connection
        self._metrics = Metrics()
        own = [own_kind(registration.kind) for registration in registrations]
        self._own_kinds = [kind.kind for kind in own]
        self._watched = (*own, *CHILDREN, *OPTIONAL_CHILDREN, POD)
        self._cluster = Cluster(
            connection.dynamic_client(),
            kinds=(*self._watched, *UNWATCHED),
            own_kinds=frozenset(self._own_kinds),
            metrics=self._metrics,
            namespaces=settings.watch_namespaces,
            may_write=lambda: self._election.is_leading,
        )
        self._election = ElectionThread(lambda: open_election(settings, self._metrics))
        routes = Routes(own_kinds=self._own_kinds)
        recorder = EventRecorder(self._cluster, instance=settings.identity, metrics=self._metrics)
        self._controllers = {
            registration.kind.kind: Controller(
                registration,
                cluster=self._cluster,
                routes=routes,
                recorder=recorder,
                metrics=self._metrics,
                wake=self._wake,
            )
            for registration in registrations
        }
        self._watches = Watches(
            self._watched, cluster=self._cluster, routes=routes, metrics=self._metrics, wake=self._wake
        )
        self._monitor = LoopMonitor(self._metrics)
        self._health = HealthServer(
            host=settings.http_host, port=settings.http_port, live=self._live, ready=self._ready, scrape=self._scrape
        )
        self._stop = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Run until told to stop (0) or until something that must not end has ended (1)."""
        self._catch_signals()
        await self._health.start()
        _log.info("Serving /healthz, /readyz and /metrics on port %d", self._health.port)
        # All of these begin before kopf does: at its end kopf cancels every task that began after it.
        stopped = asyncio.create_task(self._stop.wait(), name="stop signal")
        background = [
            asyncio.create_task(self._monitor.run(), name="loop monitor"),
            asyncio.create_task(self._sample(), name="watch monitor"),
            asyncio.create_task(self._resync(), name="slow resync"),
            *(
                asyncio.create_task(self._watches.keep_complete(kind.kind), name=f"list {kind.kind}")
                for kind in self._watched
            ),
        ]
        leading = asyncio.create_task(self._lead(), name="leader election")
        kopf_stop = asyncio.Event()
        watching = asyncio.create_task(self._watch(kopf_stop), name="watches")
        try:
            await asyncio.wait([stopped, leading, watching, *background], return_when=asyncio.FIRST_COMPLETED)
            failures = [(task.get_name(), task.exception()) for task in (leading, watching, *background) if task.done()]
            for name, error in failures:
                _log.error("Ending, because this ended: %s: %s", name, error, exc_info=_unexpected(error))
            return 1 if failures and not self._stop.is_set() else 0
        finally:
            await self._drain()
            await self._cancel(leading)
            await self._election.close()
            await self._health.stop()
            kopf_stop.set()
            await self._cancel(*background, stopped)
            await asyncio.wait([watching], timeout=DRAIN_SECONDS)
            await self._cancel(watching)
            await self._connection.close()

    # --- Parts that run all the time -----------------------------------------------------------------------------

    async def _watch(self, stop: asyncio.Event) -> None:
        """Let kopf watch, once the API server knows our kinds."""
        await self._wait_for_crds()
        absent = await self._find_absent_kinds()
        self._cluster.absent_kinds = absent
        self._watches.leave_out(absent)
        watched = [kind for kind in self._watched if kind.kind not in absent]
        ready = asyncio.Event()
        signals = asyncio.create_task(self._catch_signals_again(ready), name="signals")
        namespaces = self._settings.watch_namespaces
        # kopf's own guess asks the system for the user's name, which a container's user may not have. The type is a
        # string, named in a private module.
        identity: Any = self._settings.identity
        try:
            await kopf.operator(
                registry=kopf_registry(watched, watches=self._watches, connection=self._connection),
                settings=kopf_settings(),
                clusterwide=not namespaces,
                namespaces=namespaces,
                standalone=True,
                identity=identity,
                stop_flag=stop,
                ready_flag=ready,
            )
        finally:
            signals.cancel()

    async def _wait_for_crds(self) -> None:
        missing = list(self._own_kinds)
        while missing:
            try:
                missing = [kind for kind in missing if not await self._cluster.is_served(kind)]
                if missing:
                    _log.warning("The API server does not know %s: install crds/", ", ".join(missing))
            except (ApiException, aiohttp.ClientError, OSError, TimeoutError) as error:
                cause = api_message(error) if isinstance(error, ApiException) else type(error).__name__
                _log.warning("The API server does not answer: %s", cause)
                await asyncio.sleep(_CRD_RETRY_SECONDS)
                continue
            if missing:
                await asyncio.sleep(_CRD_RETRY_SECONDS)

    async def _find_absent_kinds(self) -> frozenset[str]:
        """Ask which of the kinds that a cluster may lack this one lacks, or keeps from us."""
        absent: set[str] = set()
        unasked = [kind.kind for kind in OPTIONAL_CHILDREN]
        while unasked:
            try:
                if not await self._cluster.is_served(unasked[0]):
                    absent.add(unasked[0])
            except ApiException as error:
                if error.status != 403:
                    _log.warning("The API server does not answer: %s", api_message(error))
                    await asyncio.sleep(_CRD_RETRY_SECONDS)
                    continue
                _log.warning("Doing without %s: %s", unasked[0], api_message(error))
                absent.add(unasked[0])
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.warning("The API server does not answer: %s", type(error).__name__)
                await asyncio.sleep(_CRD_RETRY_SECONDS)
                continue
            del unasked[0]
        return frozenset(absent)

    async def _lead(self) -> None:
        """Take the Lease, start the workers once the cache is complete, and keep the Lease."""
        await self._election.acquire()
        self._metrics.leader.set(1)
        starting = asyncio.create_task(self._start_workers(), name="start of the workers")
        try:
            await self._election.hold()
        finally:
            self._metrics.leader.set(0)
            starting.cancel()

    async def _start_workers(self) -> None:
        await self._watches.wait_synced()
        for controller in self._controllers.values():
            controller.wake_all()
            self._workers += [
                asyncio.create_task(controller.work(), name=f"{controller.kind} worker {number}")
                for number in range(self._settings.workers)
            ]
        _log.info("Reconciling")

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._watches.sample()

    async def _resync(self) -> None:
        """Every now and then compare the cache with the API server and look at every resource: reads only."""
        period = self._settings.resync_seconds
        while True:
            await asyncio.sleep(period * random.uniform(0.9, 1.1))  # noqa: S311
            self._watches.compare_all()
            for controller in self._controllers.values():
                controller.wake_all(spread_seconds=period / 2)

    # --- The end -------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _catch_signals_again(self, ready: asyncio.Event) -> None:
        """Take the signals back from kopf, which would end itself before our workers are done."""
        await ready.wait()
        self._catch_signals()

    async def _drain(self) -> None:
        """Let the workers finish what they hold, take nothing new."""
        for controller in self._controllers.values():
            controller.queue.close()
        if self._workers:
            await asyncio.wait(self._workers, timeout=DRAIN_SECONDS)
        await self._cancel(*self._workers)

    @staticmethod
    async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- What the probes and Prometheus ask ----------------------------------------------------------------------

    def _wake(self, key: Key) -> None:
        self._controllers[key.kind].queue.add(key)

    def _live(self) -> Verdict:
        """Alive: the event loop comes round, and no watch is dead although the API server answers."""
        lag = self._monitor.lag_seconds
        checks = {"eventLoop": f"lag {lag:.3f} s"}
        ok = lag < LONGEST_LOOP_LAG_SECONDS
        if self._watches.is_synced() and self._api_answers():
            for kind, silence in self._watches.silence_seconds().items():
                checks[f"watch {kind}"] = f"silent for {silence:.0f} s"
                ok = ok and silence < LONGEST_WATCH_SILENCE_SECONDS
        return Verdict(ok, checks)

    def _ready(self) -> Verdict:
        """Ready: the API server answers and the cache is complete. A standby is ready too."""
        answers, synced = self._api_answers(), self._watches.is_synced()
        self._metrics.ready.set(answers and synced)
        checks = {
            "apiServer": "answers" if answers else "does not answer",
            "cache": "complete" if synced else "incomplete",
            "role": "leader" if self._election.is_leading else "standby",
        }
        return Verdict(answers and synced, checks)

    def _api_answers(self) -> bool:
        """Whether the API server answered lately: the election asks it every two seconds, on a standby too."""
        answered_at = max(self._cluster.last_success, self._election.answered_at)
        return time.monotonic() - answered_at < LONGEST_API_SILENCE_SECONDS

    def _scrape(self) -> bytes:
        for watched in self._watched:
            self._metrics.cached.labels(watched.kind).set(self._cluster.cache.count(watched.kind))
        for kind, controller in self._controllers.items():
            self._metrics.count_resources(kind, controller.states())
        self._ready()
        return self._metrics.exposition()


def _unexpected(error: BaseException | None) -> BaseException | None:
    """Return the error if its traceback is of use."""
    return None if isinstance(error, LeadershipLostError) else error


@asynccontextmanager
async def open_election(settings: Settings, metrics: Metrics) -> AsyncIterator[Election]:
    """Make an election with a connection of its own."""
    connection = await connect()
    try:
        client = connection.dynamic_client()
        leases = Cluster(client, kinds=UNWATCHED, own_kinds=frozenset(), metrics=metrics, may_write=lambda: False)
        yield Election(leases, namespace=settings.namespace, identity=settings.identity)
    finally:
        await connection.close()


async def run_operator(settings: Settings, registrations: Sequence[ResourceController[Any, Any, Any, Any]]) -> int:
    """Connect and run one replica; return the process's exit code."""
    try:
        connection = await connect()
    except ConfigException as error:
        _log.error("No way to an API server, neither from a pod nor from KUBECONFIG: %s", error)
        return 2
    try:
        return await Operator(settings, connection, registrations).run()
    finally:
        await STORES.close()


def main() -> None:
    """Run the operator (`shipkeeper-operator`)."""
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.exit(f"shipkeeper-operator: {error}")
    configure_logging(settings.log_level)
    sys.exit(asyncio.run(run_operator(settings, registrations(settings))))


if __name__ == "__main__":
    main()
