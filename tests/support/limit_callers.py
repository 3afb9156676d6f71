"""Several real processes that ask one store at the same time, and say what they were told."""

import asyncio
import multiprocessing
import random
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from shipkeeper.limits import AsyncLimiter, Reservation, Verdict
from support.limit_policies import NAMESPACE, PATIENT
from support.wall_clock import milliseconds_of

T = TypeVar("T")
TASKS = 3  # of each process


@dataclass(frozen=True)
class Answer:
    """What one call was told, as numbers that travel between processes."""

    at: int
    cost: int
    execution: str | None
    allowed: bool
    rule: str
    retry_at: int | None
    next_call_at: int | None
    config_hash: str
    remaining: tuple[tuple[str, int], ...]
    replayed: bool
    request: str | None = None


@dataclass(frozen=True)
class Traffic:
    """What a process asks, for how long, and from which seed it draws costs and pauses."""

    url: str
    policy: str
    seed: int
    seconds: float
    executions: tuple[str | None, ...] = (None,)
    costs: tuple[int, ...] = (1, 1, 2, 3)
    requests: tuple[str, ...] = ()
    """Ask once for each of these, in an order of its own, instead of by time."""


def _answer(verdict: Verdict, cost: int, execution: str | None, request: str | None = None) -> Answer:
    assert verdict.store_failure == "", verdict.store_failure
    return Answer(
        at=milliseconds_of(verdict.judged_at) or 0,
        cost=cost,
        execution=execution,
        allowed=verdict.allowed,
        rule=verdict.rule,
        retry_at=milliseconds_of(verdict.retry_at),
        next_call_at=milliseconds_of(verdict.next_call_at),
        config_hash=verdict.config_hash,
        remaining=tuple((limit.name, limit.remaining) for limit in verdict.limits),
        replayed=verdict.replayed,
        request=request,
    )


def _limiter(traffic: Traffic) -> AsyncLimiter:
    return AsyncLimiter.from_url(traffic.url, namespace=NAMESPACE, policy=traffic.policy, on_store_unavailable=PATIENT)


def acquire_for_a_while(traffic: Traffic) -> list[Answer]:
    """Ask from several tasks of this process until the time is over."""

    async def ask(limiter: AsyncLimiter, chance: random.Random) -> list[Answer]:
        answers, clock = [], asyncio.get_running_loop()
        end = clock.time() + traffic.seconds
        while clock.time() < end:
            cost, execution = chance.choice(traffic.costs), chance.choice(traffic.executions)
            answers.append(_answer(await limiter.acquire(cost=cost, execution=execution), cost, execution))
            await asyncio.sleep(chance.choice((0, 0.005, 0.02, 0.06)))
        return answers

    return asyncio.run(_together(traffic, ask))


def acquire_requests(traffic: Traffic) -> list[Answer]:
    """Ask for each request once from each task, in an order of its own."""

    async def ask(limiter: AsyncLimiter, chance: random.Random) -> list[Answer]:
        answers = []
        for request in chance.sample(traffic.requests, len(traffic.requests)):
            verdict = await limiter.acquire(execution=traffic.executions[0], request_id=request)
            answers.append(_answer(verdict, 1, traffic.executions[0], request))
        return answers

    return asyncio.run(_together(traffic, ask))


def reserve_for_a_while(traffic: Traffic) -> int:
    """Reserve, commit, cancel and let leases end, and return the units that stay."""

    async def ask(limiter: AsyncLimiter, chance: random.Random) -> list[int]:
        kept, clock = [], asyncio.get_running_loop()
        end = clock.time() + traffic.seconds
        while clock.time() < end:
            cost, ending = chance.choice(traffic.costs), chance.choice(("commit", "cancel", "lease"))
            lease = timedelta(milliseconds=20) if ending == "lease" else timedelta(minutes=5)
            reservation = await limiter.reserve(cost=cost, lease=lease)
            if reservation.allowed and await _is_kept(limiter, reservation, ending):
                kept.append(cost)
            await asyncio.sleep(chance.choice((0, 0.01)))
        return kept

    return sum(asyncio.run(_together(traffic, ask)))


async def _is_kept(limiter: AsyncLimiter, reservation: Reservation, ending: str) -> bool:
    if ending == "cancel":
        assert await limiter.cancel(reservation) == "Cancelled"
    elif ending == "commit":
        assert await limiter.commit(reservation) == "Committed"
    return ending == "commit"


async def _together(traffic: Traffic, ask: Callable[[AsyncLimiter, random.Random], Awaitable[list[T]]]) -> list[T]:
    async with _limiter(traffic) as limiter:
        told = await asyncio.gather(*(ask(limiter, random.Random(traffic.seed * TASKS + i)) for i in range(TASKS)))
    return [each for answers in told for each in answers]


@contextmanager
def caller_processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """Provide so many processes, started anew and warm: none shares anything with this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, mp_context=context) as pool:
        list(pool.map(abs, range(number * 4)))
        yield pool
