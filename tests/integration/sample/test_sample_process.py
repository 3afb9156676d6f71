"""The program as the kubelet runs it: its start, its logs, its end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from birthday_app.models import Contact
from birthday_app.services import Services
from birthday_app.settings import Settings
from support.redis_server import PASSWORD, free_port

from .conftest import KEY, OLD_KEY, POLICY

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
Install = Callable[..., Awaitable[None]]


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    """The database of production; what SQLite is for is tested where it differs."""
    return postgresql_url


@dataclass
class Program:
    """The running program and where it logs."""

    process: subprocess.Popen[bytes]
    client: httpx.AsyncClient
    log: Path

    async def ended(self) -> int:
        """Return its exit code, once it has ended by itself."""
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), timeout=30)


def _environment(settings: Settings) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "examples/birthday-app"),
        "API_KEY": settings.api_keys[0],
        "API_KEY_PREVIOUS": settings.api_keys[1],
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "RATE_LIMIT_POLICY": POLICY,
    }


@asynccontextmanager
async def _program(settings: Settings, folder: Path) -> AsyncIterator[Program]:
    port, log = free_port(), folder / "app.log"
    command = [sys.executable, "-m", "birthday_app", "--port", str(port)]
    process = _spawn(command, _environment(settings), log)
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
        try:
            await _until_healthy(client, process)
            yield Program(process, client, log)
        finally:
            process.kill()
            process.wait()


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stderr:
        return subprocess.Popen(command, env=environment, stderr=stderr)


async def _until_healthy(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(30):
        while process.poll() is None:
            try:
                if (await client.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    raise AssertionError("the program ended before it was healthy")


async def test_a_signal_ends_the_campaign_between_two_contacts(
    settings: Settings, services: Services, contacts: list[Contact], policy: Install, tmp_path: Path
) -> None:
    await policy(spacing={"min": "90s", "max": "180s"})
    async with _program(settings, tmp_path) as program:
        assert (await program.client.post("/campaigns/birthday", json={"limit": 10})).status_code == 202
        async with asyncio.timeout(20):
            while not (await program.client.get("/interactions")).json():  # noqa: ASYNC110  Another process's work.
                await asyncio.sleep(0.05)
        program.process.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(str(program.client.base_url))
        logged = [json.loads(line) for line in program.log.read_text().splitlines()]
    ends = [each for each in logged if each["message"] == "campaign ended"]
    assert [(each["status"], each["result"]["done"]) for each in ends] == [("stopped", 1)]


async def test_logs_are_json_and_hold_no_secret(
    settings: Settings, services: Services, contacts: list[Contact], policy: Install, tmp_path: Path
) -> None:
    await policy(limits=[{"name": "week", "amount": 100, "period": "Week"}])
    async with _program(settings, tmp_path) as program:
        await program.client.get("/contacts")
        await program.client.get("/contacts", headers={"X-API-Key": "a-wrong-key-of-the-tests"})
        await program.client.post("/campaigns/birthday", json={"limit": 2, "wait": False})
        program.process.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
        text = program.log.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert {"timestamp", "level", "logger", "message"} <= set(records[0])
    accesses = [record["message"] for record in records if record["logger"] == "uvicorn.access"]
    assert any("GET /contacts" in message for message in accesses)
    assert not any("GET /health" in message for message in accesses)
    for secret in (KEY, OLD_KEY, PASSWORD, "a-wrong-key-of-the-tests", "Joyeux"):
        assert secret not in text


def test_wrong_settings_end_the_program_with_a_message(settings: Settings) -> None:
    environment = _environment(settings) | {"REDIS_URL": f"nothing://:{PASSWORD}@host"}
    finished = subprocess.run([sys.executable, "-m", "birthday_app"], env=environment, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.startswith("birthday-app: REDIS_URL ")
    assert PASSWORD not in finished.stderr


def test_the_tables_can_be_created_and_filled_by_commands(settings: Settings) -> None:
    environment = _environment(settings)
    for arguments in (["-m", "birthday_app", "--create-tables"], ["-m", "birthday_app.legacy_data", "--rows", "50"]):
        finished = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    counts = json.loads(finished.stdout.splitlines()[-1])
    assert counts["rows"] == 50 == counts["copied"] + counts["already"] + counts["rejected"]


def test_a_policy_can_be_asked_by_a_command(settings: Settings, policy: Install) -> None:
    asyncio.run(_install(policy))
    command = [sys.executable, "-m", "birthday_app.ask_policy", "--policy", POLICY, "--count", "4"]
    finished = subprocess.run(command, env=_environment(settings), capture_output=True, text=True)
    answers = json.loads(finished.stdout)
    assert (answers["allowed"], answers["refused"]["week"]["count"]) == (3, 1)


async def _install(policy: Install) -> None:
    await policy(limits=[{"name": "week", "amount": 3, "period": "Week"}])
