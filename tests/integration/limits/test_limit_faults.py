"""Faults of the store, each caused for real: what a client is told, how soon, and that it finds back by itself.

The times measured are properties of each test's result; docs/limits.md quotes them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from shipkeeper.limits import Limiter
from support.limit_faults import (
    AMOUNT,
    SLACK_SECONDS,
    TIMEOUT_SECONDS,
    Asks,
    Load,
    StoreOfTest,
    Switch,
    cluster_node,
    cluster_replica,
    fail_policies,
    holder_of,
    is_primary,
    move_slot,
    wait_until,
)
from support.limit_policies import NAMESPACE, install
from support.redis_server import PASSWORD, RedisServer, SentinelSetup, redis_cluster, redis_sentinel

pytestmark = pytest.mark.integration

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])
# What a client may be told while a failover is under way; each is judged by the policy.
IN_A_FAILOVER = {"Unreachable", "Timeout", "MasterUnknown", "MasterDown", "ReadOnly", "ClusterDown", "Loading"}
Measured = Callable[[str, object], None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Note a figure with the test's result."""

    def note(name: str, value: object) -> None:
        request.node.user_properties.append((name, value))
        print(f"{request.node.name}: {name} {value}")

    return note


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@KINDS
def test_flushed_scripts_are_no_fault(kind: str, server: RedisServer) -> None:
    with fail_policies(StoreOfTest(url=server.url), kind) as clients, server.client() as admin:
        admin.script_flush()
        clients.expect_store()


@KINDS
@pytest.mark.parametrize(
    ("loss", "failure"),
    [(["FUNCTION", "FLUSH"], "LibraryMissing"), (["FLUSHALL"], "ConfigMissing")],
    ids=["functions", "keys"],
)
def test_what_was_flushed_is_named(kind: str, server: RedisServer, loss: list[str], failure: str) -> None:
    with fail_policies(StoreOfTest(url=server.url), kind) as clients, server.client() as admin:
        admin.execute_command(*loss)
        clients.expect_failure(failure)


@KINDS
def test_a_killed_server_that_comes_back_with_its_data(kind: str, measured: Measured) -> None:
    with RedisServer(appendonly=True, options=("--appendfsync", "always")) as server:
        store = StoreOfTest(url=server.url)
        with fail_policies(store, kind) as clients:
            server.kill()
            clients.expect_failure("Unreachable")
            server.start()
            clients.expect_store()
            verdict = clients.clients["deny"].peek()
            assert verdict.limits[0].remaining == AMOUNT - 2, "one call before the kill, one after the start"
            measured("slowest_verdict_seconds", round(clients.slowest, 3))


@KINDS
def test_a_killed_server_that_comes_back_empty(kind: str, server: RedisServer) -> None:
    store = StoreOfTest(url=server.url)
    with fail_policies(store, kind) as clients:
        server.restart()
        clients.expect_failure("LibraryMissing")
        store.install("somebody-else's")
        assert clients.clients["deny"].acquire().store_failure == "ConfigMissing"
        store.install("deny")
        assert clients.clients["deny"].acquire().limits[0].remaining == AMOUNT - 1


@KINDS
def test_a_stopped_server(kind: str, server: RedisServer, measured: Measured) -> None:
    with fail_policies(StoreOfTest(url=server.url), kind) as clients:
        server.pause()
        stopped = time.monotonic()
        clients.expect_failure("Timeout")
        time.sleep(max(0.0, stopped + 2 - time.monotonic()))
        server.resume()
        clients.expect_store()
        remaining = clients.clients["deny"].peek().limits[0].remaining
        # Three calls were sent and their answers given up: each may have been charged late, none twice.
        assert AMOUNT - 5 <= remaining <= AMOUNT - 2
        measured("slowest_verdict_seconds", round(clients.slowest, 3))


@KINDS
def test_a_server_at_maxmemory(kind: str, server: RedisServer, measured: Measured) -> None:
    with fail_policies(StoreOfTest(url=server.url), kind) as clients, server.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        clients.expect_failure("OutOfMemory")
        assert clients.clients["deny"].peek().limits[0].remaining == AMOUNT - 1, "a look writes nothing"
        admin.config_set("maxmemory", "0")
        clients.expect_store()
        measured("slowest_verdict_seconds", round(clients.slowest, 3))


