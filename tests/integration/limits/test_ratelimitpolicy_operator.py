"""The operator's side of a RateLimitPolicy on a real Redis: observed, decided and written as the controller does it."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shipkeeper.limits import AsyncLimiter
from shipkeeper_operator.effects.stores import STORES
from shipkeeper_operator.observe.ratelimitpolicy import observe
from shipkeeper_operator.reconcile.ratelimitpolicy import LOOK_AGAIN, reconcile
from support.limit_policies import BIRTHDAY
from support.policy_loop import Loop
from support.redis_server import PASSWORD, RedisServer, redis_cluster, redis_sentinel

pytestmark = pytest.mark.integration

CONFIG = "shipkeeper:{birthday}:config:birthday-limits"
OTHER_LIBRARY = """#!lua name=shipkeeper
redis.register_function{
  function_name = 'shipkeeper_status', flags = { 'no-writes' }, callback = function() return { '0.other' } end
}"""
BY_DAY: dict[str, Any] = {"limits": [{"name": "day", "amount": 15, "period": "Day"}]}


@pytest.fixture
async def loop(policy_name: str) -> AsyncIterator[Loop]:
    yield Loop(dict(BIRTHDAY), uid=policy_name)
    await STORES.close()


@pytest.fixture
def server() -> Any:
    with RedisServer() as server:
        yield server


async def test_enforced_once_read_back_and_then_silent(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    conditions = await loop.look()
    assert conditions["Ready"] == ("True", "PolicyEnforced")
    assert conditions["Enforced"] == ("True", "ReadBack")
    assert conditions["LimitsEffective"] == ("True", "CanBind")
    assert "Reconciling" not in conditions
    with server.client() as admin:
        assert str(admin.get(CONFIG)).startswith(loop.status["configHash"])
    for _ in range(5):
        loop.later(seconds=60)
        await loop.look()
    assert loop.status_writes == 1
    assert loop.outcome is not None
    assert loop.outcome.requeue_after == LOOK_AGAIN


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (["FUNCTION", "FLUSH"], "LibraryMissing"),
        (["FLUSHALL"], "ConfigMissing"),
        (["DEL", CONFIG], "ConfigMissing"),
        (["SETRANGE", CONFIG, "100", "x"], "ConfigDiffers"),
        (["FUNCTION", "LOAD", "REPLACE", OTHER_LIBRARY], "LibraryDiffers"),
    ],
    ids=["functions flushed", "keys flushed", "key deleted", "key changed", "library replaced"],
)
async def test_what_is_lost_is_put_back_and_said(loop: Loop, server: RedisServer, loss: list[str], reason: str) -> None:
    loop.secrets.put(server.url)
    await loop.look()
    hash_before = loop.status["configHash"]
    with server.client() as admin:
        admin.execute_command(*loss)
    conditions = await loop.look()
    assert conditions["Enforced"] == ("True", "ReadBack")
    assert loop.status["lastRepair"]["reason"] == reason
    assert [event.reason for event in loop.events] == ["StoreRepaired"]
    assert loop.status["configHash"] == hash_before
    writes = loop.status_writes
    await loop.look()
    assert (loop.status_writes, len(loop.events)) == (writes, 1)
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        assert (await limiter.peek()).store_failure == ""


async def test_a_restart_without_persistence_is_repaired(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await loop.look()
    server.kill()
    conditions = await loop.look()
    assert conditions["Ready"] == ("False", "StoreUnreachable")
    assert conditions["Enforced"] == ("Unknown", "StoreUnreachable")
    assert "Stalled" not in conditions
    server.start()
    conditions = await loop.look()
    assert conditions["Enforced"] == ("True", "ReadBack")
    assert loop.status["stateLostAt"]
    assert loop.status["lastRepair"]["reason"] == "ConfigMissing", "the counters' loss outweighs the library's"


async def test_a_restart_with_append_only_file_loses_nothing(loop: Loop) -> None:
    with RedisServer(appendonly=True, options=("--appendfsync", "always")) as server:
        loop.secrets.put(server.url)
        await loop.look()
        async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
            charged = await limiter.acquire(execution="x")
            server.restart()
            await loop.look()
            assert (await loop.look())["Enforced"] == ("True", "ReadBack")
            assert "stateLostAt" not in loop.status
            assert "lastRepair" not in loop.status
            after = {limit.name: limit.remaining for limit in (await limiter.peek(execution="x")).limits}
            assert after == {limit.name: limit.remaining for limit in charged.limits}


async def test_deny_until_next_window_after_a_flush(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    loop.manifest["spec"] = {
        "store": loop.manifest["spec"]["store"],
        "limits": [{"name": "week", "amount": 100, "period": "Week"}],
        "onStateLoss": "DenyUntilNextWindow",
    }
    await loop.look()
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        assert (await limiter.acquire()).allowed
        with server.client() as admin:
            admin.flushall()
        await loop.look()
        verdict = await limiter.acquire()
        assert (verdict.rule, verdict.reason) == ("week", "StateLost")


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (None, "SecretNotFound"),
        ({"data": {"other": "eA=="}}, "SecretKeyMissing"),
        ({"data": {"url": "%%%"}}, "SecretValueInvalid"),
        ({"data": {"url": base64.b64encode(b"postgres://u:hidden-word@h/").decode()}}, "SecretValueInvalid"),
        ({"data": {"url": base64.b64encode(b"redis://:hidden-word@host:nine/").decode()}}, "SecretValueInvalid"),
    ],
)
async def test_a_secret_that_is_not_right_waits_for_a_person(
    loop: Loop, server: RedisServer, secret: Mapping[str, Any] | None, reason: str
) -> None:
    if secret is not None:
        loop.secrets.held["birthday", "birthday-redis"] = secret
    conditions = await loop.look()
    assert conditions["Stalled"] == ("True", reason)
    assert conditions["Enforced"] == ("False", reason)
    assert "hidden-word" not in str(loop.status)
    writes = loop.status_writes
    loop.later(seconds=30)
    await loop.look()
    assert loop.status_writes == writes
    loop.secrets.put(server.url)
    loop.later(seconds=30)
    assert (await loop.look())["Enforced"] == ("True", "ReadBack")


async def test_a_wrong_password_is_said_without_it(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url.replace(PASSWORD, "hidden-word"))
    conditions = await loop.look()
    assert conditions["Stalled"] == ("True", "StoreAuthFailed")
    assert "hidden-word" not in str(loop.status)
    loop.secrets.put(server.url)
    assert (await loop.look())["Ready"][0] == "True"


@pytest.mark.parametrize("missing", ["-function|load", "-set", "-fcall"])
async def test_a_missing_permission_is_named_and_mends_itself(loop: Loop, server: RedisServer, missing: str) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "operator", "on", f">{PASSWORD}", "+@all", "~*", missing)
        loop.secrets.put(server.url.replace("redis://:", "redis://operator:"))
        # The library is there already, so that each permission is met in its turn.
        for _ in range(2):
            conditions = await loop.look()
        assert conditions["Stalled"] == ("True", "StorePermissionDenied")
        assert conditions["Enforced"][0] == "False"
        admin.execute_command("ACL", "SETUSER", "operator", "+@all")
        assert (await loop.look())["Enforced"] == ("True", "ReadBack")


async def test_usage_is_shown_slowly_and_only_on_change(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await loop.look()
    spec = {key: value for key, value in BIRTHDAY.items() if key not in ("spacing", "activeHours")}
    loop.manifest["spec"] = {"store": loop.manifest["spec"]["store"], **spec}
    loop.edit()
    await loop.look()
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        for _ in range(16):
            verdict = await limiter.acquire("account-1", execution="run")
        assert verdict.reason == "LimitReached"
        await limiter.acquire("account-2", execution="other")
        writes = loop.status_writes
        loop.later(seconds=10)
        await loop.look()
        assert loop.status_writes == writes, "too early"
        loop.later(seconds=25)
        await loop.look()
        assert loop.status_writes == writes + 1
        assert loop.status["tightest"] == "day 15/15"
        day = next(limit for limit in loop.status["limits"] if limit["name"] == "day")
        assert (day["used"], day["remaining"], day["subject"]) == (15, 0, "account-1")
        assert day["resetsAt"]
        assert sum(limit["denied"] for limit in loop.status["limits"]) == 1
        loop.later(seconds=60)
        await loop.look()
        assert loop.status_writes == writes + 1, "nothing changed"


async def test_an_open_circuit_is_shown_at_once(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    spec = {key: value for key, value in BIRTHDAY.items() if key not in ("spacing", "activeHours")}
    loop.manifest["spec"] = {"store": loop.manifest["spec"]["store"], **spec}
    await loop.look()
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        for _ in range(3):
            await limiter.report(await limiter.acquire("account-1", execution="run"), "Failure")
    loop.later(seconds=3)
    await loop.look()
    breaker = loop.status["breaker"]
    assert (breaker["state"], breaker["subject"], breaker["lastTrip"]) == ("Open", "account-1", "ConsecutiveFailures")
    assert breaker["openUntil"]


async def test_an_edit_keeps_counts_and_says_what_became_of_them(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    loop.manifest["spec"] = {"store": loop.manifest["spec"]["store"], **BY_DAY}
    await loop.look()
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        await limiter.acquire(cost=4)
        loop.later(seconds=31)
        await loop.look()
        loop.edit(limits=[{"name": "day", "amount": 20, "period": "Day"}])
        await loop.look()
        assert (loop.status["limits"][0]["used"], loop.status["limits"][0]["afterEdit"]) == (4, "")
        loop.edit(limits=[{"name": "day", "amount": 20, "period": "Month"}])
        await loop.look()
        assert (loop.status["limits"][0]["used"], loop.status["limits"][0]["afterEdit"]) == (4, "CountKept")
        rolling = {"name": "day", "amount": 20, "period": "1h", "alignment": "Rolling"}
        loop.edit(limits=[rolling])
        await loop.look()
        assert (loop.status["limits"][0]["used"], loop.status["limits"][0]["afterEdit"]) == (0, "CountRestarted")
        assert loop.status["observedGeneration"] == 4


async def test_warnings(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    working_days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    loop.edit(activeHours={"rules": [{"days": working_days, "times": [{"start": "07:00", "end": "19:00"}]}]})
    with server.client() as admin:
        admin.config_set("maxmemory", "100mb")
        admin.config_set("maxmemory-policy", "allkeys-lru")
    conditions = await loop.look()
    assert conditions["Ready"][0] == "True"
    assert conditions["LimitsEffective"] == ("False", "NeverBinds")
    assert conditions["CountersSafe"] == ("False", "EvictionPossible")
    week = next(limit for limit in loop.status["limits"] if limit["name"] == "week")
    assert "75" in week["neverBinds"]


async def test_tables_are_renewed_without_a_gap(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    loop.edit(limits=BY_DAY["limits"])
    await loop.look()
    resource = loop.resource
    observed = await observe(resource, loop.secrets)
    assert observed.store is not None
    next_month = replace(observed, store=replace(observed.store, now=observed.store.now + timedelta(days=32)))
    outcome = reconcile(resource, next_month, now=loop.now + timedelta(days=32))
    assert [type(effect).__name__ for effect in outcome.effects] == ["InstallPolicy"]
    assert {each.type: each.status for each in outcome.status.conditions}["Enforced"] == "True"
    assert not outcome.events


async def test_deletion_removes_every_key_and_lets_go(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    spec = {key: value for key, value in BIRTHDAY.items() if key not in ("spacing", "activeHours")}
    loop.manifest["spec"] = {"store": loop.manifest["spec"]["store"], **spec, "maxSubjects": 5000}
    loop.manifest["spec"]["limits"] = [*spec["limits"], {"name": "big", "amount": 10**6, "period": "Month"}]
    await loop.look()
    async with AsyncLimiter.from_url(server.url, namespace="birthday", policy="birthday-limits") as limiter:
        for number in range(1200):
            await limiter.acquire(f"account-{number}", execution="x", request_id=str(number))
    with server.client() as admin:
        admin.set("somebody else's", "stays")
        assert admin.dbsize() > 3600
        loop.delete()
        # A namespace that is being deleted takes the Secret first.
        loop.secrets.held.clear()
        await loop.look()
        assert loop.outcome is not None
        assert not loop.outcome.finalizer
        assert admin.keys() == ["somebody else's"]


async def test_deletion_without_a_store_waits_and_then_lets_go(loop: Loop, server: RedisServer) -> None:
    loop.secrets.put(server.url)
    await loop.look()
    server.kill()
    loop.delete()
    conditions = await loop.look()
    assert conditions["Ready"] == ("False", "WaitingForStore")
    assert loop.outcome is not None
    assert loop.outcome.finalizer
    loop.later(minutes=4, seconds=59)
    await loop.look()
    assert loop.outcome.finalizer
    loop.later(seconds=1)
    await loop.look()
    assert not loop.outcome.finalizer
    assert loop.events[-1].reason == "KeysLeftBehind"


async def test_deletion_without_a_secret_waits_a_minute(loop: Loop) -> None:
    await loop.look()
    loop.delete()
    loop.later(seconds=59)
    await loop.look()
    assert loop.outcome is not None
    assert loop.outcome.finalizer
    loop.later(seconds=1)
    await loop.look()
    assert not loop.outcome.finalizer


async def test_a_cluster_has_the_library_on_every_primary(policy_name: str) -> None:
    loop = Loop({"store": {"topology": "Cluster"}, **BY_DAY}, uid=policy_name)
    with redis_cluster() as servers:
        loop.secrets.put(servers[0].url)
        conditions = await loop.look()
        assert conditions["Enforced"] == ("True", "ReadBack")
        primaries = loop.status["primaries"]
        assert len(primaries) == 3
        assert len({each["libraryVersion"] for each in primaries}) == 1
        assert sum(each["holdsPolicy"] for each in primaries) == 1
        other = next(each["address"] for each in primaries if not each["holdsPolicy"])
        victim = next(server for server in servers if other.endswith(f":{server.port}"))
        with victim.client() as admin:
            admin.function_flush()
        await loop.look()
        assert loop.status["lastRepair"]["message"].startswith(f"The function library was gone from {other}")
        async with AsyncLimiter.from_url(
            servers[0].url, namespace="birthday", policy="birthday-limits", topology="Cluster"
        ) as limiter:
            assert (await limiter.acquire()).allowed
        loop.delete()
        await loop.look()
        assert loop.outcome is not None
        assert not loop.outcome.finalizer
    await STORES.close()


async def test_a_failover_is_followed(policy_name: str) -> None:
    with redis_sentinel() as setup:
        store = {"topology": "Sentinel", "sentinelMaster": setup.master_name}
        loop = Loop({"store": store, **BY_DAY}, uid=policy_name)
        loop.secrets.put(setup.url)
        assert (await loop.look())["Enforced"] == ("True", "ReadBack")
        async with AsyncLimiter.from_url(
            setup.url,
            namespace="birthday",
            policy="birthday-limits",
            topology="Sentinel",
            sentinel_master=setup.master_name,
        ) as limiter:
            await limiter.acquire(cost=4)
            setup.catch_up()
            setup.failover()
            async with asyncio.timeout(20):
                while (await loop.look())["Enforced"] != ("True", "ReadBack"):  # noqa: ASYNC110 - looking is the work
                    await asyncio.sleep(0.1)
            assert loop.status["primaries"][0]["address"] == f"127.0.0.1:{setup.replica.port}"
            assert "lastRepair" not in loop.status, "library and policy were replicated"
            await limiter.peek()
            assert (await limiter.peek()).limits[0].remaining == 11
    await STORES.close()
