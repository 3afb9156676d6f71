"""The HTTP surface, as callers and the platform see it."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from birthday_app.app import create_app
from birthday_app.models import Contact, Interaction
from birthday_app.services import Services
from birthday_app.settings import Settings

from .conftest import KEY, OLD_KEY

pytestmark = pytest.mark.integration

WITH_KEY = [
    ("POST", "/campaigns/birthday"),
    ("POST", "/campaigns/sourcing"),
    ("GET", "/campaigns/status"),
    ("GET", "/contacts"),
    ("GET", "/interactions"),
]


async def test_health_says_that_the_process_lives(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health")
    body = answer.json()
    assert answer.status_code == 200
    assert datetime.fromisoformat(body.pop("timestamp")).tzinfo is not None
    assert body == {"status": "healthy", "version": "2.0.0"}


async def test_ready_names_both_dependencies(client: httpx.AsyncClient) -> None:
    answer = await client.get("/ready")
    body = answer.json()
    assert answer.status_code == 200
    assert datetime.fromisoformat(body.pop("timestamp")).tzinfo is not None
    assert body == {
        "status": "ready",
        "database": "ok",
        "redis": "ok",
        "dependencies": ["database", "redis"],
        "version": "2.0.0",
    }


async def test_ready_without_redis_is_still_ready(client: httpx.AsyncClient, redis_server: Any) -> None:
    redis_server.stop()
    try:
        answer = await client.get("/ready")
    finally:
        redis_server.start()
    assert (answer.status_code, answer.json()["status"], answer.json()["redis"]) == (200, "ready", "unavailable")
    assert "redis_connection_errors_total 1.0" in (await client.get("/metrics")).text
    assert (await client.get("/ready")).json()["redis"] == "ok"


async def test_ready_without_the_database_is_not_ready(settings: Settings) -> None:
    nowhere = replace(settings, database_url="postgresql+asyncpg://app:a-secret@127.0.0.1:1/app")
    services = Services(nowhere)
    transport = httpx.ASGITransport(create_app(services))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers={"X-API-Key": KEY}) as client:
            answer = await client.get("/ready")
            contacts = await client.get("/contacts")
            metrics = (await client.get("/metrics")).text
    finally:
        await services.close()
    assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
    assert answer.json()["database"] == "unavailable"
    assert contacts.status_code == 503
    assert "a-secret" not in contacts.text
    assert "database_errors_total 2.0" in metrics


async def test_ready_while_draining_is_not_ready(client: httpx.AsyncClient, services: Services) -> None:
    await services.drain()
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    assert (await client.get("/health")).status_code == 200
    assert (await client.post("/campaigns/birthday")).status_code == 409


@pytest.mark.parametrize(("method", "path"), WITH_KEY)
async def test_the_api_needs_its_key(client: httpx.AsyncClient, method: str, path: str) -> None:
    del client.headers["X-API-Key"]
    assert (await client.request(method, path)).status_code == 401
    assert (await client.request(method, path, headers={"X-API-Key": "wrong"})).status_code == 403


@pytest.mark.parametrize("key", [KEY, OLD_KEY])
async def test_both_keys_of_a_rotation_work(client: httpx.AsyncClient, key: str) -> None:
    assert (await client.get("/contacts", headers={"X-API-Key": key})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/campaigns/birthday", {"limit": 0}),
        ("/campaigns/birthday", {"limit": 1001}),
        ("/campaigns/birthday", {"limit": "many"}),
        ("/campaigns/birthday", {"max_days_late": -1}),
        ("/campaigns/birthday", {"unknown": True}),
        ("/campaigns/sourcing", {"max_days_late": 1}),
    ],
)
async def test_a_bad_body_is_refused_by_field(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *body]


async def test_contacts_come_page_by_page(client: httpx.AsyncClient, contacts: list[Contact]) -> None:
    first = (await client.get("/contacts", params={"limit": 20})).json()
    second = (await client.get("/contacts", params={"limit": 20, "after": first[-1]["id"]})).json()
    assert [each["id"] for each in first + second] == [contact.id for contact in contacts]
    assert (await client.get("/contacts", params={"status": "new"})).json() == []


async def test_interactions_can_be_narrowed(
    client: httpx.AsyncClient, services: Services, contacts: list[Contact]
) -> None:
    async with services.sessions.begin() as session:
        session.add(Interaction(contact_id=contacts[0].id, type="profile_visit", status="success"))
        session.add(Interaction(contact_id=contacts[1].id, type="birthday_sent", status="success", payload={"a": 1}))
    visits = (await client.get("/interactions", params={"type": "profile_visit"})).json()
    assert [each["contact_id"] for each in visits] == [contacts[0].id]
    sent = (await client.get("/interactions", params={"contact_id": contacts[1].id})).json()
    assert [(each["type"], each["payload"]) for each in sent] == [("birthday_sent", {"a": 1})]


async def test_metrics_count_requests_by_route(client: httpx.AsyncClient) -> None:
    await client.get("/contacts", params={"after": 5})
    await client.get("/no/such/path/17")
    text = (await client.get("/metrics")).text
    assert 'http_requests_total{endpoint="/contacts",method="GET",status="200"} 1.0' in text
    assert 'http_requests_total{endpoint="unmatched",method="GET",status="404"} 1.0' in text
    for name in (
        "http_request_duration_seconds",
        "http_requests_in_progress",
        "birthday_messages_sent_total",
        "rate_limit_hits_total",
        "rate_limit_quota_remaining",
        "circuit_breaker_state",
        "database_errors_total",
        "redis_connection_errors_total",
        "birthday_campaign_duration_seconds",
    ):
        assert f"# TYPE {name} " in text
