"""The application in the test's own process, on a real database and a real Redis that holds its policy."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from birthday_app.app import create_app
from birthday_app.messages import today
from birthday_app.models import Contact, create_tables
from birthday_app.services import Services
from birthday_app.settings import Settings
from shipkeeper.limits.store import install_policy
from shipkeeper.resources.ratelimitpolicy import RateLimitPolicySpec
from support.postgres_server import PostgresServer, running_postgres
from support.redis_server import RedisServer

KEY = "the-key-of-these-tests"
OLD_KEY = "the-key-of-last-month"
POLICY = "birthday/birthday-limits"
STORE = {"urlFrom": {"name": "birthday-redis", "key": "url"}}

InstallPolicy = Callable[..., Awaitable[None]]


@pytest.fixture(scope="package")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def policy(redis_server: RedisServer) -> InstallPolicy:
    """Put a policy of the sample's name on an empty Redis: `await policy(limits=[...], spacing={...})`."""

    async def install(**spec: Any) -> None:
        with redis_server.client() as client:
            client.flushall()
        parsed = RateLimitPolicySpec.model_validate({"store": STORE, **spec})
        await install_policy(redis_server.url, parsed, namespace="birthday", name="birthday-limits")

    return install


@pytest.fixture
def settings(database_url: str, redis_server: RedisServer) -> Settings:
    return Settings(
        api_keys=(KEY, OLD_KEY), database_url=database_url, redis_url=redis_server.url, rate_limit_policy=POLICY
    )


@pytest.fixture(scope="package")
def postgres_server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
async def postgresql_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database."""
    return await postgres_server.create_database(f"test_{uuid.uuid4().hex}")


@pytest.fixture(params=["postgresql", "sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each sort that the application runs on."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/app.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    services = Services(settings)
    await create_tables(services.engine)
    yield services
    await services.close()


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers={"X-API-Key": KEY}) as client:
        yield client


@pytest.fixture
async def contacts(services: Services) -> list[Contact]:
    """Thirty contacts whose birthday is today."""
    born = date(1980, today().month, today().day)
    made = [
        Contact(name=f"Élodie {n}", profile_url=f"https://example.org/{n}", birth_date=born, status="contacted")
        for n in range(30)
    ]
    async with services.sessions.begin() as session:
        session.add_all(made)
    return made


class BlockedSender:
    """Delivers when the test lets it."""

    name = "blocked"

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    async def send(self, contact: Contact, text: str) -> None:
        self.reached.set()
        await self.let_go.wait()


async def ended(client: httpx.AsyncClient, campaign_id: int) -> dict[str, Any]:
    """Return the campaign once it is over."""
    async with asyncio.timeout(20):
        while True:
            status = (await client.get("/campaigns/status")).json()
            campaign: dict[str, Any] = next(each for each in status["campaigns"] if each["id"] == campaign_id)
            if campaign["status"] != "running":
                return campaign
            await asyncio.sleep(0.02)
