"""Sentinel and Cluster on every server the limiter promises to work on, and both over TLS."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from shipkeeper.limits import AsyncLimiter, Limiter
from shipkeeper.limits.compiler import compile_policy
from shipkeeper.limits.connection import AsyncStore, StoreAddress, Topology
from shipkeeper.limits.function_library import library_version
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.limits.store import install_config, install_library, read_store
from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable
from support.limit_policies import NAMESPACE, PATIENT, spec_of
from support.redis_server import RedisServer, SentinelSetup, cluster_node, redis_cluster, redis_sentinel, wait_for
from support.server_programs import SERVERS, make_tls, server_program

pytestmark = pytest.mark.integration

THIRTY_A_DAY: Final[dict[str, Any]] = {"limits": [{"name": "day", "amount": 30, "period": "Day"}]}
MASTER: Final = "tests"


def patient_store(url: str, topology: Topology) -> AsyncStore:
    """The operator's way to a store, which waits longer here: the machine may be busy with other tests."""
    address = StoreAddress(url=url, topology=topology, sentinel_master=MASTER if topology == "Sentinel" else None)
    return AsyncStore(address, timeout=20)


async def install_with(store: AsyncStore, *, namespace: str = NAMESPACE, policy: str = "limits") -> None:
    keys = PolicyKeys(namespace=namespace, policy=policy)
    await install_library(store)
    await install_config(store, keys, compile_policy(spec_of(THIRTY_A_DAY), keys, now=datetime.now(UTC)))


async def install_on(url: str, topology: Topology) -> None:
    store = patient_store(url, topology)
    await install_with(store)
    await store.close()


def options_of(topology: Topology, policy: str | tuple[str, ...], namespace: str) -> dict[str, Any]:
    master = MASTER if topology == "Sentinel" else None
    place = {"namespace": namespace, "policy": policy, "topology": topology, "sentinel_master": master}
    return place | {"on_store_unavailable": PATIENT}


def async_limiter(
    url: str, topology: Topology, policy: str | tuple[str, ...] = "limits", namespace: str = NAMESPACE
) -> AsyncLimiter:
    return AsyncLimiter.from_url(url, **options_of(topology, policy, namespace))


def remaining_after(
    url: str, topology: Topology, policy: str | tuple[str, ...] = "limits", namespace: str = NAMESPACE
) -> list[int]:
    """Make one call by the limiter for threads, and return what is left of each limit."""
    with Limiter.from_url(url, **options_of(topology, policy, namespace)) as limiter:
        verdict = limiter.acquire()
        assert (verdict.allowed, verdict.store_failure) == (True, "")
        return [limit.remaining for limit in verdict.limits]


async def until_the_store_answers(limiter: AsyncLimiter) -> None:
    seen = []
    for _ in range(400):
        seen.append((await limiter.peek()).store_failure)
        if not seen[-1]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"the store did not come back: {seen}")


@pytest.mark.parametrize("name", SERVERS)
async def test_a_failover_keeps_policy_library_and_charges(name: str) -> None:
    with redis_sentinel(program=server_program(name)) as setup:
        await install_on(setup.url, "Sentinel")
        async with async_limiter(setup.url, "Sentinel") as limiter:
            assert (await limiter.acquire(cost=4)).allowed
            await asyncio.to_thread(setup.catch_up)
            await asyncio.to_thread(setup.failover)
            await until_the_store_answers(limiter)
            verdict = await limiter.acquire()
            assert [limit.remaining for limit in verdict.limits] == [25]
            assert verdict.library_version == library_version()
        assert await asyncio.to_thread(remaining_after, setup.url, "Sentinel") == [24]
        await assert_primary_is(setup, setup.replica)


async def assert_primary_is(setup: SentinelSetup, server: RedisServer) -> None:
    store = patient_store(setup.url, "Sentinel")
    (primary,) = (await read_store(store, PolicyKeys(namespace=NAMESPACE, policy="limits"))).primaries
    await store.close()
    assert primary.address == f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module", params=SERVERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[list[RedisServer]]:
    """Three primaries."""
    with redis_cluster(program=server_program(request.param)) as servers:
        yield servers


@pytest.fixture
async def store(cluster: list[RedisServer]) -> AsyncIterator[AsyncStore]:
    """The cluster as the operator sees it."""
    store = patient_store(cluster[0].url, "Cluster")
    yield store
    await store.close()


