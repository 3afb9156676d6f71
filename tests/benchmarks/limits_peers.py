"""Other limiters for Python that keep their counters in Redis, each by the fastest call it has, under the same periods.

`limits` and `throttled-py` judge one window a call, so five windows are five calls in sequence, up to the first denial;
what was charged before it stays charged. PyrateLimiter judges five rates in one script. Its bucket is asked directly:
its `Limiter` lets only one task in at a time.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import redis.asyncio
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter
from limits.storage import storage_from_string
from pyrate_limiter import Rate, RateItem, RedisBucket
from throttled.asyncio import RedisStore, Throttled, per_duration

Decide = Callable[[str], Awaitable[bool]]
_AMOUNT = 10**9  # never reached
_PERIODS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "month": timedelta(days=30),
    "year": timedelta(days=365),
}


async def peers(url: str, client: redis.asyncio.Redis) -> dict[str, Decide]:
    """Return each peer as a function from a subject to whether a call is admitted."""
    fixed, moving = (
        storage_from_string(f"async+{url}", implementation="redispy", key_prefix=prefix)
        for prefix in ("fixed", "moving")
    )
    return {
        "limits, 5 fixed windows": _limits(FixedWindowRateLimiter(fixed)),
        "limits, 5 moving windows": _limits(MovingWindowRateLimiter(moving)),
        "PyrateLimiter, 5 rates": await _pyrate_limiter(client),
        "throttled-py, 5 fixed windows": _throttled(url, list(_PERIODS)),
        "throttled-py, 1 fixed window": _throttled(url, ["day"]),
    }


def _limits(strategy: RateLimiter) -> Decide:
    windows = [parse(f"{_AMOUNT}/{period}") for period in _PERIODS]

    async def decide(subject: str) -> bool:
        for window in windows:
            if not await strategy.hit(window, subject):
                return False
        return True

    return decide


async def _pyrate_limiter(client: redis.asyncio.Redis) -> Decide:
    rates = [
        Rate(_AMOUNT + number, period // timedelta(milliseconds=1)) for number, period in enumerate(_PERIODS.values())
    ]
    bucket = await RedisBucket.init(rates, client, "pyrate")

    async def decide(subject: str) -> bool:
        return bool(await bucket.put(RateItem(subject, time.time_ns() // 1_000_000)))

    return decide


def _throttled(url: str, periods: list[str]) -> Decide:
    store = RedisStore(server=url)
    windows = [
        # A prefix for each: its keys do not tell one quota from another.
        (f"{period}:", Throttled(using="fixed_window", quota=per_duration(_PERIODS[period], _AMOUNT), store=store))
        for period in periods
    ]

    async def decide(subject: str) -> bool:
        for prefix, throttled in windows:
            if (await throttled.limit(prefix + subject)).limited:
                return False
        return True

    return decide
