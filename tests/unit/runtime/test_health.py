"""The operator's HTTP server and its metrics."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shipkeeper_operator.health import HealthServer, LoopMonitor, Verdict
from shipkeeper_operator.metrics import Metrics


class Served:
    """A running server whose verdicts the test sets."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.live = Verdict(True, {"eventLoop": "fine"})
        self.ready = Verdict(False, {"cache": "incomplete"})
        self.server = HealthServer(
            host="127.0.0.1",
            port=0,
            live=lambda: self.live,
            ready=lambda: self.ready,
            scrape=self.metrics.exposition,
        )

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.server.port}{path}") as response,
        ):
            return response.status, await response.text()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.server.start()
    yield served
    await served.server.stop()


async def test_probes_answer_by_status_and_say_why(served: Served) -> None:
    assert await served.get("/healthz") == (200, '{"ok": true, "checks": {"eventLoop": "fine"}}')
    status, text = await served.get("/readyz")
    assert status == 503
    assert json.loads(text) == {"ok": False, "checks": {"cache": "incomplete"}}
    served.ready = Verdict(True, {})
    assert (await served.get("/readyz"))[0] == 200
    assert (await served.get("/elsewhere"))[0] == 404


async def test_metrics_are_valid_and_named_alike(served: Served) -> None:
    queue = served.metrics.queue("Widget")
    queue.added(1)
    queue.taken(0, 0.2)
    queue.retried()
    queue.finished(0.1)
    served.metrics.count_resources("Widget", ["Ready", "Ready", "Stalled"])
    served.metrics.requested("apply", "ConfigMap", "200", 0.01)
    status, text = await served.get("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith("shipkeeper_") for name in families)
    assert all(family.documentation for family in families.values())
    states = {sample.labels["state"]: sample.value for sample in families["shipkeeper_resources"].samples}
    assert states == {"Ready": 2, "Reconciling": 0, "Stalled": 1, "Unknown": 0}
    assert families["shipkeeper_reconcile_active_workers"].samples[0].value == 0


def test_port_of_a_server_that_does_not_run() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        _ = Served().server.port


async def test_blocked_event_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipkeeper_operator.health._TICK_SECONDS", 0.01)
    metrics = Metrics()
    monitor = LoopMonitor(metrics)
    running = asyncio.create_task(monitor.run())
    await asyncio.sleep(0.005)
    time.sleep(0.1)  # noqa: ASYNC251 - to block the loop is what the test is about.
    await asyncio.sleep(0.005)
    lag = monitor.lag_seconds
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert lag > 0.05
