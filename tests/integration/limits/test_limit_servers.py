"""The limiter on every server it promises to work on: Redis 7, Redis 8 and Valkey, each a real one."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import redis
from redis.exceptions import NoPermissionError

from shipkeeper.limits import AsyncLimiter, ExecutionRequired, Limiter
from shipkeeper.limits.acl import application_rules, operator_rules
from shipkeeper.limits.compiler import compile_policy
from shipkeeper.limits.connection import AsyncStore, StoreAddress
from shipkeeper.limits.function_library import library_version
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.limits.store import (
    install_config,
    install_library,
    install_policy,
    read_store,
    read_use,
    remove_policy,
)
from support.limit_policies import NAMESPACE, PATIENT, TimedPolicy, install, milliseconds_at, spec_of
from support.recording_relay import RecordingRelay
from support.redis_server import PASSWORD, RedisServer
from support.server_programs import SERVERS, server_program

pytestmark = pytest.mark.integration

NOW: Final = milliseconds_at("2026-06-03T08:00")  # ten o'clock in Paris, on a Wednesday
SECOND: Final = 1000
MONTH: Final = 31 * 24 * 3600 * SECOND
MIXED: Final[dict[str, Any]] = {
    "timeZone": "Europe/Paris",
    "limits": [
        {"name": "minute", "amount": 5, "period": "Minute"},
        {"name": "hour", "amount": 9, "period": "Hour", "alignment": "Rolling"},
        {"name": "day", "amount": 12, "period": "Day"},
        {"name": "week", "amount": 100, "period": "Week", "alignment": "FirstUse"},
        {"name": "run", "amount": 15, "period": "Execution"},
    ],
    "spacing": {"min": "2s", "max": "2s"},
    "activeHours": {"rules": [{"times": [{"start": "07:00", "end": "19:00"}]}]},
    "circuitBreaker": {"consecutiveFailures": 2, "openTime": {"initial": "5s", "multiplier": 2, "max": "60s"}},
    "maxSubjects": 2,
}
# The same without what depends on the hour of the day: for tests by the server's own clock.
AT_ANY_HOUR: Final = {name: rule for name, rule in MIXED.items() if name not in ("spacing", "activeHours")}
PERMISSIONS: Final[dict[str, Any]] = AT_ANY_HOUR | {"maxSubjects": 5}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One of the servers, for tests that break nothing."""
    with RedisServer(program=server_program(request.param)) as server:
        yield server


def test_the_server_is_the_one_it_is_called(server: RedisServer) -> None:
    with server.client() as client:
        about = client.info("server")
    family, major = server.program.name.split()
    assert about["valkey_version" if family == "Valkey" else "redis_version"].startswith(f"{major}.")
    assert ("valkey_version" in about) == (family == "Valkey")


async def test_what_was_installed_is_read_back(server: RedisServer, policy_name: str) -> None:
    compiled = await install_policy(server.url, spec_of(MIXED), namespace=NAMESPACE, name=policy_name)
    store = AsyncStore(StoreAddress(url=server.url), timeout=10)
    state = await read_store(store, PolicyKeys(namespace=NAMESPACE, policy=policy_name))
    await store.close()
    (primary,) = state.primaries
    assert (primary.config_hash, primary.library_version) == (compiled.hash, library_version())
    assert (primary.holds_policy, primary.may_evict) == (True, False)
    assert primary.run_id
    assert abs(state.now - datetime.now(UTC)) < timedelta(seconds=30)


