"""The shipped Redis users: each can do its work, and nothing that is not its work."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from shipkeeper.limits import Limiter, StoreError
from shipkeeper.limits.acl import application_rules, operator_rules
from shipkeeper.limits.compiler import compile_policy
from shipkeeper.limits.connection import AsyncStore, StoreAddress
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.limits.store import install_config, install_library, read_store, read_use, remove_policy
from support.limit_policies import NAMESPACE, spec_of
from support.redis_server import PASSWORD, RedisServer, redis_cluster

pytestmark = pytest.mark.integration

DOCUMENT: dict[str, Any] = {
    "limits": [{"name": "day", "amount": 9, "period": "Day"}, {"name": "run", "amount": 9, "period": "Execution"}],
    "circuitBreaker": {"consecutiveFailures": 3},
    "maxSubjects": 5,
}
KEYS = PolicyKeys(namespace=NAMESPACE, policy="limits")


def make_users(server: RedisServer) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "operator", *operator_rules(), f">{PASSWORD}")
        admin.execute_command("ACL", "SETUSER", "app", *application_rules(namespace=NAMESPACE), f">{PASSWORD}")


def as_user(server: RedisServer, user: str) -> str:
    return server.url.replace("redis://:", f"redis://{user}:")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        make_users(server)
        yield server


async def operate(store: AsyncStore) -> None:
    await install_library(store)
    state = await read_store(store, KEYS)
    await install_config(store, KEYS, compile_policy(spec_of(DOCUMENT), KEYS, now=state.now))
    assert (await read_store(store, KEYS)).primaries[0].library_version
    assert await read_use(store, KEYS, "default")


def apply(limiter: Limiter) -> None:
    verdict = limiter.acquire("a", execution="run", request_id="1")
    assert (verdict.allowed, verdict.store_failure) == (True, "")
    assert limiter.report(verdict, "Failure")
    reservation = limiter.reserve("b", execution="run", lease=timedelta(seconds=10))
    assert limiter.cancel(reservation) == "Cancelled"
    assert limiter.peek("a").allowed


async def test_each_user_can_do_its_work(server: RedisServer) -> None:
    store = AsyncStore(StoreAddress(url=as_user(server, "operator")), timeout=2)
    await operate(store)
    with Limiter.from_url(as_user(server, "app"), namespace=NAMESPACE, policy="limits") as limiter:
        apply(limiter)
    assert await remove_policy(store, KEYS) > 2
    await store.close()


async def test_on_a_cluster(server: RedisServer) -> None:
    with redis_cluster() as servers:
        for each in servers:
            make_users(each)
        address = StoreAddress(url=as_user(servers[0], "operator"), topology="Cluster")
        store = AsyncStore(address, timeout=2)
        await operate(store)
        url = as_user(servers[1], "app")
        with Limiter.from_url(url, namespace=NAMESPACE, policy="limits", topology="Cluster") as limiter:
            apply(limiter)
        assert await remove_policy(store, KEYS) > 2
        await store.close()


@pytest.mark.parametrize(
    "command",
    [
        ("SET", KEYS.config, "mine"),
        ("DEL", KEYS.config),
        ("GET", "shipkeeper:{elsewhere}:state:limits:a"),
        ("GET", "somebody-else"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "LOAD", "#!lua name=x\n"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("EVAL", "return 1", "0"),
    ],
)
async def test_an_application_cannot_change_its_policy_nor_see_others(
    server: RedisServer, command: tuple[str, ...]
) -> None:
    with (
        redis.Redis(port=server.port, username="app", password=PASSWORD) as connection,
        pytest.raises(NoPermissionError),
    ):
        connection.execute_command(*command)


async def test_the_library_gives_an_application_no_other_namespace(server: RedisServer) -> None:
    store = AsyncStore(StoreAddress(url=as_user(server, "operator")), timeout=2)
    elsewhere = PolicyKeys(namespace="elsewhere", policy="limits")
    await operate(store)
    await install_config(
        store, elsewhere, compile_policy(spec_of(DOCUMENT), elsewhere, now=(await read_store(store, KEYS)).now)
    )
    await store.close()
    with Limiter.from_url(as_user(server, "app"), namespace="elsewhere", policy="limits") as limiter:
        assert limiter.acquire(execution="x").store_failure == "PermissionDenied"


@pytest.mark.parametrize("command", [("GET", "somebody-else"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST")])
async def test_the_operator_cannot_do_more_than_it_needs(server: RedisServer, command: tuple[str, ...]) -> None:
    store = AsyncStore(StoreAddress(url=as_user(server, "operator")), timeout=2)
    with pytest.raises((StoreError, ResponseError)):
        await store.execute(*command)
    await store.close()
