"""What a RateLimitPolicy's status says of its store's faults, each caused for real, and that nothing is hidden.

How soon a fault is followed is measured with the whole operator: tests/cluster/ratelimitpolicy.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from shipkeeper.limits import AsyncLimiter
from shipkeeper.limits.failures import StoreError, StoreFailure
from shipkeeper_operator.effects.stores import STORES, problem_of
from shipkeeper_operator.observe.ratelimitpolicy import observe
from shipkeeper_operator.reconcile.ratelimitpolicy import LOOK_AGAIN, reconcile
from shipkeeper_operator.reconcile.ratelimitpolicy_facts import PastRepair
from support.limit_faults import (
    Switch,
    cluster_node,
    cluster_replica,
    holder_of,
    is_primary,
    move_slot,
    wait_until,
)
from support.policy_loop import Loop
from support.redis_server import PASSWORD, RedisServer, redis_cluster

pytestmark = pytest.mark.integration

BY_DAY: dict[str, Any] = {"limits": [{"name": "day", "amount": 15, "period": "Day"}]}
ENFORCED = ("True", "ReadBack")
KEY = "x:{birthday}:y"


@pytest.fixture
async def loop(policy_name: str) -> AsyncIterator[Loop]:
    yield Loop(dict(BY_DAY), uid=policy_name)
    await STORES.close()


@pytest.fixture
async def cluster_loop(policy_name: str) -> AsyncIterator[Loop]:
    yield Loop({"store": {"topology": "Cluster"}, **BY_DAY}, uid=policy_name)
    await STORES.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def expect_no_churn(loop: Loop) -> None:
    """However long a fault lasts, it is looked at every few seconds and nothing is written anew."""
    writes = loop.status_writes
    for _ in range(3):
        loop.later(minutes=10)
        await loop.look()
        assert loop.outcome is not None
        assert loop.outcome.requeue_after == LOOK_AGAIN
    assert loop.status_writes == writes


async def expect_enforced(loop: Loop) -> None:
    conditions = await loop.look()
    assert conditions["Ready"] == ("True", "PolicyEnforced")
    assert conditions["Enforced"] == ENFORCED
    assert conditions["StoreReachable"] == ("True", "Answered")
    assert not {"Stalled", "Reconciling"} & set(conditions)


async def test_a_restart_without_data_names_library_and_policy(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await loop.look()
    server.restart()
    await asyncio.sleep(0.1)  # the loop notices that the connection died
    await expect_enforced(loop)
    where = f"127.0.0.1:{server.port}"
    said = f"The function library was gone from {where}. The policy was gone from {where}."
    repair = loop.status["lastRepair"]
    assert (repair["reason"], repair["message"]) == ("ConfigMissing", said)
    assert [(event.type, event.reason) for event in loop.events] == [("Warning", "StoreRepaired")]
    assert loop.events[0].message.startswith(said)
    assert loop.status["stateLostAt"]
    # What was said once is not said again with the next loss.
    loop.later(seconds=30)
    with server.client() as admin:
        admin.function_flush()
    await loop.look()
    assert loop.status["lastRepair"]["message"] == f"The function library was gone from {where}."
    assert len(loop.events) == 2


async def test_a_repair_is_said_though_the_next_write_fails(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await loop.look()
    with server.client() as admin:
        admin.delete("shipkeeper:{birthday}:config:birthday-limits")
    resource = loop.resource
    observed = await observe(resource, loop.secrets)
    assert observed.address is not None
    failed = problem_of(StoreError(StoreFailure.TIMEOUT, "host:1"), observed.address)
    repair = PastRepair(loop.now.replace(microsecond=0), "LibraryMissing", "The function library was gone from host:1.")
    outcome = reconcile(resource, replace(observed, repair=repair, write_problem=failed), now=loop.now)
    conditions = {each.type: (each.status, each.reason) for each in outcome.status.conditions}
    assert conditions["Enforced"] == ("False", "StoreTimeout")
    assert outcome.status.last_repair is not None
    assert outcome.status.last_repair.message == repair.message
    assert [event.reason for event in outcome.events] == ["StoreRepaired"]


def fill(server: RedisServer) -> None:
    with server.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")


def make_room(server: RedisServer) -> None:
    with server.client() as admin:
        admin.config_set("maxmemory", "0")


def demote(server: RedisServer) -> None:
    with server.client() as admin:
        admin.replicaof("127.0.0.1", "1")


def promote(server: RedisServer) -> None:
    with server.client() as admin:
        admin.replicaof("NO", "ONE")


def demand_replicas(server: RedisServer) -> None:
    with server.client() as admin:
        admin.config_set("min-replicas-to-write", "1")


def demand_no_replicas(server: RedisServer) -> None:
    with server.client() as admin:
        admin.config_set("min-replicas-to-write", "0")


@pytest.mark.parametrize(
    ("cause", "mend", "reason", "needs_person"),
    [
        (fill, make_room, "StoreOutOfMemory", False),
        (demote, promote, "StoreReadOnly", True),
        (demand_replicas, demand_no_replicas, "StoreTooFewReplicas", False),
    ],
    ids=["maxmemory", "replica", "too few replicas"],
)
async def test_a_store_that_answers_and_counts_nothing_does_not_enforce(
    loop: Loop,
    server: RedisServer,
    cause: Callable[[RedisServer], None],
    mend: Callable[[RedisServer], None],
    reason: str,
    needs_person: bool,
) -> None:
    loop.secrets.put(server.url)
    await expect_enforced(loop)
    cause(server)
    conditions = await loop.look()
    assert conditions["Ready"] == ("False", reason)
    assert conditions["Enforced"] == ("False", reason)
    assert conditions["StoreReachable"] == ("True", "Answered")
    assert conditions["CountersSafe"] == ("True", "NoEviction")
    assert ("Stalled" in conditions) is needs_person
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        assert f"Store{(await limiter.acquire()).store_failure}" == reason, "status and verdict say the same"
    await expect_no_churn(loop)
    mend(server)
    await expect_enforced(loop)
    assert "lastRepair" not in loop.status, "nothing was lost"


async def test_a_store_that_cannot_save_does_not_enforce(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await expect_enforced(loop)
    shutil.rmtree(server.folder)
    with server.client() as admin:
        admin.config_set("save", "3600 1")
        admin.bgsave()
        wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err", "the failed save")
        conditions = await loop.look()
        assert conditions["Ready"] == ("False", "StorePersistenceFailed")
        assert conditions["Enforced"][0] != "True"
        await expect_no_churn(loop)
        admin.config_set("stop-writes-on-bgsave-error", "no")
        await expect_enforced(loop)
    server.folder.mkdir()


async def test_what_is_lost_in_a_full_store_is_put_back_once_there_is_room(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await expect_enforced(loop)
    fill(server)
    with server.client() as admin:
        admin.flushall()
    assert (await loop.look())["Enforced"] == ("False", "StoreOutOfMemory")
    assert loop.outcome is not None
    assert not loop.outcome.effects, "a write that must fail is not tried"
    make_room(server)
    await expect_enforced(loop)
    assert loop.status["lastRepair"]["reason"] == "ConfigMissing"


async def test_a_stopped_server_is_unknown_and_then_enforced_again(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await expect_enforced(loop)
    server.pause()
    conditions = await loop.look()
    assert conditions["Enforced"] == ("Unknown", "StoreTimeout")
    assert conditions["StoreReachable"] == ("False", "StoreTimeout")
    assert "Stalled" not in conditions
    await expect_no_churn(loop)
    server.resume()
    await expect_enforced(loop)
    assert "lastRepair" not in loop.status


@pytest.mark.parametrize("lost", ["-fcall", "-set", "-info", "resetkeys"])
async def test_a_permission_lost_later_is_said_and_looked_for(loop: Loop, server: RedisServer, lost: str) -> None:
    whole = ("on", f">{PASSWORD}", "+@all", "~*")
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "operator", *whole)
        loop.secrets.put(server.url.replace("redis://:", "redis://operator:"))
        await expect_enforced(loop)
        admin.execute_command("ACL", "SETUSER", "operator", lost)
        conditions = await loop.look()
        assert conditions["Stalled"] == ("True", "StorePermissionDenied")
        assert conditions["Enforced"] == ("Unknown", "StorePermissionDenied")
        await expect_no_churn(loop)
        admin.execute_command("ACL", "SETUSER", "operator", *whole)
        await expect_enforced(loop)


async def test_a_wrong_password_is_looked_for_however_long_it_lasts(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url.replace(PASSWORD, "hidden-word"))
    assert (await loop.look())["Stalled"] == ("True", "StoreAuthFailed")
    await expect_no_churn(loop)
    loop.secrets.put(server.url)
    await expect_enforced(loop)


def has_library_and_policy(replica: RedisServer) -> bool:
    with replica.client() as admin:
        return bool(admin.function_list()) and admin.dbsize() == 1


async def test_an_address_that_leads_to_another_primary_is_followed(loop: Loop) -> None:
    """An open connection still leads to the old primary, which answers every read as if nothing had happened."""
    with RedisServer() as old, RedisServer(options=("--replicaof", f"127.0.0.1 {old.port}")) as new:
        with new.client() as replica, old.client() as primary, Switch(old.port) as switch:
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica's link")
            loop.secrets.put(old.url.replace(str(old.port), str(switch.port)))
            await expect_enforced(loop)
            run_id = replica.info("server")["run_id"]
            wait_until(lambda: has_library_and_policy(new), "the replica's copy")
            switch.target = new.port
            replica.replicaof("NO", "ONE")
            primary.replicaof("127.0.0.1", str(new.port))
            await loop.look()
            await expect_enforced(loop)
            assert loop.status["primaries"][0]["runId"] == run_id
        await STORES.close()


async def test_a_new_primary_of_a_cluster_gets_the_library(cluster_loop: Loop) -> None:
    loop = cluster_loop
    with redis_cluster() as servers, cluster_node(servers[0]) as new:
        loop.secrets.put(servers[0].url)
        await expect_enforced(loop)
        move_slot(servers, new, KEY)
        await expect_enforced(loop)
        where = f"127.0.0.1:{new.port}"
        assert loop.status["lastRepair"]["message"] == f"The function library was gone from {where}."
        found = {each["address"]: each for each in loop.status["primaries"]}
        assert len(found) == 4
        assert found[where]["holdsPolicy"]
        assert found[where]["libraryVersion"] == loop.status["libraryVersion"]
        assert found[where]["configHash"] == loop.status["configHash"]
        await STORES.close()


async def test_a_primary_that_refuses_the_library_keeps_it_from_no_other(cluster_loop: Loop) -> None:
    loop = cluster_loop
    with redis_cluster() as servers:
        loop.secrets.put(servers[0].url)
        await expect_enforced(loop)
        holder = holder_of(servers, KEY)
        others = [server for server in servers if server is not holder]
        for server in others:
            with server.client() as admin:
                admin.function_flush()
        fill(others[0])
        assert (await loop.look())["Enforced"] == ("False", "StoreOutOfMemory")
        with others[1].client() as admin:
            assert admin.function_list(), "it was not reached because another refused"
        make_room(others[0])
        await expect_enforced(loop)
        await STORES.close()


async def test_a_repair_of_one_primary_keeps_what_the_others_count(cluster_loop: Loop) -> None:
    loop = cluster_loop
    # A breaker's state is read at every look, and the use of the limits with it.
    loop.manifest["spec"]["circuitBreaker"] = {"consecutiveFailures": 3}
    with redis_cluster() as servers:
        loop.secrets.put(servers[0].url)
        await expect_enforced(loop)
        holder = holder_of(servers, KEY)
        async with AsyncLimiter.from_url(
            servers[0].url, namespace="birthday", policy="birthday-limits", topology="Cluster"
        ) as limiter:
            assert not (await limiter.acquire(cost=15)).reason
            assert (await limiter.acquire()).reason == "LimitReached"
        with next(server for server in servers if server is not holder).client() as admin:
            admin.function_flush()
        await expect_enforced(loop)
        loop.later(seconds=31)
        await loop.look()
        assert loop.status["limits"][0]["denied"] == 1
        await STORES.close()


async def test_a_failover_of_a_cluster_is_followed(cluster_loop: Loop) -> None:
    loop = cluster_loop
    with redis_cluster() as servers:
        primary = holder_of(servers, KEY)
        other = next(server for server in servers if server is not primary)
        with cluster_replica(primary) as replica:
            loop.secrets.put(other.url)
            await expect_enforced(loop)
            wait_until(lambda: has_library_and_policy(replica), "the replica's copy")
            primary.kill()
            conditions = await loop.look()
            assert conditions["Enforced"][0] == "Unknown"
            assert "Stalled" not in conditions
            await asyncio.to_thread(wait_until, lambda: is_primary(replica), "the promotion")
            async with asyncio.timeout(20):
                while (await loop.look())["Enforced"] != ENFORCED:  # noqa: ASYNC110 - looking is the work
                    await asyncio.sleep(0.1)
            assert f"127.0.0.1:{replica.port}" in {each["address"] for each in loop.status["primaries"]}
            assert "lastRepair" not in loop.status, "library and policy were replicated"
        await STORES.close()