class Walk:
    """Goes through every rule of MIXED by a clock of its own, and keeps what was decided."""

    def __init__(self, limiter: Limiter, set_clock: Callable[[int], None]) -> None:
        self.limiter = limiter
        self.set_clock = set_clock
        self.now = NOW
        self.decided: list[str] = []

    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.set_clock(self.now)

    def acquire(self, subject: str, *, wait: int = 2 * SECOND, cost: int = 1, request_id: str | None = None) -> str:
        """Wait out the spacing, ask, and return what was decided as one line."""
        self.wait(wait)
        verdict = self.limiter.acquire(subject, cost=cost, execution="run-1", request_id=request_id)
        self.last = verdict
        return self._keep("allowed" if verdict.allowed else f"{verdict.rule}: {verdict.reason}")

    def _keep(self, decision: str) -> str:
        self.decided.append(decision)
        return decision

    def go(self) -> None:
        for part in (self._charges, self._reservations, self._breaker, self._limits, self._hours):
            part()

    def _charges(self) -> None:
        with pytest.raises(ExecutionRequired):
            self.limiter.acquire("a")
        assert self.acquire("a", request_id="send-1") == "allowed"
        assert self.acquire("a", wait=0, request_id="send-1") == "allowed"
        assert self.last.replayed
        assert self.acquire("a", wait=0) == "spacing: Spacing"
        assert self.last.retry_after == timedelta(seconds=2)
        assert self.acquire("a", cost=6) == "minute: CostAboveLimit"
        assert self.last.permanent

    def _reservations(self) -> None:
        for end, settlement in ((self.limiter.commit, "Committed"), (self.limiter.cancel, "Cancelled")):
            self.wait(2 * SECOND)
            reservation = self.limiter.reserve("a", cost=2, execution="run-1", lease=timedelta(seconds=30))
            assert reservation.allowed
            assert self._keep(end(reservation)) == settlement
            assert self._keep(end(reservation)) == "Unknown"
        assert self._remaining("a") == {"minute": 2, "hour": 6, "day": 9, "week": 97, "run": 12}

    def _remaining(self, subject: str) -> dict[str, int]:
        verdict = self.limiter.peek(subject, execution="run-1")
        return {limit.name: limit.remaining for limit in verdict.limits}

    def _breaker(self) -> None:
        for _ in range(2):
            assert self.acquire("b") == "allowed"
            assert self.limiter.report(self.last, "Failure")
        assert self.limiter.peek("b", execution="run-1").breaker == "Open"
        assert self.acquire("b") == "circuitBreaker: CircuitOpen"
        assert self.acquire("b", wait=5 * SECOND) == "allowed"
        probe = self.last
        assert self.acquire("b") == "circuitBreaker: ProbeUnderWay"
        assert self.limiter.report(probe, "Success")
        assert self.limiter.peek("b", execution="run-1").breaker == "Closed"

    def _limits(self) -> None:
        assert self.acquire("c") == "maxSubjects: TooManySubjects"
        assert self.acquire("b", cost=3) == "minute: LimitReached"
        assert self.acquire("b", wait=60 * SECOND, cost=5) == "allowed"
        assert self.acquire("b", cost=2) == "hour: LimitReached"

    def _hours(self) -> None:
        self.now = milliseconds_at("2026-06-03T17:00")
        assert self.acquire("a", wait=0) == "activeHours: OutsideActiveHours"
        assert self.last.retry_at == datetime(2026, 6, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def walked() -> dict[str, tuple[list[str], bytes]]:
    """What each server decided of the same calls at the same instants, and every byte it sent."""
    found = {}
    for name in SERVERS:
        with RedisServer(program=server_program(name)) as server, RecordingRelay(server.port) as relay:
            url = server.url.replace(f":{server.port}/", f":{relay.port}/")
            with (
                server.client() as admin,
                Limiter.from_url(url, namespace=NAMESPACE, policy="mixed", on_store_unavailable=PATIENT) as limiter,
            ):
                policy = TimedPolicy(admin, "mixed", limiter)
                policy.set_clock(NOW)
                policy.store(MIXED, NOW)
                limiter.peek(execution="run-1")
                greeting = len(relay.sent)  # What opens a connection differs: not every server knows CLIENT SETINFO.
                walk = Walk(limiter, policy.set_clock)
                walk.go()
                found[name] = (walk.decided, relay.sent[greeting:])
    return found


def test_every_server_decides_alike_to_the_byte(walked: dict[str, tuple[list[str], bytes]]) -> None:
    decisions, replies = walked[SERVERS[0]]
    assert len(decisions) == 18
    assert len(replies) > 3000
    for name in SERVERS[1:]:
        assert walked[name] == (decisions, replies), name


async def test_a_flushed_library_is_missed_and_put_back_with_the_counters_kept(
    server: RedisServer, policy_name: str
) -> None:
    await install_policy(server.url, spec_of(AT_ANY_HOUR), namespace=NAMESPACE, name=policy_name)
    async with AsyncLimiter.from_url(
        server.url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT
    ) as limiter:
        assert (await limiter.acquire(cost=2, execution="run-1")).allowed
        with server.client() as admin:
            admin.function_flush()
        assert (await limiter.acquire(execution="run-1")).store_failure == "LibraryMissing"
        store = AsyncStore(StoreAddress(url=server.url), timeout=10)
        await install_library(store)
        await store.close()
        verdict = await limiter.acquire(execution="run-1")
        assert verdict.library_version == library_version()
        assert {limit.name: limit.remaining for limit in verdict.limits}["day"] == 9


def test_every_counter_expires(server: RedisServer, policy_name: str) -> None:
    install(server, policy_name, AT_ANY_HOUR)
    keys = PolicyKeys(namespace=NAMESPACE, policy=policy_name)
    with Limiter.from_url(server.url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT) as limiter:
        first = limiter.acquire("a", execution="run-1", request_id="send-1")
        assert limiter.acquire("a", execution="run-1", request_id="send-1").replayed
        limiter.report(first, "Failure")
        limiter.commit(limiter.reserve("b", execution="run-2", lease=timedelta(seconds=30)))
        limiter.cancel(limiter.reserve("b", execution="run-2", lease=timedelta(seconds=30)))
        assert limiter.acquire("c", execution="run-1").rule == "maxSubjects"
    lifetimes = lifetimes_under(server, keys.subjects)
    assert {keys.state("a"), keys.state("b"), keys.subjects} <= lifetimes.keys()
    assert len(lifetimes) >= 6, "the executions and the request have keys of their own"
    del lifetimes[keys.subjects]  # the next test's matter
    assert all(0 < lifetime <= MONTH for lifetime in lifetimes.values()), lifetimes


def test_the_register_of_subjects_expires_with_the_last_of_them(server: RedisServer, policy_name: str) -> None:
    install(server, policy_name, {"limits": [{"name": "run", "amount": 5, "period": "Minute"}], "maxSubjects": 5})
    keys = PolicyKeys(namespace=NAMESPACE, policy=policy_name)
    with Limiter.from_url(server.url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT) as limiter:
        assert limiter.acquire("a").allowed
        assert limiter.acquire("b").allowed
    lifetimes = lifetimes_under(server, keys.subjects)
    assert abs(lifetimes[keys.subjects] - max(lifetimes[keys.state("a")], lifetimes[keys.state("b")])) < 10 * SECOND


def lifetimes_under(server: RedisServer, prefix: str) -> dict[str, int]:
    """Return how long each key that begins so will live, in milliseconds; -1 is for ever."""
    with server.client() as admin:
        return {key: admin.pttl(key) for key in admin.scan_iter("*") if key.startswith(prefix)}


async def test_the_shipped_users_do_their_work_and_nothing_else(server: RedisServer, policy_name: str) -> None:
    keys = PolicyKeys(namespace=NAMESPACE, policy=policy_name)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "operator", *operator_rules(), f">{PASSWORD}")
        admin.execute_command("ACL", "SETUSER", "app", *application_rules(namespace=NAMESPACE), f">{PASSWORD}")
    store = AsyncStore(StoreAddress(url=server.url.replace("redis://:", "redis://operator:")), timeout=10)
    await install_library(store)
    now = (await read_store(store, keys)).now
    compiled = compile_policy(spec_of(PERMISSIONS), keys, now=now)
    await install_config(store, keys, compiled)
    assert (await read_store(store, keys)).primaries[0].config_hash == compiled.hash
    await asyncio.to_thread(apply_as_application, server, policy_name)
    assert (await read_use(store, keys, "a")).limits[0].used == 1
    with redis.Redis(port=server.port, username="app", password=PASSWORD) as application:
        for command in (("SET", keys.config, "mine"), ("FUNCTION", "FLUSH"), ("GET", "somebody-else"), ("ACL", "LIST")):
            with pytest.raises(NoPermissionError):
                application.execute_command(*command)
    assert await remove_policy(store, keys) >= 4
    await store.close()


