"""How soon the whole operator follows a fault of the store: real API server, operator process and Redis.

The promise is five seconds, from the loss to its repair and from the end of a fault to `Enforced`. The times measured
are properties of each test's result; docs/limits.md quotes them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from demo.kubectl import Kubectl
from shipkeeper.limits import Limiter
from shipkeeper.limits.connection import Topology
from support.apiserver import ApiServer
from support.limit_faults import cluster_node, cluster_replica, holder_of, is_primary, move_slot, wait_until
from support.operator_process import OperatorProcess
from support.redis_server import PASSWORD, RedisServer, redis_cluster, redis_sentinel

from .conftest import NAME, Policy

PROMISED_SECONDS = 5.0
# For the scheduler of a machine under load, and for kubectl, by which status is read.
SLACK_SECONDS = 3.0
ENFORCED = ("True", "ReadBack")
Measured = Callable[[str, object], None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Note a figure with the test's result."""

    def note(name: str, value: object) -> None:
        request.node.user_properties.append((name, value))
        print(f"{request.node.name}: {name} {value}")

    return note


@pytest.fixture(scope="module")
def operator(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """An operator that serves all namespaces, shared by the tests of this module."""
    namespace = api_server.create_namespace("operator")
    with OperatorProcess(
        api_server,
        namespace=namespace,
        environment={"SHIPKEEPER_WATCH_NAMESPACES": ""},
        log=tmp_path_factory.mktemp("operator") / "operator.log",
    ) as process:
        process.wait_leading()
        yield process
    api_server.delete_namespace(namespace)


class FaultyPolicy(Policy):
    """A policy whose store gets into trouble."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        super().__init__(kubectl, namespace)
        self.topology: Topology = "Standalone"
        self.sentinel_master: str | None = None
        self.url = ""

    def enforce(self, url: str, topology: Topology = "Standalone", sentinel_master: str | None = None) -> None:
        """Apply it, without what would deny a test's calls, and wait until it is enforced."""
        self.url, self.topology, self.sentinel_master = url, topology, sentinel_master
        store: dict[str, Any] = {"urlFrom": {"name": "birthday-redis", "key": "url"}, "topology": topology}
        if sentinel_master is not None:
            store["sentinelMaster"] = sentinel_master
        self.put_secret(url)
        self.apply(store=store, spacing=None, activeHours=None, circuitBreaker=None)
        self.wait_enforced()

    def client(self) -> Limiter:
        """Return an application's limiter."""
        return Limiter.from_url(
            self.url,
            namespace=self.namespace,
            policy=NAME,
            topology=self.topology,
            sentinel_master=self.sentinel_master,
        )

    @property
    def status(self) -> Mapping[str, Any]:
        """The status as the API server has it."""
        found: Mapping[str, Any] = self.get().get("status", {})
        return found

    def seconds_until(self, holds: Callable[[], bool], what: str, *, since: float, slack: float = 0.0) -> float:
        """Wait until something holds; check that it took no longer than promised, and return how long."""
        seconds = wait_until(holds, what, timeout=30) - since
        assert seconds <= PROMISED_SECONDS + slack, f"{what} took {seconds:.1f} s"
        return round(max(seconds, 0.0), 1)

    def seconds_until_verdicts(self, limiter: Limiter, *, since: float) -> float:
        """Wait until the store judges again."""
        return self.seconds_until(lambda: limiter.peek().store_failure == "", "a verdict of the store", since=since)

    def seconds_until_said(self, status: str, reason: str, *, since: float) -> float:
        """Wait until the condition Enforced has this status and reason."""
        return self.seconds_until(
            lambda: self.condition("Enforced") == (status, reason), reason, since=since, slack=SLACK_SECONDS
        )

    def seconds_until_repair(self, message: str, *, since: float) -> float:
        """Wait until status names the repair."""
        return self.seconds_until(
            lambda: message in self.status.get("lastRepair", {}).get("message", ""),
            f"a repair with {message!r}",
            since=since,
            slack=SLACK_SECONDS,
        )


@pytest.fixture
def policy(kubectl: Kubectl, namespace: str, operator: OperatorProcess) -> FaultyPolicy:
    return FaultyPolicy(kubectl, namespace)


@pytest.mark.parametrize(
    ("loss", "failure", "said"),
    [
        (["FUNCTION", "FLUSH"], "LibraryMissing", "The function library was gone from {where}."),
        (["FLUSHALL"], "ConfigMissing", "The policy was gone from {where}."),
    ],
    ids=["functions", "keys"],
)
def test_a_flush_is_repaired(
    policy: FaultyPolicy, server: RedisServer, measured: Measured, loss: list[str], failure: str, said: str
) -> None:
    policy.enforce(server.url)
    with policy.client() as limiter, server.client() as admin:
        assert limiter.acquire(execution="run").allowed
        lost_at = time.monotonic()
        admin.execute_command(*loss)
        verdict = limiter.acquire(execution="run")
        assert (verdict.allowed, verdict.rule, verdict.store_failure) == (False, "store", failure)
        measured("verdicts_again_seconds", policy.seconds_until_verdicts(limiter, since=lost_at))
        where = f"127.0.0.1:{server.port}"
        measured("said_seconds", policy.seconds_until_repair(said.format(where=where), since=lost_at))
    assert policy.condition("Enforced") == ENFORCED
    assert policy.status["lastRepair"]["reason"] == failure
    wait_until(lambda: "StoreRepaired" in policy.events(), "the event")


def test_a_restart_without_data_is_repaired(policy: FaultyPolicy, server: RedisServer, measured: Measured) -> None:
    policy.enforce(server.url)
    with policy.client() as limiter:
        assert limiter.acquire(execution="run").allowed
        server.kill()
        down_at = time.monotonic()
        assert limiter.acquire(execution="run").store_failure == "Unreachable"
        measured("unreachable_said_seconds", policy.seconds_until_said("Unknown", "StoreUnreachable", since=down_at))
        server.start()
        up_at = time.monotonic()
        assert limiter.acquire(execution="run").store_failure == "LibraryMissing"
        measured("verdicts_again_seconds", policy.seconds_until_verdicts(limiter, since=up_at))
        said = "The function library was gone from {where}. The policy was gone from {where}."
        where = f"127.0.0.1:{server.port}"
        measured("said_seconds", policy.seconds_until_repair(said.format(where=where), since=up_at))
    assert policy.status["stateLostAt"]
    assert policy.condition("Enforced") == ENFORCED


def test_a_restart_with_append_only_file_is_noticed(policy: FaultyPolicy, measured: Measured) -> None:
    with RedisServer(appendonly=True, options=("--appendfsync", "always")) as server:
        policy.enforce(server.url)
        before = policy.status["primaries"][0]["runId"]
        server.kill()
        down_at = time.monotonic()
        measured("unreachable_said_seconds", policy.seconds_until_said("Unknown", "StoreUnreachable", since=down_at))
        server.start()
        up_at = time.monotonic()
        measured("enforced_seconds", policy.seconds_until_said(*ENFORCED, since=up_at))
        assert policy.status["primaries"][0]["runId"] != before
        assert "lastRepair" not in policy.status


def test_a_stopped_server(policy: FaultyPolicy, server: RedisServer, measured: Measured) -> None:
    policy.enforce(server.url)
    with policy.client() as limiter:
        assert limiter.peek().allowed
        server.pause()
        stopped_at = time.monotonic()
        assert limiter.acquire(execution="run").store_failure == "Timeout"
        time.sleep(max(0.0, stopped_at + 2 - time.monotonic()))
        # The time the operator waits for an answer comes on top of its pace.
        wait_until(lambda: policy.condition("Enforced") == ("Unknown", "StoreTimeout"), "StoreTimeout")
        measured("timeout_said_seconds", round(time.monotonic() - stopped_at, 1))
        server.resume()
        resumed_at = time.monotonic()
        measured("verdicts_again_seconds", policy.seconds_until_verdicts(limiter, since=resumed_at))
        measured("enforced_seconds", policy.seconds_until_said(*ENFORCED, since=resumed_at))


def test_a_store_that_hangs_holds_up_no_policy_of_another(
    policy: FaultyPolicy, server: RedisServer, measured: Measured
) -> None:
    """Forty policies wait for a store that hangs, with eight workers."""
    with RedisServer() as hanging:
        policy.put_secret(hanging.url, name="hanging")
        hanging.pause()
        policy.enforce(server.url)
        manifest = policy.get()
        del manifest["status"]
        manifest["spec"]["store"] = {"urlFrom": {"name": "hanging", "key": "url"}}
        names = [f"waiting-{number}" for number in range(40)]
        policy.kubectl.apply(
            *({**manifest, "metadata": {"name": name, "namespace": policy.namespace}} for name in names)
        )
        time.sleep(6)
        with policy.client() as limiter, server.client() as admin:
            for _ in range(3):
                admin.function_flush()
                lost_at = time.monotonic()
                measured("verdicts_again_seconds", policy.seconds_until_verdicts(limiter, since=lost_at))
        hanging.resume()


def fill(server: RedisServer) -> None:
    with server.client() as admin:
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


@pytest.mark.parametrize(
    ("cause", "mend", "failure"),
    [
        (fill, make_room, "OutOfMemory"),
        (demote, promote, "ReadOnly"),
    ],
    ids=["maxmemory", "demoted"],
)
def test_a_store_that_answers_and_counts_nothing(
    policy: FaultyPolicy,
    server: RedisServer,
    measured: Measured,
    cause: Callable[[RedisServer], None],
    mend: Callable[[RedisServer], None],
    failure: str,
) -> None:
    policy.enforce(server.url)
    with policy.client() as limiter:
        cause(server)
        caused_at = time.monotonic()
        assert limiter.acquire(execution="run").store_failure == failure
        measured("said_seconds", policy.seconds_until_said("False", f"Store{failure}", since=caused_at))
        mend(server)
        mended_at = time.monotonic()
        assert limiter.acquire(execution="run").store_failure == ""
        measured("enforced_seconds", policy.seconds_until_said(*ENFORCED, since=mended_at))


def test_a_refused_permission(policy: FaultyPolicy, server: RedisServer, measured: Measured) -> None:
    whole = ("on", f">{PASSWORD}", "+@all", "~*")
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "operator", *whole)
        policy.enforce(server.url.replace("redis://:", "redis://operator:"))
        admin.execute_command("ACL", "SETUSER", "operator", "-fcall")
        refused_at = time.monotonic()
        measured("said_seconds", policy.seconds_until_said("Unknown", "StorePermissionDenied", since=refused_at))
        assert policy.condition("Stalled") == ("True", "StorePermissionDenied")
        admin.execute_command("ACL", "SETUSER", "operator", *whole)
        mended_at = time.monotonic()
        measured("enforced_seconds", policy.seconds_until_said(*ENFORCED, since=mended_at))


