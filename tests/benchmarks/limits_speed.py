"""How fast a decision is, beside what the same client needs for a bare INCR and an empty function, in one run.

Systems take turns, round by round, so that a busy machine disturbs all alike; figures are medians over the rounds.
Redis has one core, the client another. Redis' own cost is its main thread's CPU time per call, pipelined: that figure
survives a noisy machine. Peers take part where they are installed: limits, pyrate-limiter, throttled-py.

Run: python tests/benchmarks/limits_speed.py [--rounds 5] [--calls 4000] [--subjects 100000]
"""

import argparse
import asyncio
import importlib
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shipkeeper.limits import AsyncLimiter
from shipkeeper.limits.store import install_policy
from support.limit_policies import PATIENT, spec_of
from support.redis_server import RedisServer

CONCURRENT = 20
PERIODS = ("Minute", "Hour", "Day", "Week", "Month")
NOOP = "#!lua name=noop\nredis.register_function('noop', function(keys, args) return 1 end)"
Call = Callable[[int], Awaitable[Any]]


def policy(windows: int, amount: int = 10**9) -> dict[str, Any]:
    """Return a policy of so many calendar windows with spacing, active hours and a breaker, none of which denies."""
    names = [(f"{period.lower()}-{index // 5}", period) for index, period in enumerate(PERIODS * 2)][:windows]
    return {
        "timeZone": "Europe/Paris",
        "limits": [{"name": name, "amount": amount, "period": period} for name, period in names],
        "spacing": {"min": "0s", "max": "1ms"},
        "activeHours": {"rules": [{"times": [{"start": "00:00", "end": "24:00"}]}]},
        "circuitBreaker": {"consecutiveFailures": 3},
    }


@dataclass
class Figures:
    """What was measured of one system, a value for each round."""

    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


async def one_round(call: Call, calls: int, into: Figures) -> None:
    """Make calls from several tasks at once."""
    numbers, spans = iter(range(calls)), []

    async def caller() -> None:
        for number in numbers:
            start = time.perf_counter()
            await call(number)
            spans.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    into.rate.append(calls / (time.perf_counter() - start))
    spans.sort()
    into.p50.append(spans[len(spans) // 2] * 1e3)
    into.p99.append(spans[int(len(spans) * 0.99)] * 1e3)


def command(policy_name: str, subject: str) -> tuple[str | int, ...]:
    """Return an acquire as it goes over the wire."""
    keys = (f"shipkeeper:{{bench}}:state:{policy_name}:{subject}", f"shipkeeper:{{bench}}:config:{policy_name}")
    return ("FCALL", "shipkeeper_acquire", 1, *keys, 1, "")


def cpu_per_call(admin: redis.Redis, commands: list[tuple[str | int, ...]], rounds: int) -> float:
    """Return the microseconds that Redis' main thread needs for one of the commands, pipelined by a hundred."""

    def used() -> float:
        info: Any = admin.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])

    best = float("inf")
    for _ in range(rounds):
        before = used()
        for start in range(0, len(commands), 100):
            pipeline = admin.pipeline(transaction=False)
            for each in commands[start : start + 100]:
                pipeline.execute_command(*each)  # type: ignore[no-untyped-call]
            pipeline.execute()
        best = min(best, (used() - before) / len(commands) * 1e6)
    return best


def peers(url: str) -> dict[str, Call]:
    """Return the installed peers at five rates each, where they can do that."""
    found: dict[str, Call] = {}
    async_url = url.replace("redis://", "async+redis://")
    try:
        limits: Any = importlib.import_module("limits")
        aio: Any = importlib.import_module("limits.aio")
        strategy = aio.strategies.FixedWindowRateLimiter(
            limits.storage.storage_from_string(async_url, implementation="redispy")
        )
        items = [limits.parse(f"1000000000/{unit}") for unit in ("minute", "hour", "day", "month", "year")]

        async def limits_call(number: int) -> None:
            for item in items:
                await strategy.hit(item, f"s{number % 1000}")

        found["limits, 5 fixed windows"] = limits_call
    except ImportError:
        print("limits is not installed: left out")
    try:
        throttled: Any = importlib.import_module("throttled.asyncio")
        store = throttled.RedisStore(server=url)
        throttle = throttled.Throttled(using="fixed_window", quota=throttled.per_day(10**9), store=store)

        async def throttled_call(number: int) -> None:
            await throttle.limit(f"s{number % 1000}")

        found["throttled-py, 1 fixed window"] = throttled_call
    except ImportError:
        print("throttled-py is not installed: left out")
    return found


async def add_pyrate_limiter(url: str, systems: dict[str, Call]) -> None:
    """Add PyrateLimiter with five rates in one script."""
    try:
        pyrate: Any = importlib.import_module("pyrate_limiter")
    except ImportError:
        print("pyrate-limiter is not installed: left out")
        return
    rates = [pyrate.Rate(10**8 + n, 60_000 * 60**n) for n in range(5)]
    client = redis.asyncio.Redis.from_url(url)
    bucket = await pyrate.RedisBucket.init(rates, client, "pyrate")
    clock = time.time

    async def call(number: int) -> None:
        await bucket.put(pyrate.RateItem(f"s{number % 1000}", int(clock() * 1000), weight=1))

    systems["pyrate-limiter, 5 rates"] = call