def apply_as_application(server: RedisServer, policy: str) -> None:
    url = server.url.replace("redis://:", "redis://app:")
    with Limiter.from_url(url, namespace=NAMESPACE, policy=policy, on_store_unavailable=PATIENT) as limiter:
        verdict = limiter.acquire("a", execution="run-1", request_id="send-1")
        assert (verdict.allowed, verdict.store_failure) == (True, "")
        assert limiter.report(verdict, "Failure")
        reservation = limiter.reserve("b", execution="run-1", lease=timedelta(seconds=30))
        assert limiter.cancel(reservation) == "Cancelled"
        assert limiter.peek("a", execution="run-1").allowed
    with Limiter.from_url(url, namespace="elsewhere", policy=policy) as limiter:
        assert limiter.acquire("a").store_failure == "PermissionDenied"


@pytest.mark.parametrize("name", SERVERS)
async def test_each_failure_is_known_by_this_server_s_own_words(name: str, policy_name: str) -> None:
    """The servers word their errors each in its own way; the names of the reasons are the same."""
    with RedisServer(program=server_program(name)) as server, server.client() as admin:
        await install_policy(server.url, spec_of(AT_ANY_HOUR), namespace=NAMESPACE, name=policy_name)
        async with AsyncLimiter.from_url(
            server.url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT
        ) as limiter:

            async def failure() -> str:
                return (await limiter.acquire(execution="run-1")).store_failure

            assert await failure() == ""
            for setting, value, reason in (
                ("maxmemory", "1", "OutOfMemory"),
                ("min-replicas-to-write", "1", "TooFewReplicas"),
            ):
                before = admin.config_get(setting)[setting]
                admin.config_set(setting, value)
                assert await failure() == reason
                admin.config_set(setting, before)
            admin.replicaof("127.0.0.1", "1")
            assert await failure() == "ReadOnly"
            admin.config_set("replica-serve-stale-data", "no")
            assert (await limiter.peek(execution="run-1")).store_failure == "MasterDown"
            admin.replicaof("NO", "ONE")
            assert await failure() == ""
            assert await failure_while_a_script_runs(server, failure) == "Busy"
            admin.flushall()
            assert await failure() == "ConfigMissing"
            admin.function_flush()
            assert await failure() == "LibraryMissing"
        wrong = server.url.replace(PASSWORD, "wrong")
        async with AsyncLimiter.from_url(
            wrong, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT
        ) as limiter:
            assert await failure() == "AuthenticationFailed"
        admin.config_set("maxclients", "1")
        async with AsyncLimiter.from_url(
            server.url, namespace=NAMESPACE, policy=policy_name, on_store_unavailable=PATIENT
        ) as limiter:
            assert await failure() == "TooManyConnections"


async def failure_while_a_script_runs(server: RedisServer, failure: Callable[[], Any]) -> str:
    """Keep the server busy with a script, ask, and end the script."""

    def loop_for_ever() -> None:
        with server.client() as client, pytest.raises(redis.ResponseError, match="killed"):
            client.eval("while true do end", 0)

    with server.client() as admin:
        admin.config_set("busy-reply-threshold", "20")
        busy = threading.Thread(target=loop_for_ever)
        busy.start()
        try:
            async with asyncio.timeout(20):
                while not (found := await failure()):  # noqa: ASYNC110 - the script has not begun yet
                    await asyncio.sleep(0.01)
        finally:
            admin.script_kill()
            busy.join()
    return str(found)