def test_a_secret_with_a_wrong_password_is_corrected(
    policy: FaultyPolicy, server: RedisServer, measured: Measured
) -> None:
    policy.put_secret(server.url.replace(PASSWORD, "hidden-word"))
    policy.apply()
    wait_until(lambda: policy.condition("Stalled") == ("True", "StoreAuthFailed"), "StoreAuthFailed")
    policy.put_secret(server.url)
    corrected_at = time.monotonic()
    measured("enforced_seconds", policy.seconds_until_said(*ENFORCED, since=corrected_at))


def test_a_failover_by_sentinel(policy: FaultyPolicy, measured: Measured) -> None:
    with redis_sentinel() as setup:
        policy.enforce(setup.url, "Sentinel", setup.master_name)
        with policy.client() as limiter:
            assert limiter.acquire(execution="run").allowed
            setup.catch_up()
            setup.failover()
            promoted_at = time.monotonic()
            measured("verdicts_again_seconds", policy.seconds_until_verdicts(limiter, since=promoted_at))
            address = f"127.0.0.1:{setup.replica.port}"
            measured(
                "enforced_seconds",
                policy.seconds_until(
                    lambda: (
                        policy.condition("Enforced") == ENFORCED and policy.status["primaries"][0]["address"] == address
                    ),
                    "the new primary in status",
                    since=promoted_at,
                    slack=SLACK_SECONDS,
                ),
            )
            assert limiter.peek(execution="run").limits[0].remaining == 99, "the charge before the failover counts"
        assert "lastRepair" not in policy.status


