"""Campaigns under a policy that a real Redis judges."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from birthday_app.ask_policy import ask
from birthday_app.models import Campaign, Contact
from birthday_app.sending import SendError
from birthday_app.services import Services
from support.redis_server import RedisServer

from .conftest import POLICY, BlockedSender, ended

pytestmark = pytest.mark.integration

Install = Callable[..., Awaitable[None]]
WEEK = {"name": "week", "amount": 100, "period": "Week"}
EXECUTION = {"name": "execution", "amount": 15, "period": "Execution"}
AT_ONCE = {"limit": 20, "wait": False}


async def _run(client: httpx.AsyncClient, path: str, **order: Any) -> dict[str, Any]:
    started = await client.post(path, json=order)
    assert started.status_code == 202, started.text
    return await ended(client, started.json()["id"])


async def _sent(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/interactions", params={"limit": 500})).json()
    return found


class FailingSender:
    """Delivers nothing, and says so."""

    name = "failing"

    async def send(self, contact: Contact, text: str) -> None:
        raise SendError


async def test_sends_stop_at_the_execution_limit(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[WEEK, EXECUTION])
    campaign = await _run(client, "/campaigns/birthday", **AT_ONCE)
    result = campaign["result"]
    assert (campaign["status"], result["tried"], result["done"], result["failed"]) == ("completed", 20, 15, 0)
    assert result["refused"]["execution"]["reason"] == "LimitReached"
    assert result["refused"]["execution"]["count"] == 5
    sent = await _sent(client)
    assert [each["contact_id"] for each in sent] == [contact.id for contact in contacts[:15]]
    assert {(each["type"], each["status"], each["payload"]["days_late"]) for each in sent} == {
        ("birthday_sent", "success", 0)
    }
    metrics = (await client.get("/metrics")).text
    assert 'rate_limit_hits_total{endpoint="birthday",result="denied"} 5.0' in metrics
    assert 'birthday_messages_sent_total{status="success"} 15.0' in metrics
    assert 'rate_limit_quota_remaining{operation="birthday_week"} 85.0' in metrics
    assert "birthday_campaign_duration_seconds_count 1.0" in metrics


async def test_nobody_is_congratulated_twice(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[EXECUTION])
    await _run(client, "/campaigns/birthday", **AT_ONCE)
    await _run(client, "/campaigns/birthday", **AT_ONCE)
    last = await _run(client, "/campaigns/birthday", **AT_ONCE)
    assert last["result"]["ended_because"] == "nobody was due"
    receivers = [each["contact_id"] for each in await _sent(client)]
    assert sorted(receivers) == [contact.id for contact in contacts]


async def test_spacing_lets_one_of_many_through_and_says_until_when(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[EXECUTION], spacing={"min": "90s", "max": "180s"})
    result = (await _run(client, "/campaigns/birthday", **AT_ONCE))["result"]
    assert result["done"] == 1
    assert result["refused"]["spacing"]["count"] == 19
    assert 60 < result["refused"]["spacing"]["retry_after_seconds"] <= 180


async def test_a_waiting_campaign_keeps_the_spacing(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[EXECUTION], spacing={"min": "300ms", "max": "300ms"})
    result = (await _run(client, "/campaigns/birthday", limit=4))["result"]
    assert (result["done"], result["refused"]) == (4, {})
    asked = await _denials(client)
    assert asked >= 3


async def _denials(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith('rate_limit_hits_total{endpoint="birthday",result="denied"}')]
    return float(found[0].split()[-1]) if found else 0.0


async def test_a_waiting_campaign_ends_at_a_long_limit(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[{"name": "slow", "amount": 2, "period": "24h", "alignment": "FirstUse"}])
    campaign = await _run(client, "/campaigns/birthday", limit=10)
    assert (campaign["status"], campaign["result"]["done"]) == ("limited", 2)
    assert campaign["result"]["ended_because"] == "refused by slow (LimitReached)"


async def test_failures_are_recorded_and_open_the_circuit(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact], policy: Install
) -> None:
    await policy(circuitBreaker={"consecutiveFailures": 3})
    services.sender = FailingSender()
    result = (await _run(client, "/campaigns/birthday", **AT_ONCE))["result"]
    assert (result["done"], result["failed"]) == (0, 3)
    assert result["refused"]["circuitBreaker"]["count"] == 17
    sent = await _sent(client)
    assert [each["status"] for each in sent] == ["failed"] * 3
    metrics = (await client.get("/metrics")).text
    assert 'circuit_breaker_state{service="birthday"} 1.0' in metrics
    assert 'birthday_messages_sent_total{status="failed"} 3.0' in metrics


async def test_without_redis_nothing_is_sent(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install, redis_server: RedisServer
) -> None:
    await policy(limits=[EXECUTION])
    redis_server.stop()
    try:
        result = (await _run(client, "/campaigns/birthday", **AT_ONCE))["result"]
    finally:
        redis_server.start()
    assert (result["tried"], result["done"]) == (20, 0)
    assert result["refused"]["store"]["reason"] == "StoreUnavailable"
    assert await _sent(client) == []


async def test_profile_visits_have_their_own_quota(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[{"name": "day", "amount": 5, "period": "Day"}])
    async with services.sessions.begin() as session:
        for number, contact in enumerate(contacts):
            contact.status, contact.fit_score = "new", number / 100
            await session.merge(contact)
    await _run(client, "/campaigns/birthday", limit=5, wait=False)
    visits = (await _run(client, "/campaigns/sourcing", limit=5, wait=False))["result"]
    assert visits["done"] == 5
    visited = (await client.get("/contacts", params={"status": "visited"})).json()
    assert [each["id"] for each in visited] == [contact.id for contact in contacts[-5:]]


async def test_one_campaign_at_a_time(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[WEEK])
    services.sender = blocked = BlockedSender()
    first = await client.post("/campaigns/birthday", json={"limit": 1})
    await blocked.reached.wait()
    assert (await client.get("/campaigns/status")).json()["running"]
    assert (await client.post("/campaigns/sourcing")).status_code == 409
    blocked.let_go.set()
    assert (await ended(client, first.json()["id"]))["status"] == "completed"
    assert (await client.post("/campaigns/sourcing")).status_code == 202


async def test_a_drain_finishes_the_contact_in_hand_and_leaves_the_rest(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[WEEK])
    services.sender = blocked = BlockedSender()
    started = await client.post("/campaigns/birthday", json={"limit": 10})
    await blocked.reached.wait()
    drain = asyncio.create_task(services.drain())
    await asyncio.sleep(0)
    blocked.let_go.set()
    await drain
    campaign = await ended(client, started.json()["id"])
    assert (campaign["status"], campaign["result"]["done"]) == ("stopped", 1)
    assert len(await _sent(client)) == 1
    metrics = (await client.get("/metrics")).text
    assert 'rate_limit_quota_remaining{operation="birthday_week"} 98.0' in metrics


async def test_a_drain_does_not_sit_out_the_spacing(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact], policy: Install
) -> None:
    await policy(spacing={"min": "90s", "max": "180s"})
    started = await client.post("/campaigns/birthday", json={"limit": 10})
    async with asyncio.timeout(20):
        while not await _denials(client):  # noqa: ASYNC110  The metric is what a caller can see.
            await asyncio.sleep(0.02)
    await services.drain()
    assert (await ended(client, started.json()["id"]))["status"] == "stopped"


async def test_a_campaign_whose_process_died_is_called_interrupted(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact], policy: Install
) -> None:
    await policy(limits=[WEEK])
    async with services.sessions.begin() as session:
        session.add(Campaign(name="cut off", type="birthday", status="running"))
    await _run(client, "/campaigns/birthday", limit=1)
    campaigns = (await client.get("/campaigns/status")).json()["campaigns"]
    assert [each["status"] for each in campaigns] == ["completed", "interrupted"]


async def test_asking_a_policy_sends_nothing(
    client: httpx.AsyncClient, contacts: list[Contact], policy: Install, redis_server: RedisServer
) -> None:
    await policy(limits=[WEEK, EXECUTION])
    answers = await ask(redis_server.url, policy=POLICY, subject="question", count=20)
    assert (answers["tried"], answers["allowed"]) == (20, 15)
    assert answers["refused"]["execution"]["count"] == 5
    assert await _sent(client) == []