async def namespaces_by_primary(store: AsyncStore) -> dict[str, str]:
    """Return a namespace whose keys live there, for each primary's address."""
    addresses = {primary.address for primary in await store.primaries()}
    found: dict[str, str] = {}
    for number in range(1000):
        holder = await store.primary_of(PolicyKeys(namespace=f"team-{number}", policy="everyone").config)
        found.setdefault(holder, f"team-{number}")
        if found.keys() == addresses:
            return found
    raise AssertionError(f"no namespace for each of {addresses}")


async def test_two_policies_are_charged_in_one_call_on_every_primary(
    cluster: list[RedisServer], store: AsyncStore
) -> None:
    namespaces = await namespaces_by_primary(store)
    assert len(namespaces) == 3
    both = ("everyone", "tenant")
    for holder, namespace in namespaces.items():
        for policy in both:
            await install_with(store, namespace=namespace, policy=policy)
        state = await read_store(store, PolicyKeys(namespace=namespace, policy="tenant"))
        assert {primary.library_version for primary in state.primaries} == {library_version()}
        assert [primary.address for primary in state.primaries if primary.config_hash] == [holder]
        async with async_limiter(cluster[1].url, "Cluster", both, namespace) as limiter:
            verdict = await limiter.acquire(("default", "default"), cost=2)
            assert [limit.remaining for limit in verdict.limits] == [28, 28]
        left = await asyncio.to_thread(remaining_after, cluster[2].url, "Cluster", both, namespace)
        assert left == [27, 27]


async def test_a_new_primary_lacks_the_library_until_it_is_installed(
    cluster: list[RedisServer], store: AsyncStore
) -> None:
    """Last on its cluster, which misses a slot when the new primary has gone."""
    await install_library(store)
    keys = PolicyKeys(namespace="late", policy="limits")
    with cluster_node(cluster[0].program) as newcomer:
        await asyncio.to_thread(join_with_the_slot_of, newcomer, cluster, keys.config)
        versions = {each.address: each.library_version for each in (await read_store(store, keys)).primaries}
        assert versions.pop(f"127.0.0.1:{newcomer.port}") == ""
        assert set(versions.values()) == {library_version()}
        async with async_limiter(cluster[0].url, "Cluster", namespace="late") as limiter:
            assert (await limiter.acquire()).store_failure == "LibraryMissing"
            await install_with(store, namespace="late")
            assert (await limiter.acquire()).allowed
        assert {each.library_version for each in (await read_store(store, keys)).primaries} == {library_version()}


def join_with_the_slot_of(newcomer: RedisServer, cluster: list[RedisServer], key: str) -> None:
    """Let the newcomer join the cluster, and give it the slot of a key, in which there is nothing yet."""
    with newcomer.client() as admin:
        admin.execute_command("CLUSTER MEET", "127.0.0.1", cluster[0].port)
        slot, identity = admin.execute_command("CLUSTER KEYSLOT", key), admin.execute_command("CLUSTER MYID")
        wait_for(lambda: admin.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the new primary's view")
    for server in (newcomer, *cluster):
        with server.client() as admin:
            wait_for(partial(knows, server, identity), "the news of it")
            admin.execute_command("CLUSTER SETSLOT", slot, "NODE", identity)


def knows(server: RedisServer, identity: str) -> bool:
    with server.client() as admin:
        return identity in str(admin.execute_command("CLUSTER NODES"))


async def test_sentinel_over_tls(tmp_path: Path) -> None:
    with redis_sentinel(program=server_program("Redis 8"), tls=make_tls(tmp_path)) as setup:
        await install_on(setup.url, "Sentinel")
        async with async_limiter(setup.url, "Sentinel") as limiter:
            assert (await limiter.acquire()).allowed
        assert await asyncio.to_thread(remaining_after, setup.url, "Sentinel") == [28]


async def test_cluster_over_tls(tmp_path: Path) -> None:
    with redis_cluster(program=server_program("Redis 8"), tls=make_tls(tmp_path)) as servers:
        await install_on(servers[0].url, "Cluster")
        async with async_limiter(servers[1].url, "Cluster") as limiter:
            assert (await limiter.acquire()).allowed
        assert await asyncio.to_thread(remaining_after, servers[2].url, "Cluster") == [28]


def test_silent_sentinels_take_no_longer_than_the_policy_s_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Connections open, and nobody ever answers.
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        options = options_of("Sentinel", "limits", NAMESPACE) | {
            "on_store_unavailable": OnStoreUnavailable(timeout="1s")
        }
        with Limiter.from_url(url, **options) as limiter:
            began = time.monotonic()
            assert limiter.acquire().store_failure == "MasterUnknown"
            assert time.monotonic() - began < 3, "one second, and slack for a busy machine"