async def measure(rounds: int, calls: int, subjects: int) -> None:
    """Measure and print."""
    with RedisServer() as server, server.client() as admin:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(server.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        for windows in (1, 3, 5, 10):
            await install_policy(server.url, spec_of(policy(windows)), namespace="bench", name=f"w{windows}")
        await install_policy(server.url, spec_of(policy(5, amount=1)), namespace="bench", name="spent")
        admin.execute_command("FUNCTION", "LOAD", NOOP)
        print(f"Redis {admin.info('server')['redis_version']}, redis-py {redis.__version__}, {CONCURRENT} concurrent")
        await speed(server, rounds, calls)
        print("\nRedis main-thread CPU per call, pipelined (us, minimum of the rounds)")
        for name, commands in wire_calls().items():
            print(f"  {name:<34}{cpu_per_call(admin, commands, rounds):8.2f}")
        await memory(server, admin, subjects)


def wire_calls() -> dict[str, list[tuple[str | int, ...]]]:
    """Return what is sent to measure Redis' own cost."""
    many = range(2000)
    made: dict[str, list[tuple[str | int, ...]]] = {
        "INCR": [("INCR", "x") for _ in many],
        "empty function": [("FCALL", "noop", 1, "x") for _ in many],
    }
    for windows in (1, 3, 5, 10):
        made[f"{windows} windows, allowed"] = [command(f"w{windows}", f"s{n}") for n in many]
    made["5 windows, denied"] = [command("spent", f"s{n}") for n in many]
    return made


async def speed(server: RedisServer, rounds: int, calls: int) -> None:
    """Compare decisions per second and latency, system by system."""
    raw = redis.asyncio.Redis(
        port=server.port, password=server.password, decode_responses=True, protocol=2,
        retry=Retry(NoBackoff(), 0), socket_timeout=60,
    )  # fmt: skip
    limiters = {
        windows: AsyncLimiter.from_url(
            server.url, namespace="bench", policy=f"w{windows}", on_store_unavailable=PATIENT
        )
        for windows in (1, 3, 5, 10)
    }
    systems: dict[str, Call] = {
        "INCR": lambda number: raw.execute_command("INCR", "x"),  # type: ignore[no-untyped-call]
        "empty function": lambda number: raw.execute_command("FCALL", "noop", 1, "x"),  # type: ignore[no-untyped-call]
    }
    for windows, limiter in limiters.items():
        systems[f"shipkeeper, {windows} windows"] = lambda number, limiter=limiter: limiter.acquire(f"s{number % 1000}")  # type: ignore[misc]
    systems |= peers(server.url)
    await add_pyrate_limiter(server.url, systems)
    figures = {name: Figures() for name in systems}
    for _ in range(rounds + 1):
        for name, call in systems.items():
            await one_round(call, calls, figures[name])
    print(f"\n{'system':<34}{'calls/s':>9}{'/INCR':>8}{'p50 ms':>9}{'p99 ms':>9}   (medians of {rounds} rounds)")
    base = statistics.median(figures["INCR"].rate[1:])
    for name, seen in figures.items():
        rate = statistics.median(seen.rate[1:])  # the first round warms up
        p50, p99 = statistics.median(seen.p50[1:]), statistics.median(seen.p99[1:])
        print(f"  {name:<32}{rate:9.0f}{rate / base:8.2f}{p50:9.2f}{p99:9.2f}")
    print(f"  load average {os.getloadavg()[0]:.1f}")
    for limiter in limiters.values():
        await limiter.close()
    await raw.aclose()


async def memory(server: RedisServer, admin: redis.Redis, subjects: int) -> None:
    """Print what one subject's counters take, at many subjects."""
    admin.flushdb()
    await install_policy(server.url, spec_of(policy(5)), namespace="bench", name="w5")

    def used() -> int:
        info: Any = admin.info("memory")
        return int(info["used_memory"])

    def per_key(fill: Callable[[int], tuple[str | int, ...]]) -> float:
        before = used()
        for start in range(0, subjects, 1000):
            pipeline = admin.pipeline(transaction=False)
            for number in range(start, min(start + 1000, subjects)):
                pipeline.execute_command(*fill(number))  # type: ignore[no-untyped-call]
            pipeline.execute()
        return (used() - before) / subjects

    empty = per_key(lambda number: ("SET", f"shipkeeper:{{bench}}:state:xx:s{number}", "", "PX", "86400000"))
    whole = per_key(lambda number: command("w5", f"s{number}"))
    print(
        f"\nMemory for each of {subjects} subjects, 5 windows: {whole:.0f} bytes,"
        f" {whole - empty:.0f} beyond an empty key"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--subjects", type=int, default=100_000)
    options = parser.parse_args()
    asyncio.run(measure(options.rounds, options.calls, options.subjects))