@KINDS
@pytest.mark.parametrize("lost", ["-fcall", "-set", "resetkeys"])
def test_a_user_that_loses_a_permission_and_gets_it_back(kind: str, server: RedisServer, lost: str) -> None:
    whole = ("on", f">{PASSWORD}", "+@all", "~*")
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "application", *whole)
        store = StoreOfTest(url=server.url.replace("redis://:", "redis://application:"))
        with fail_policies(store, kind) as clients:
            admin.execute_command("ACL", "SETUSER", "application", lost)
            clients.expect_failure("PermissionDenied")
            admin.execute_command("ACL", "SETUSER", "application", *whole)
            clients.expect_store()


def test_a_primary_without_the_library_fails_for_its_own_namespaces_alone() -> None:
    with redis_cluster() as servers:
        store = StoreOfTest(url=servers[0].url, topology="Cluster")
        homes = {f"space-{number}": holder_of(servers, f"x:{{space-{number}}}:y") for number in range(12)}
        victim = holder_of(servers, "x:{space-0}:y")
        for namespace in homes:
            store.install("limits", namespace=namespace)
        with victim.client() as admin:
            admin.function_flush()
        verdicts = {}
        for namespace in homes:
            with store.limiter("limits", namespace=namespace) as limiter:
                verdicts[namespace] = limiter.acquire().store_failure
        assert verdicts == {space: "LibraryMissing" if home is victim else "" for space, home in homes.items()}
        assert set(verdicts.values()) == {"LibraryMissing", ""}


@KINDS
def test_a_lost_primary_is_no_fault_for_the_namespaces_of_others(kind: str) -> None:
    with redis_cluster() as servers, ExitStack() as later:
        for server in servers:
            with server.client() as admin:
                admin.config_set("cluster-require-full-coverage", "no")
        lost, *others = servers
        store = StoreOfTest(url=others[0].url, topology="Cluster")
        clients: dict[str, Asks] = {}
        for number in range(12):
            namespace = f"space-{number}"
            if holder_of(servers, f"x:{{{namespace}}}:y") is not lost:
                store.install("limits", namespace=namespace)
                client = store.client(kind, "limits", namespace=namespace)
                later.callback(client.close)
                for _ in range(2):  # the first reads the policy, whose timeout may need new connections
                    assert client.acquire().allowed
                clients[namespace] = client
        lost.kill()
        assert {client.acquire().store_failure for client in clients.values()} == {""}
        for server in others:
            with server.client() as admin:
                # One round trip for a decision: nobody asks a server which keys a call has.
                assert "cmdstat_command|getkeys" not in admin.info("commandstats")


def test_a_slot_that_moves_to_a_new_primary_without_the_library() -> None:
    with redis_cluster() as servers, cluster_node(servers[0]) as new:
        store = StoreOfTest(url=servers[0].url, topology="Cluster")
        store.install("limits")
        with store.limiter("limits") as limiter:
            assert limiter.acquire().allowed
            move_slot(servers, new, f"x:{{{NAMESPACE}}}:y")
            assert limiter.acquire().store_failure == "LibraryMissing"
            with new.client() as admin, servers[0].client() as other:
                libraries: list[Any] = other.execute_command("FUNCTION LIST", "WITHCODE")
                admin.function_load(libraries[0][libraries[0].index("library_code") + 1])
            assert limiter.acquire().limits[0].remaining == AMOUNT - 2, "the counter came with its slot"


def judge_failover(load: Load, *, promoted_at: float, fault_at: float, measured: Measured) -> None:
    """Check what every client saw of a failover, and record how long it lasted and what it cost."""
    back_at = load.wait_until_all_are_answered(since=promoted_at)
    time.sleep(1.0)  # a connection that sticks to the old primary would show now
    load.__exit__()
    assert not load.escaped
    assert set(load.failures()) <= IN_A_FAILOVER
    without = [answer for answer in load.answers if answer.failure]
    assert {(answer.allowed, answer.reason) for answer in without} <= {(False, "StoreUnavailable")}
    slowest = max((answer.seconds for answer in without), default=0.0)
    assert slowest <= TIMEOUT_SECONDS + SLACK_SECONDS
    assert not [answer for answer in without if answer.asked_at > back_at], "a client fell back after it had recovered"
    with load.store.limiter(load.policy) as limiter:
        counted = AMOUNT - limiter.peek().limits[0].remaining
    # Replication is asynchronous: what the old primary had admitted in its last moments may be lost, no more.
    last_moments = sum(answer.allowed for answer in load.answers if fault_at - 1 <= answer.at <= promoted_at)
    assert load.admitted - counted <= last_moments
    measured("back_after_promotion_seconds", round(max(0.0, back_at - promoted_at), 3))
    measured("promotion_seconds", round(promoted_at - fault_at, 3))
    measured("slowest_verdict_seconds", round(slowest, 3))
    measured("admitted", load.admitted)
    measured("lost_charges", max(0, load.admitted - counted))
    measured("failures", json.dumps(load.failures()))