def test_one_primary_of_a_cluster_loses_the_library(policy: FaultyPolicy, measured: Measured) -> None:
    with redis_cluster() as servers:
        policy.enforce(servers[0].url, "Cluster")
        victim = next(server for server in servers if server is not holder_of(servers, key_of(policy)))
        with victim.client() as admin:
            admin.function_flush()
            lost_at = time.monotonic()
            repaired = policy.seconds_until(
                lambda: bool(admin.function_list()), "the library on the primary", since=lost_at
            )
        measured("repaired_seconds", repaired)
        said = f"The function library was gone from 127.0.0.1:{victim.port}."
        measured("said_seconds", policy.seconds_until_repair(said, since=lost_at))
        assert policy.condition("Enforced") == ENFORCED


def test_a_new_primary_joins_a_cluster(policy: FaultyPolicy, measured: Measured) -> None:
    with redis_cluster() as servers, cluster_node(servers[0]) as new:
        policy.enforce(servers[0].url, "Cluster")
        with policy.client() as limiter:
            assert limiter.acquire(execution="run").allowed
            move_slot(servers, new, key_of(policy))
            moved_at = time.monotonic()
            measured("verdicts_again_seconds", policy.seconds_until_verdicts(limiter, since=moved_at))
            said = f"The function library was gone from 127.0.0.1:{new.port}."
            measured("said_seconds", policy.seconds_until_repair(said, since=moved_at))
            assert limiter.peek(execution="run").limits[0].remaining == 99, "the counter came with its slot"
        assert len(policy.status["primaries"]) == 4


def test_a_failover_of_a_cluster(policy: FaultyPolicy, measured: Measured) -> None:
    with redis_cluster() as servers, ExitStack() as later:
        primary = holder_of(servers, key_of(policy))
        replica = later.enter_context(cluster_replica(primary))
        policy.enforce(next(server for server in servers if server is not primary).url, "Cluster")
        primary.kill()
        wait_until(lambda: is_primary(replica), "the promotion")
        promoted_at = time.monotonic()
        address = f"127.0.0.1:{replica.port}"
        measured(
            "enforced_seconds",
            policy.seconds_until(
                lambda: (
                    policy.condition("Enforced") == ENFORCED
                    and address in {each["address"] for each in policy.status["primaries"]}
                ),
                "the new primary in status",
                since=promoted_at,
                slack=SLACK_SECONDS,
            ),
        )


def key_of(policy: Policy) -> str:
    """Return a key in the slot of the policy's namespace."""
    return f"x:{{{policy.namespace}}}:y"
