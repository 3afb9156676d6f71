"""What the handlers share: one object that is opened when the application starts and closed when it ends."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from birthday_app.api.keys import ApiKeys
from birthday_app.campaigns import CampaignRunner
from birthday_app.database import DATABASE_FAILURES, open_engine, ping
from birthday_app.metrics import Metrics
from birthday_app.sending import DryRunSender, Sender
from birthday_app.settings import Settings
from shipkeeper.limits import AsyncLimiter

PROBE_SECONDS = 2.0


class Services:
    """The application's connections and the state of its life. Opening it connects to nothing."""

    def __init__(self, settings: Settings, *, sender: Sender | None = None) -> None:
        """Build every part from the settings; tests may give a sender of their own."""
        namespace, _, policy = settings.rate_limit_policy.partition("/")
        self.metrics = Metrics()
        self.api_keys = ApiKeys(settings.api_keys)
        self.engine: AsyncEngine = open_engine(settings.database_url)
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self.sender: Sender = sender or DryRunSender()
        self.draining = False
        self._redis = Redis.from_url(
            settings.redis_url, socket_connect_timeout=PROBE_SECONDS, socket_timeout=PROBE_SECONDS
        )
        self._limiter = AsyncLimiter.from_url(settings.redis_url, namespace=namespace, policy=policy)
        self.campaigns = CampaignRunner(engine=self.engine, limiter=self._limiter, metrics=self.metrics)

    async def database_answers(self) -> bool:
        """Whether the database answers within the probe's time."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await ping(self.engine)
        except DATABASE_FAILURES:
            self.metrics.database_errors.inc()
            return False
        return True

    async def redis_answers(self) -> bool:
        """Whether Redis answers within the probe's time."""
        try:
            answer = self._redis.ping()
            if isinstance(answer, Awaitable):
                await answer
        except (RedisError, OSError):
            self.metrics.redis_errors.inc()
            return False
        return True

    async def drain(self) -> None:
        """Be no longer ready, and end the running campaign after the contact in hand."""
        self.draining = True
        await self.campaigns.stop()

    async def close(self) -> None:
        """End the campaign, where one runs, and every connection."""
        await self.drain()
        await self._limiter.close()
        await self._redis.aclose()
        await self.engine.dispose()


def _of_request(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOfRequest = Annotated[Services, Depends(_of_request)]