def published_port(setup: SentinelSetup) -> int:
    """Return the port of the primary that the sentinel names."""
    with redis.Redis(port=setup.sentinel_port, decode_responses=True) as sentinel:
        _, port = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", setup.master_name)
    return int(port)


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_sentinel_promotes_the_replica_under_load(fault: str, measured: Measured) -> None:
    with redis_sentinel() as setup, ExitStack() as later:
        store = StoreOfTest(url=setup.url, topology="Sentinel", sentinel_master=setup.master_name)
        store.install("limits")
        with Load(store, "limits") as load:
            time.sleep(1)
            fault_at = time.monotonic()
            if fault == "killed":
                setup.master.kill()
            else:
                setup.master.pause()
                later.callback(setup.master.resume)
            promoted_at = wait_until(lambda: is_primary(setup.replica), "the promotion")
            if fault == "stopped":
                # It still takes itself for the primary when it goes on, and nobody leads clients there any more.
                wait_until(lambda: published_port(setup) == setup.replica.port, "the sentinel's word")
                setup.master.resume()
            judge_failover(load, promoted_at=promoted_at, fault_at=fault_at, measured=measured)


def test_a_primary_that_sentinel_replaces_while_it_lives_is_left_by_all(measured: Measured) -> None:
    def decisions(server: RedisServer) -> int:
        with server.client() as admin:
            statistics: dict[str, Any] = admin.info("commandstats")
        return int(statistics.get("cmdstat_fcall", {"calls": 0})["calls"])

    with redis_sentinel() as setup:
        store = StoreOfTest(url=setup.url, topology="Sentinel", sentinel_master=setup.master_name)
        store.install("limits")
        setup.catch_up()
        with Load(store, "limits") as load:
            with redis.Redis(port=setup.sentinel_port) as sentinel:
                sentinel.execute_command("SENTINEL FAILOVER", setup.master_name)
            wait_until(lambda: published_port(setup) == setup.replica.port, "the sentinel's word")
            left_by = time.monotonic() + 6  # a second, and slack; by itself it would answer for about eleven
            by_old = -1
            while (now_by_old := decisions(setup.master)) != by_old:
                assert time.monotonic() < left_by, "clients still ask the old primary"
                by_old = now_by_old
                time.sleep(1)
            by_new = decisions(setup.replica)
            load.wait_until_all_are_answered(since=time.monotonic())
            assert decisions(setup.master) == by_old
            assert decisions(setup.replica) > by_new
        measured("admitted", load.admitted)
        measured("lost_charges", load.admitted - AMOUNT + store.limiter("limits").peek().limits[0].remaining)


@pytest.mark.parametrize("fault", ["killed", "stopped", "asked to change"])
def test_a_cluster_promotes_the_replica_under_load(fault: str, measured: Measured) -> None:
    with redis_cluster() as servers, ExitStack() as later:
        primary = holder_of(servers, f"x:{{{NAMESPACE}}}:y")
        replica = later.enter_context(cluster_replica(primary))
        other = next(server for server in servers if server is not primary)
        store = StoreOfTest(url=other.url, topology="Cluster")
        store.install("limits")
        with Load(store, "limits") as load:
            time.sleep(1)
            fault_at = time.monotonic()
            if fault == "killed":
                primary.kill()
            elif fault == "stopped":
                primary.pause()
                later.callback(primary.resume)
            else:
                with replica.client() as admin:
                    admin.execute_command("CLUSTER FAILOVER")
            promoted_at = wait_until(lambda: is_primary(replica), "the promotion")
            if fault == "stopped":
                primary.resume()
            judge_failover(load, promoted_at=promoted_at, fault_at=fault_at, measured=measured)


def test_connections_to_a_primary_that_became_a_replica_are_not_kept(measured: Measured) -> None:
    """One address that is led elsewhere, as a Service is: open connections still lead to the old primary."""
    with RedisServer() as old, RedisServer(options=("--replicaof", f"127.0.0.1 {old.port}")) as new:
        with new.client() as replica:
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica's link")
        with Switch(old.port) as switch:
            store = StoreOfTest(url=old.url.replace(str(old.port), str(switch.port)))
            store.install("limits")
            with Load(store, "limits") as load, old.client() as demoted, new.client() as promoted:
                time.sleep(1)
                fault_at = time.monotonic()
                switch.target = new.port
                promoted.replicaof("NO", "ONE")
                demoted.replicaof("127.0.0.1", str(new.port))
                promoted_at = time.monotonic()
                judge_failover(load, promoted_at=promoted_at, fault_at=fault_at, measured=measured)
                assert "ReadOnly" in load.failures()


