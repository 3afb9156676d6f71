"""Exactness under concurrency: several processes, many tasks each, one policy."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from shipkeeper.limits import AsyncLimiter, Limiter
from support.limit_policies import NAMESPACE, install
from support.redis_server import RedisServer

pytestmark = pytest.mark.integration

# Each process: so many tasks ask at once, as soon as a line on standard input says so; prints the verdicts.
CALLER = """
import asyncio, json, sys
from shipkeeper.limits import AsyncLimiter
from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable

async def main(url, namespace, policy, tasks):
    patient = OnStoreUnavailable(timeout="60s")
    async with AsyncLimiter.from_url(url, namespace=namespace, policy=policy, on_store_unavailable=patient) as limiter:
        await limiter.peek("somebody else")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        verdicts = await asyncio.gather(*(limiter.acquire() for _ in range(tasks)))
        print(json.dumps([[verdict.allowed, verdict.rule, verdict.reason] for verdict in verdicts]))

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""


def ask_at_once(server: RedisServer, policy: str, *, processes: int, tasks: int) -> list[list[Any]]:
    """Ask from several processes at the same moment and return all verdicts."""
    command = [sys.executable, "-c", CALLER, server.url, NAMESPACE, policy, str(tasks)]
    callers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    try:
        for caller in callers:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "ready\n"
        for caller in callers:
            assert caller.stdin is not None
            caller.stdin.write("go\n")
            caller.stdin.flush()
        answers = [caller.communicate(timeout=60)[0] for caller in callers]
    finally:
        for caller in callers:
            caller.kill()
            caller.wait()
    return [verdict for answer in answers for verdict in json.loads(answer)]


def test_fifteen_a_day_are_exactly_fifteen(redis_server: RedisServer, policy_name: str) -> None:
    limits = [{"name": "week", "amount": 100, "period": "Week"}, {"name": "day", "amount": 15, "period": "Day"}]
    install(redis_server, policy_name, {"timeZone": "Europe/Paris", "limits": limits})
    verdicts = ask_at_once(redis_server, policy_name, processes=5, tasks=10)
    assert len(verdicts) == 50
    assert sum(allowed for allowed, _, _ in verdicts) == 15
    assert {rule for allowed, rule, _ in verdicts if not allowed} == {"day"}
    with Limiter.from_url(redis_server.url, namespace=NAMESPACE, policy=policy_name) as limiter:
        left = {limit.name: limit.remaining for limit in limiter.peek().limits}
    # Thirty-five calls were denied and charged the week nothing.
    assert left == {"week": 85, "day": 0}


def test_spacing_is_shared_by_all_processes(redis_server: RedisServer, policy_name: str) -> None:
    install(redis_server, policy_name, {"spacing": {"min": "1h", "max": "2h"}})
    verdicts = ask_at_once(redis_server, policy_name, processes=4, tasks=10)
    assert sum(allowed for allowed, _, _ in verdicts) == 1


async def test_one_probe_reaches_the_dependency(redis_server: RedisServer, policy_name: str) -> None:
    breaker = {
        "consecutiveFailures": 1,
        "openTime": {"initial": "50ms", "max": "50ms"},
        "halfOpen": {"permits": 1, "permitTimeout": "1h"},
    }
    await asyncio.to_thread(install, redis_server, policy_name, {"circuitBreaker": breaker})
    async with AsyncLimiter.from_url(redis_server.url, namespace=NAMESPACE, policy=policy_name) as limiter:
        assert await limiter.report(await limiter.acquire(), "Failure")
        await asyncio.sleep(0.1)
    verdicts = await asyncio.to_thread(ask_at_once, redis_server, policy_name, processes=8, tasks=10)
    assert len(verdicts) == 80
    assert sum(allowed for allowed, _, _ in verdicts) == 1
    assert {reason for allowed, _, reason in verdicts if not allowed} == {"ProbeUnderWay"}
