"""One replica works at a time: leadership by a `coordination.k8s.io` Lease.

`kubernetes.aio.leaderelection` judges by the wall clock, in local time, and does not give the Lease back on shutdown,
so this is our own, small. A candidate trusts only its own monotonic clock: a Lease is free when it has not changed for
its duration since this candidate first saw it so. A leader that cannot renew stops before anybody else may begin: its
writes are refused once the renewal is overdue, whatever else still runs.

The election runs on a thread and an event loop of its own. On the operator's loop a flood of watch events could hold up
a renewal for seconds, and a busy leader would lose its Lease when it is needed most.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import aiohttp
from kubernetes.aio.client import ApiException

from shipkeeper_operator.errors import api_message

LEASE_NAME = "shipkeeper-operator"

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timings:
    """How leadership is kept, in seconds. A killed leader's standby begins at most `lease` seconds later."""

    lease: float = 8
    """A Lease that was not renewed for so long is free. Whole seconds: the Lease holds it so."""
    renew_deadline: float = 6
    """A leader that could not renew for so long stops."""
    retry: float = 2
    """Time between renewals, and between a candidate's looks."""


class LeaseStore(Protocol):
    """Where the Lease is kept."""

    async def fetch(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Read the Lease, None where there is none."""

    async def create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create the Lease."""

    async def replace(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace the Lease, if nobody changed it since it was read."""


class LeadershipLostError(Exception):
    """The Lease could not be renewed in time or belongs to another: this process must end."""


class Election:
    """One candidate for the Lease."""

    def __init__(
        self,
        store: LeaseStore,
        *,
        namespace: str,
        identity: str,
        timings: Timings = Timings(),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take part under this identity; nothing happens yet."""
        self._store = store
        self._namespace = namespace
        self._identity = identity
        self._timings = timings
        self._monotonic = monotonic
        self._sleep = sleep
        self._seen_version = ""
        self._seen_at = float("-inf")
        self._renewed_at = float("-inf")
        self.answered_at = float("-inf")
        """Monotonic time of the API server's last answer."""

    @property
    def is_leading(self) -> bool:
        """Whether this process may write now: it holds the Lease and renewed it recently enough."""
        return self._monotonic() - self._renewed_at < self._timings.renew_deadline

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        while True:
            wait = self._timings.retry
            try:
                if await self._try():
                    _log.info("This replica leads")
                    return
                # Look again at the very moment at which the Lease would be free.
                free_in = self._seen_at + self._timings.lease - self._monotonic()
                wait = min(wait, max(free_in, 0.05))
            except (ApiException, aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.warning("The Lease cannot be read or written: %s", _cause(error))
            await self._sleep(wait)

    async def hold(self) -> None:
        """Renew the Lease for as long as that works. Raises LeadershipLostError."""
        while True:
            await self._sleep(self._timings.retry)
            try:
                left = self._renewed_at + self._timings.renew_deadline - self._monotonic()
                async with asyncio.timeout(max(left, 0)):
                    if not await self._try():
                        self._renewed_at = float("-inf")
                        raise LeadershipLostError("another replica holds the Lease")
            except (ApiException, aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.warning("The Lease could not be renewed: %s", _cause(error))
            if not self.is_leading:
                raise LeadershipLostError(f"the Lease was not renewed within {self._timings.renew_deadline} s")

    async def release(self) -> None:
        """Give the Lease back, so that another replica begins at once. Writes are refused from here on."""
        if not self.is_leading:
            return
        self._renewed_at = float("-inf")
        with suppress(ApiException, aiohttp.ClientError, OSError, TimeoutError):
            lease = await self._store.fetch("Lease", self._namespace, LEASE_NAME)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._store.replace("Lease", lease)

    async def _try(self) -> bool:
        """Take or renew the Lease if that is possible now."""
        # Taken before the request: what counts is when the others may have seen it, not when the answer came.
        asked_at = self._monotonic()
        lease = await self._store.fetch("Lease", self._namespace, LEASE_NAME)
        self.answered_at = self._monotonic()
        try:
            if lease is None:
                await self._store.create("Lease", self._namespace, self._first_lease())
            elif self._may_take(lease):
                await self._store.replace("Lease", self._renewed(lease))
            else:
                return False
        except ApiException as error:
            if error.status == 409:  # Another candidate was faster.
                return False
            raise
        self._renewed_at = asked_at
        return True

    def _may_take(self, lease: dict[str, Any]) -> bool:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, self._monotonic()
        holder = lease["spec"].get("holderIdentity", "")
        return holder in ("", self._identity) or self._monotonic() - self._seen_at >= self._timings.lease

    def _first_lease(self) -> dict[str, Any]:
        now = _micro_time()
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE_NAME, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(self._timings.lease),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }

    def _renewed(self, lease: dict[str, Any]) -> dict[str, Any]:
        spec, now = lease["spec"], _micro_time()
        if spec.get("holderIdentity") == self._identity:
            changes: dict[str, Any] = {}
        else:
            changes = {"acquireTime": now, "leaseTransitions": spec.get("leaseTransitions", 0) + 1}
        mine = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._timings.lease),
            "renewTime": now,
            **changes,
        }
        return {**lease, "spec": {**spec, **mine}}


class ElectionThread:
    """An election that goes on, on time, whatever the operator's own event loop is busy with."""

    def __init__(self, open_election: Callable[[], AbstractAsyncContextManager[Election]]) -> None:
        """Take how to open the election; that is done on the thread, whose event loop its connections belong to."""
        self._open = open_election
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="leader election", daemon=True)
        self._resources = AsyncExitStack()
        self._election: Election | None = None

    @property
    def is_leading(self) -> bool:
        """Whether this process may write now."""
        return self._election is not None and self._election.is_leading

    @property
    def answered_at(self) -> float:
        """Monotonic time of the API server's last answer."""
        return self._election.answered_at if self._election is not None else float("-inf")

    async def acquire(self) -> None:
        """Begin, and wait until this process holds the Lease."""
        self._thread.start()
        election = await self._call(self._resources.enter_async_context(self._open()))
        self._election = election
        await self._call(election.acquire())

    async def hold(self) -> None:
        """Renew the Lease for as long as that works. Raises LeadershipLostError."""
        if self._election is not None:
            await self._call(self._election.hold())

    async def close(self) -> None:
        """Give the Lease back where it is held, and end the thread."""
        if not self._thread.is_alive():
            self._loop.close()
            return
        if self._election is not None:
            await self._call(self._election.release())
        await self._call(self._resources.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _call(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


def _cause(error: Exception) -> str:
    return api_message(error) if isinstance(error, ApiException) else type(error).__name__


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