# A program whose clocks of the calendar are off, as those of a machine without time synchronisation: the interpreter's
# sources of them are replaced before anything else is imported. Prints what an acquire and a denied one say.
OFF_BY_A_DAY = """
import datetime, json, sys, time

offset = float(sys.argv[4])
true_time, true_datetime = time.time, datetime.datetime

class Shifted(true_datetime):
    @classmethod
    def now(cls, tz=None):
        return true_datetime.fromtimestamp(true_time() + offset, tz)

time.time = lambda: true_time() + offset
time.time_ns = lambda: round((true_time() + offset) * 1e9)
datetime.datetime = Shifted

from shipkeeper.limits import Limiter

def said(verdict):
    limit = verdict.limits[0]
    return {
        "allowed": verdict.allowed,
        "reason": verdict.reason,
        "remaining": limit.remaining,
        "resets_at": limit.resets_at.timestamp(),
        "judged_at": verdict.judged_at.timestamp(),
        "retry_at": verdict.retry_at and verdict.retry_at.timestamp(),
        "retry_after": verdict.retry_after and verdict.retry_after.total_seconds(),
    }

with Limiter.from_url(sys.argv[1], namespace=sys.argv[2], policy=sys.argv[3]) as limiter:
    print(json.dumps([time.time(), said(limiter.acquire()), said(limiter.acquire())]))
"""


@pytest.mark.parametrize("days", [1, -1])
def test_a_clients_clock_is_off_by_a_day(days: int, server: RedisServer) -> None:
    offset = days * 86_400
    install(server, "limits", {"limits": [{"name": "hour", "amount": 1, "period": "1h", "alignment": "FirstUse"}]})
    command = [sys.executable, "-c", OFF_BY_A_DAY, server.url, NAMESPACE, "limits", str(offset)]
    before = datetime.now(UTC).timestamp()
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    after = datetime.now(UTC).timestamp()
    clock, first, second = json.loads(answer.stdout)
    assert before + offset <= clock <= after + offset, "the client's clock is off"
    assert (first["allowed"], first["remaining"]) == (True, 0)
    assert before - 1 <= first["judged_at"] <= after + 1
    assert first["resets_at"] == pytest.approx(first["judged_at"] + 3600, abs=0.01)
    assert (second["allowed"], second["reason"]) == (False, "LimitReached")
    assert second["retry_at"] == first["resets_at"]
    assert second["retry_after"] == pytest.approx(second["retry_at"] - second["judged_at"], abs=0.002)
    with Limiter.from_url(server.url, namespace=NAMESPACE, policy="limits") as limiter:
        here = limiter.acquire()
    assert here.reason == "LimitReached"
    assert here.retry_after is not None
    assert timedelta(minutes=59) < here.retry_after <= timedelta(hours=1)


# Takes the one permit, says so, and never reports.
PROBER = """
import sys, time
from shipkeeper.limits import Limiter

with Limiter.from_url(sys.argv[1], namespace=sys.argv[2], policy=sys.argv[3]) as limiter:
    verdict = limiter.acquire()
    print(verdict.allowed, verdict.breaker, flush=True)
    time.sleep(3600)
"""


def test_a_killed_probers_permit_is_back_within_five_seconds(server: RedisServer, measured: Measured) -> None:
    breaker = {"consecutiveFailures": 1, "openTime": {"initial": "50ms", "max": "50ms"}}
    install(server, "limits", {"circuitBreaker": breaker})
    with Limiter.from_url(server.url, namespace=NAMESPACE, policy="limits") as limiter:
        assert limiter.report(limiter.acquire(), "Failure")
        time.sleep(0.1)
        command = [sys.executable, "-c", PROBER, server.url, NAMESPACE, "limits"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as prober:
            try:
                assert prober.stdout is not None
                assert prober.stdout.readline() == "True HalfOpen\n"
                assert limiter.acquire().reason == "ProbeUnderWay"
                time.sleep(0.5)
                os.kill(prober.pid, signal.SIGKILL)
                killed_at = time.monotonic()
            finally:
                prober.kill()
        while not (verdict := limiter.acquire()).allowed:
            assert verdict.reason == "ProbeUnderWay"
            assert time.monotonic() - killed_at <= 5
            time.sleep(0.02)
        back = time.monotonic() - killed_at
        assert limiter.report(verdict, "Success")
        assert limiter.acquire().breaker == "Closed"
    measured("permit_back_seconds", round(back, 3))
