"""Both clients and the ASGI middleware, on a real Redis that works, and on one that does not."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from shipkeeper.limits import AsyncLimiter, Denied, Limiter, LimiterUsageError, StoreError
from shipkeeper.limits.asgi import RateLimitMiddleware
from shipkeeper.resources.ratelimitpolicy import LocalBudget, OnStoreUnavailable
from support.limit_policies import NAMESPACE, install
from support.redis_server import PASSWORD, RedisServer

pytestmark = pytest.mark.integration

THREE_A_DAY: dict[str, Any] = {"limits": [{"name": "day", "amount": 3, "period": "Day"}]}
BREAKER: dict[str, Any] = {"circuitBreaker": {"consecutiveFailures": 2, "openTime": {"initial": "1h", "max": "1h"}}}


@pytest.fixture
def limiter(redis_server: RedisServer, policy_name: str) -> AsyncLimiter:
    return AsyncLimiter.from_url(redis_server.url, namespace=NAMESPACE, policy=policy_name)


async def install_here(server: RedisServer, name: str, document: dict[str, Any]) -> None:
    await asyncio.to_thread(install, server, name, document)


async def test_guard_enters_reports_and_denies(
    redis_server: RedisServer, policy_name: str, limiter: AsyncLimiter
) -> None:
    await install_here(redis_server, policy_name, THREE_A_DAY | BREAKER)
    async with limiter:
        async with limiter.guard("a") as verdict:
            assert verdict.allowed
        for _ in range(2):
            with pytest.raises(KeyError):
                async with limiter.guard("a"):
                    raise KeyError
        with pytest.raises(Denied, match=r"circuitBreaker|day") as denied:
            async with limiter.guard("a"):
                pytest.fail("a denied call was made")
        assert denied.value.verdict.retry_after is not None


async def test_a_cancelled_guard_counts_neither_way(
    redis_server: RedisServer, policy_name: str, limiter: AsyncLimiter
) -> None:
    one_failure = {"circuitBreaker": {"consecutiveFailures": 1}}
    await install_here(redis_server, policy_name, one_failure)

    async def hang(entered: asyncio.Event) -> None:
        async with limiter.guard():
            entered.set()
            await asyncio.sleep(60)

    async with limiter:
        entered = asyncio.Event()
        task = asyncio.create_task(hang(entered))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await limiter.acquire()).allowed


async def test_the_decorator_takes_subject_and_execution_from_the_call(
    redis_server: RedisServer, policy_name: str, limiter: AsyncLimiter
) -> None:
    run = {"limits": [{"name": "run", "amount": 1, "period": "Execution"}]}
    await install_here(redis_server, policy_name, run)

    @limiter.limited(lambda who, run: who, execution=lambda who, run: run)
    async def send(who: str, run: str) -> str:
        return f"to {who} in {run}"

    async with limiter:
        assert await send("a", run="1") == "to a in 1"
        assert await send("a", run="2") == "to a in 2"
        with pytest.raises(Denied):
            await send("a", run="1")


def test_the_synchronous_limiter_does_the_same(redis_server: RedisServer, policy_name: str) -> None:
    install(redis_server, policy_name, THREE_A_DAY | BREAKER)
    with Limiter.from_url(redis_server.url, namespace=NAMESPACE, policy=policy_name) as limiter:

        @limiter.limited("a")
        def send() -> str:
            return "sent"

        assert send() == "sent"
        for _ in range(2):
            with pytest.raises(KeyError), limiter.guard("a"):
                raise KeyError
        with pytest.raises(Denied):
            send()
        reservation = limiter.reserve("b", lease=timedelta(minutes=1))
        assert limiter.commit(reservation) == "Committed"
        kept = limiter.reserve("b", lease=timedelta(minutes=1))
        assert limiter.cancel(kept) == "Cancelled"
        assert limiter.peek("b").limits[0].remaining == 2
        with pytest.raises(LimiterUsageError, match="cost"):
            limiter.acquire(cost=0)
        with pytest.raises(LimiterUsageError, match="subject"):
            limiter.acquire("")
        with pytest.raises(LimiterUsageError, match="lease"):
            limiter.reserve(lease=timedelta(0))


async def test_reserve_of_the_asynchronous_limiter(
    redis_server: RedisServer, policy_name: str, limiter: AsyncLimiter
) -> None:
    await install_here(redis_server, policy_name, THREE_A_DAY)
    async with limiter:
        reservation = await limiter.reserve(cost=2, lease=timedelta(minutes=1))
        assert (await limiter.peek()).limits[0].remaining == 1
        assert await limiter.cancel(reservation) == "Cancelled"
        assert await limiter.cancel(reservation) == "Unknown"
        assert (await limiter.acquire(cost=3, request_id="once")).allowed


async def test_no_store_denies_by_default(redis_server: RedisServer, policy_name: str) -> None:
    async with AsyncLimiter.from_url("redis://127.0.0.1:1/0", namespace=NAMESPACE, policy=policy_name) as limiter:
        verdict = await limiter.acquire()
    assert (verdict.allowed, verdict.rule, verdict.store_failure) == (False, "store", "Unreachable")
    assert verdict.retry_after is None
    assert verdict.limits == ()
    assert (verdict.permit, verdict.config_hash, verdict.breaker, verdict.shadow) == ("", "", "", ())


async def test_allow_and_local_budget_without_a_store(policy_name: str) -> None:
    def limiter_with(policy: OnStoreUnavailable) -> AsyncLimiter:
        return AsyncLimiter.from_url(
            "redis://127.0.0.1:1/0", namespace=NAMESPACE, policy=policy_name, on_store_unavailable=policy
        )

    async with limiter_with(OnStoreUnavailable(action="Allow")) as limiter:
        verdict = await limiter.acquire()
        assert (verdict.allowed, verdict.reason, verdict.store_failure) == (True, "StoreUnavailable", "Unreachable")
        assert not await limiter.report(verdict, "Failure")
    budget = LocalBudget(amount=2, period="1h")
    async with limiter_with(OnStoreUnavailable(action="LocalBudget", local_budget=budget)) as limiter:
        assert (await limiter.peek()).allowed
        verdicts = [await limiter.acquire() for _ in range(3)]
        assert [verdict.allowed for verdict in verdicts] == [True, True, False]
        assert verdicts[-1].reason == "LocalBudgetSpent"
        assert verdicts[-1].retry_after is not None
        assert verdicts[-1].retry_at is not None


def test_the_synchronous_limiter_without_a_store(policy_name: str) -> None:
    with Limiter.from_url("redis://127.0.0.1:1/0", namespace=NAMESPACE, policy=policy_name) as limiter:
        assert limiter.acquire(request_id="x").store_failure == "Unreachable"
        reservation = limiter.reserve(lease=timedelta(seconds=1))
        assert not reservation.allowed
        with pytest.raises(StoreError):
            limiter.commit(reservation)


async def test_the_policy_says_what_happens_without_a_store(policy_name: str) -> None:
    thirty = {"limits": [{"name": "day", "amount": 30, "period": "Day"}]}
    document = thirty | {"onStoreUnavailable": {"action": "Allow", "timeout": "500ms"}}
    with RedisServer() as server:
        await install_here(server, policy_name, document)
        async with AsyncLimiter.from_url(server.url, namespace=NAMESPACE, policy=policy_name) as limiter:
            assert (await limiter.acquire()).config_hash
            server.pause()
            verdict = await limiter.acquire()
            assert (verdict.allowed, verdict.store_failure) == (True, "Timeout")
            server.resume()
            assert (await limiter.acquire()).store_failure == ""
        with Limiter.from_url(server.url, namespace=NAMESPACE, policy=policy_name) as synchronous:
            assert synchronous.peek().allowed
            server.pause()
            assert await asyncio.to_thread(lambda: synchronous.acquire().store_failure) == "Timeout"
            server.resume()
            assert synchronous.peek().store_failure == ""


async def test_each_failure_has_its_name(policy_name: str) -> None:
    with RedisServer() as server, server.client() as admin:
        async with AsyncLimiter.from_url(server.url, namespace=NAMESPACE, policy=policy_name) as limiter:

            async def failure() -> str:
                return (await limiter.acquire()).store_failure

            assert await failure() == "LibraryMissing"
            await install_here(server, policy_name, THREE_A_DAY)
            assert await failure() == ""
            admin.script_flush()
            assert await failure() == ""
            admin.config_set("maxmemory", "1")
            assert await failure() == "OutOfMemory"
            assert (await limiter.peek()).store_failure == "", "a look writes nothing"
            admin.config_set("maxmemory", "0")
            admin.replicaof("127.0.0.1", "1")
            assert await failure() == "ReadOnly"
            admin.replicaof("NO", "ONE")
            assert await failure() == ""
            admin.config_set("min-replicas-to-write", "1")
            assert await failure() == "TooFewReplicas"
            admin.config_set("min-replicas-to-write", "0")
            admin.flushall()
            assert await failure() == "ConfigMissing"
            admin.function_flush()
            assert await failure() == "LibraryMissing"
            await install_here(server, policy_name, THREE_A_DAY)
            server.restart()
            await asyncio.sleep(0.1)
            assert await failure() == "LibraryMissing", "a connection that died with the server is not used again"


@pytest.mark.parametrize("rule", ["+@all -fcall ~*", "+@all -set ~*", "+@all ~elsewhere:*"])
async def test_a_user_without_a_permission(redis_server: RedisServer, policy_name: str, rule: str) -> None:
    await install_here(redis_server, policy_name, THREE_A_DAY)
    with redis_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "weak", "reset", "on", f">{PASSWORD}", *rule.split())
        url = redis_server.url.replace("redis://:", "redis://weak:")
        async with AsyncLimiter.from_url(url, namespace=NAMESPACE, policy=policy_name) as limiter:
            assert (await limiter.acquire()).store_failure == "PermissionDenied"
        admin.acl_deluser("weak")


async def test_a_wrong_password_is_named_and_never_shown(redis_server: RedisServer, policy_name: str) -> None:
    url = redis_server.url.replace(PASSWORD, "wrong-and-secret")
    async with AsyncLimiter.from_url(url, namespace=NAMESPACE, policy=policy_name) as limiter:
        verdict = await limiter.acquire()
        assert verdict.store_failure == "AuthenticationFailed"
        assert "wrong-and-secret" not in repr(verdict)
    with pytest.raises(StoreError) as error:
        AsyncLimiter.from_url("redis//:wrong-and-secret@", namespace=NAMESPACE, policy=policy_name)
    assert "wrong-and-secret" not in str(error.value)


async def test_a_lost_answer_is_not_asked_for_again_without_a_request_id(policy_name: str) -> None:
    """A proxy that swallows the first answer: the call was charged, and repeating it would charge twice."""
    with RedisServer() as server:
        await install_here(server, policy_name, THREE_A_DAY)
        swallow = 0

        async def relay(client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
            nonlocal swallow
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

            async def upstream() -> None:
                while data := await client_reader.read(65536):
                    writer.write(data)
                    await writer.drain()
                writer.close()

            task = asyncio.create_task(upstream())
            while data := await reader.read(65536):
                if swallow and b"LimitReached" not in data and b"day" in data:
                    swallow -= 1
                    break
                client_writer.write(data)
                await client_writer.drain()
            task.cancel()
            writer.close()
            client_writer.close()

        proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        async with AsyncLimiter.from_url(url, namespace=NAMESPACE, policy=policy_name) as limiter:
            assert (await limiter.peek()).allowed
            swallow = 1
            lost = await limiter.acquire()
            assert (lost.allowed, lost.store_failure) == (False, "Unreachable")
            assert (await limiter.peek()).limits[0].remaining == 2, "charged once"
            swallow = 1
            repeated = await limiter.acquire(request_id="send-1")
            assert (repeated.allowed, repeated.replayed) == (True, True)
            assert (await limiter.peek()).limits[0].remaining == 1, "charged once, answered twice"
        proxy.close()
        await proxy.wait_closed()


@pytest.fixture
async def web(redis_server: RedisServer, policy_name: str, limiter: AsyncLimiter) -> AsyncIterator[httpx.AsyncClient]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/crash":
            raise RuntimeError("crash")
        status = 500 if scope["path"] == "/fail" else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-app", b"yes")]})
        await send({"type": "http.response.body", "body": b"ok"})

    await install_here(redis_server, policy_name, THREE_A_DAY | BREAKER)
    wrapped = RateLimitMiddleware(app, limiter=limiter, applies=lambda scope: scope["path"] != "/health")
    transport = httpx.ASGITransport(app=wrapped, raise_app_exceptions=False)
    async with limiter, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_middleware_headers_and_refusal(web: httpx.AsyncClient) -> None:
    first = await web.get("/")
    assert first.headers["x-app"] == "yes"
    assert first.headers["ratelimit-policy"] == '"day";q=3'
    assert first.headers["ratelimit"].startswith('"day";r=2;t=')
    await web.get("/")
    await web.get("/")
    refused = await web.get("/")
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) > 0
    problem = json.loads(refused.content)
    assert problem["type"].endswith("#quota-exceeded")
    assert problem["violated-policies"] == ["day"]
    assert (await web.get("/health")).status_code == 200


async def test_middleware_reports_to_the_breaker(web: httpx.AsyncClient) -> None:
    assert (await web.get("/fail")).status_code == 500
    assert (await web.get("/crash")).status_code == 500
    held = await web.get("/")
    assert held.status_code == 503
    assert json.loads(held.content)["violated-policies"] == ["circuitBreaker"]
