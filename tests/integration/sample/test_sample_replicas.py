"""Several replicas on one PostgreSQL: one campaign at once, whatever happens to the one that runs it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from birthday_app.app import create_app
from birthday_app.models import Contact
from birthday_app.services import Services
from birthday_app.settings import Settings
from support.postgres_server import PostgresServer

from .conftest import KEY, BlockedSender, ended

pytestmark = pytest.mark.integration

Install = Callable[..., Awaitable[None]]
WEEK = {"name": "week", "amount": 100, "period": "Week"}


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    """Only PostgreSQL serves several replicas."""
    return postgresql_url


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A second replica."""
    services = Services(settings)
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://other", headers={"X-API-Key": KEY}) as client:
        yield client
    await services.close()


async def test_one_campaign_at_a_time_over_all_replicas(
    client: httpx.AsyncClient,
    other: httpx.AsyncClient,
    services: Services,
    contacts: list[Contact],
    policy: Install,
) -> None:
    await policy(limits=[WEEK])
    services.sender = blocked = BlockedSender()
    started = await client.post("/campaigns/birthday", json={"limit": 1})
    await blocked.reached.wait()
    assert (await other.post("/campaigns/birthday")).status_code == 409
    assert (await other.get("/campaigns/status")).json()["running"]
    blocked.let_go.set()
    # Any replica knows how it ended, and any may run the next.
    assert (await ended(other, started.json()["id"]))["result"]["done"] == 1
    async with asyncio.timeout(10):
        while (answer := await other.post("/campaigns/sourcing")).status_code == 409:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # The status is written just before the lock is given back.
    assert answer.status_code == 202


async def test_a_campaign_that_lost_its_database_lets_the_next_one_run(
    client: httpx.AsyncClient,
    other: httpx.AsyncClient,
    services: Services,
    contacts: list[Contact],
    policy: Install,
    postgres_server: PostgresServer,
) -> None:
    await policy(limits=[WEEK])
    services.sender = blocked = BlockedSender()
    cut_off = (await client.post("/campaigns/birthday", json={"limit": 3})).json()["id"]
    await blocked.reached.wait()
    await asyncio.to_thread(postgres_server.restart)
    blocked.let_go.set()
    campaign = await ended(other, cut_off)
    assert campaign["status"] == "failed"
    assert campaign["result"]["ended_because"] == "the database failed"
    assert "database_errors_total 1.0" in (await client.get("/metrics")).text
    following = (await other.post("/campaigns/birthday", json={"limit": 3, "wait": False})).json()["id"]
    assert (await ended(other, following))["result"]["done"] == 3
