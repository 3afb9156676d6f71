"""Calls that tasks make at the same moment go to Redis together, and each gets its own answer."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from shipkeeper.limits import AsyncLimiter, ExecutionRequired
from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable
from support.limit_policies import NAMESPACE, PATIENT, install
from support.redis_server import RedisServer

pytestmark = pytest.mark.integration

TEN_A_DAY = {"limits": [{"name": "day", "amount": 10, "period": "Day"}]}
BY_EXECUTION = {"limits": [{"name": "run", "amount": 10, "period": "Execution"}]}


def limiter_of(server: RedisServer, policy: str, settings: OnStoreUnavailable = PATIENT) -> AsyncLimiter:
    return AsyncLimiter.from_url(server.url, namespace=NAMESPACE, policy=policy, on_store_unavailable=settings)


@pytest.fixture
async def limiter(redis_server: RedisServer, policy_name: str) -> AsyncIterator[AsyncLimiter]:
    await asyncio.to_thread(install, redis_server, policy_name, TEN_A_DAY)
    async with limiter_of(redis_server, policy_name) as made:
        yield made


async def test_calls_of_one_moment_share_connections_and_a_limit(
    limiter: AsyncLimiter, redis_server: RedisServer
) -> None:
    def connections() -> int:
        with redis_server.client() as client:
            return int(client.info("stats")["total_connections_received"])

    before = await asyncio.to_thread(connections)
    verdicts = await asyncio.gather(*(limiter.acquire() for _ in range(50)))
    assert sum(verdict.allowed for verdict in verdicts) == 10
    assert sorted(verdict.limits[0].remaining for verdict in verdicts if verdict.allowed) == list(range(10))
    assert await asyncio.to_thread(connections) - before == 3, "of the first call, of all others, and the counting one"


async def test_each_call_of_a_batch_gets_the_verdict_of_its_own_subject(limiter: AsyncLimiter) -> None:
    for _ in range(4):
        await limiter.acquire("busy")
    busy, idle, looked = await asyncio.gather(
        limiter.acquire("busy"), limiter.acquire("idle", cost=3), limiter.peek("busy")
    )
    assert [verdict.limits[0].remaining for verdict in (busy, idle, looked)] == [5, 7, 5]


async def test_a_call_that_is_refused_as_wrong_leaves_the_others_their_answers(
    redis_server: RedisServer, policy_name: str
) -> None:
    await asyncio.to_thread(install, redis_server, policy_name, BY_EXECUTION)
    async with limiter_of(redis_server, policy_name) as limiter:
        first, wrong, last = await asyncio.gather(
            limiter.acquire(execution="a"), limiter.acquire(), limiter.acquire(execution="b"), return_exceptions=True
        )
    assert isinstance(wrong, ExecutionRequired)
    assert [verdict.allowed for verdict in (first, last)] == [True, True]  # type: ignore[union-attr]


async def test_a_task_that_is_cancelled_leaves_the_others_their_answers(limiter: AsyncLimiter) -> None:
    tasks = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
    await asyncio.sleep(0)  # asked, and not yet answered
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [verdict.allowed for verdict in (answers[0], answers[2])] == [True, True]  # type: ignore[union-attr]
    assert (await limiter.peek()).limits[0].remaining == 7, "the cancelled one had gone to Redis and is charged"


async def test_a_server_that_stands_still_answers_none_and_all_are_told_in_time(policy_name: str) -> None:
    with RedisServer() as server:
        await asyncio.to_thread(install, server, policy_name, TEN_A_DAY)
        async with limiter_of(server, policy_name, OnStoreUnavailable(timeout="300ms")) as limiter:
            assert (await limiter.acquire()).allowed
            os.kill(server.pid, signal.SIGSTOP)
            start = time.monotonic()
            verdicts = await asyncio.gather(*(limiter.acquire() for _ in range(20)))
            spent = time.monotonic() - start
            os.kill(server.pid, signal.SIGCONT)
            assert {(verdict.allowed, verdict.store_failure) for verdict in verdicts} == {(False, "Timeout")}
            assert spent < 3, "twenty timeouts of 300 ms one after the other would be six seconds"
            assert not (await limiter.peek()).store_failure, "the next call finds the server again"
