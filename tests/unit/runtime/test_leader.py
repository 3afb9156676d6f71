"""The election against a store with the API server's optimistic locking, and clocks that the test moves."""

import asyncio
import copy
from typing import Any

import pytest
from kubernetes.aio.client import ApiException

from shipkeeper_operator.leader import Election, LeadershipLostError, Timings

TIMINGS = Timings(lease=8, renew_deadline=6, retry=2)


class LeaseStore:
    """One Lease with a resourceVersion that a replace must name; can be made unreachable."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.reachable = True
        self.writes = 0
        self.conflict_once = False

    def _check(self) -> None:
        if not self.reachable:
            raise ConnectionError("unreachable")

    async def fetch(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        self._check()
        return copy.deepcopy(self.lease)

    async def create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.lease is not None:
            raise ApiException(status=409)
        return self._store(body)

    async def replace(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        assert self.lease is not None
        if self.conflict_once or body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            self.conflict_once = False
            raise ApiException(status=409)
        return self._store(body)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.writes += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.writes)
        return self.lease

    @property
    def holder(self) -> str:
        assert self.lease is not None
        holder: str = self.lease["spec"]["holderIdentity"]
        return holder


class World:
    """Time that passes only while somebody sleeps, and what each candidate does meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = LeaseStore()
        self.sleeps: list[float] = []
        self.at_sleep: list[Any] = []

    def candidate(self, identity: str) -> Election:
        return Election(
            self.store,
            namespace="n",
            identity=identity,
            timings=TIMINGS,
            monotonic=lambda: self.now,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        if self.at_sleep:
            self.at_sleep.pop(0)()
        await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


async def test_first_candidate_leads_at_once(world: World) -> None:
    first = world.candidate("a")
    assert not first.is_leading
    await first.acquire()
    assert first.is_leading
    assert world.store.holder == "a"
    assert world.store.lease is not None
    assert world.store.lease["spec"]["leaseDurationSeconds"] == 8
    assert world.sleeps == []


async def test_candidate_waits_for_the_lease_to_run_out_and_no_longer(world: World) -> None:
    await world.candidate("a").acquire()
    second = world.candidate("b")
    began = world.now
    await second.acquire()
    assert world.now - began == pytest.approx(8)
    assert world.store.holder == "b"
    assert world.store.lease is not None
    assert world.store.lease["spec"]["leaseTransitions"] == 1


async def test_renewed_lease_is_respected(world: World) -> None:
    first, second = world.candidate("a"), world.candidate("b")
    await first.acquire()

    taking = asyncio.create_task(second.acquire())
    renewals = 0
    while renewals < 10:
        renewals += 1
        await first._try()
        assert world.store.holder == "a"
        for _ in range(3):
            await asyncio.sleep(0)
    taking.cancel()
    assert world.store.holder == "a"


async def test_leader_knows_itself_overdue_without_being_told(world: World) -> None:
    first = world.candidate("a")
    await first.acquire()
    world.now += 5.9
    assert first.is_leading
    world.now += 0.2
    assert not first.is_leading


async def test_leader_stops_before_anybody_else_may_begin(world: World) -> None:
    first, second = world.candidate("a"), world.candidate("b")
    await first.acquire()
    world.store.reachable = False
    with pytest.raises(LeadershipLostError, match="not renewed within 6"):
        await first.hold()
    assert not first.is_leading
    world.store.reachable = True
    assert world.now - 1000 <= 8, "it gave up before its Lease ran out"
    await second.acquire()
    assert not first.is_leading


async def test_leader_holds_through_a_short_silence(world: World) -> None:
    first = world.candidate("a")
    await first.acquire()
    store = world.store

    def away() -> None:
        store.reachable = False

    def back() -> None:
        store.reachable = True

    def taken() -> None:
        assert store.lease is not None
        store.lease["spec"]["holderIdentity"] = "b"
        store.lease["metadata"]["resourceVersion"] = "foreign"

    world.at_sleep = [away, back, lambda: None, taken]
    with pytest.raises(LeadershipLostError, match="another replica"):
        await first.hold()
    assert not first.is_leading
    assert len(world.sleeps) == 4


async def test_lost_race_is_no_failure(world: World) -> None:
    await world.candidate("a").acquire()
    second = world.candidate("b")
    world.now += 1
    world.store.conflict_once = True
    await second.acquire()
    assert world.store.holder == "b"


async def test_unreachable_api_server_is_waited_for(world: World) -> None:
    world.store.reachable = False

    def back() -> None:
        world.store.reachable = True

    world.at_sleep = [lambda: None, lambda: None, back]
    await world.candidate("a").acquire()
    assert world.store.holder == "a"
    assert world.sleeps == [2, 2, 2]


async def test_released_lease_is_taken_at_once(world: World) -> None:
    first, second = world.candidate("a"), world.candidate("b")
    await first.acquire()
    await first.release()
    assert not first.is_leading
    assert world.store.holder == ""
    await second.acquire()
    assert world.sleeps == []


async def test_nothing_is_released_that_is_not_held(world: World) -> None:
    first, second = world.candidate("a"), world.candidate("b")
    await second.release()
    assert world.store.lease is None
    await first.acquire()
    world.now += 7
    await second.release()
    await first.release()
    assert world.store.holder == "a"


async def test_release_of_an_unreachable_lease_is_silent(world: World) -> None:
    first = world.candidate("a")
    await first.acquire()
    world.store.reachable = False
    await first.release()
    assert not first.is_leading


async def test_restarted_leader_of_the_same_name_goes_on(world: World) -> None:
    await world.candidate("a").acquire()
    again = world.candidate("a")
    await again.acquire()
    assert world.sleeps == []
    assert world.store.lease is not None
    assert world.store.lease["spec"]["leaseTransitions"] == 0
